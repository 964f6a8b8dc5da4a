//! Command-line arguments.

mod embed;
mod report;

pub use embed::EmbedArgs;
pub use report::ReportArgs;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hone_compress::Group;
use hone_train::run_file::{DataSection, Held, Precision};
use std::path::PathBuf;
use std::str::FromStr;

/// Fine-tune open-weights language models on your own data and your own machine.
#[derive(Parser)]
#[command(name = "hone", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Fine-tune a small built-in model on a built-in task and show the result (no network)
    Demo(DemoArgs),
    /// Predict memory, time and steps of a run without running it
    Plan(PlanArgs),
    /// Fine-tune a model
    Train(TrainArgs),
    /// Compute loss and perplexity of a model on a file, how it ranks answers, or what it makes of
    /// tasks
    Eval(EvalArgs),
    /// Turn texts into vectors
    Embed(EmbedArgs),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Write a model, with its adapter merged, for other programs
    Export(ExportArgs),
    /// Write a smaller model, and say what was lost
    Compress(CompressArgs),
    /// Write the report of a run, or of models beside each other, as one HTML page
    Report(ReportArgs),
    /// Show what hardware this machine has and how fast it is
    Doctor(DoctorArgs),
}

impl Command {
    /// Whether it is to print JSON.
    pub fn wants_json(&self) -> bool {
        match self {
            Self::Demo(args) => args.json,
            Self::Plan(args) => args.run.json,
            Self::Train(args) => args.run.json,
            Self::Eval(args) => args.json,
            Self::Embed(args) => args.json,
            Self::Generate(args) => args.json,
            Self::Export(args) => args.json,
            Self::Compress(args) => args.json,
            Self::Report(args) => args.json,
            Self::Doctor(args) => args.json,
        }
    }
}

#[derive(Args)]
#[command(after_help = "Example: hone demo")]
pub struct DemoArgs {
    /// Directory for model, data and run; must not exist yet
    #[arg(long, default_value = "hone-demo")]
    pub dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct RunFileArgs {
    /// The run file
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// Settings that take precedence, such as train.learning_rate=1e-4
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  hone plan run.toml budget.memory=8GiB
  hone plan run.toml --device h100-80g")]
pub struct PlanArgs {
    #[command(flatten)]
    pub run: RunFileArgs,
    /// Plan for a GPU that this machine need not have: t4, a10g, l4, l40s, a100-40g, a100-80g,
    /// h100-80g, h200 or b200 (default: run.device)
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  hone train run.toml
  hone train run.toml --resume
  hone train run.toml --events json
  hone train run.toml train.learning_rate=1e-4 output.dir=runs/lower-rate")]
pub struct TrainArgs {
    #[command(flatten)]
    pub run: RunFileArgs,
    /// Continue from the newest complete checkpoint, or start if there is none yet
    #[arg(long)]
    pub resume: bool,
    /// Profile a few steps by operation, and write a trace for Perfetto
    #[arg(long)]
    pub profile: bool,
    /// Print what happens as it happens, one JSON object a line: see docs/events.md
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    pub events: Option<EventFormat>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum EventFormat {
    Json,
}

/// A model and how to load it.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A directory in Hugging Face layout, a GGUF file, or a hub name (org/name[@revision])
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// An adapter to apply: a directory in PEFT's layout, or a GGUF file
    #[arg(long, value_name = "ADAPTER")]
    pub adapter: Option<PathBuf>,
    /// Apply the adapter although it was trained on other weights, such as to the same model in
    /// fewer bits
    #[arg(long, requires = "adapter")]
    pub other_base: bool,
    /// Storage format of weights (auto: as in the file, or f16 with compute f16, or int8 with
    /// compute int8 or fp8)
    #[arg(long, default_value = "auto", value_parser = held())]
    pub base_precision: Held,
    /// Precision of matmuls (auto: f32 for f32 files, otherwise bf16, or f16 on a GPU without bf16;
    /// f16 and fp8 need a GPU; fp8 and int8 apply to matmuls with 8-bit weights, the others use
    /// bf16)
    #[arg(long, default_value = "auto")]
    pub compute: PrecisionArg,
    /// Device to compute on: auto (a GPU if there is one), cpu, cuda, or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// CPU threads to use (default: all cores)
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    Auto,
    F32,
    Bf16,
    F16,
    Fp8,
    Int8,
}

/// Parses the name of a storage format of weights.
fn held() -> impl TypedValueParser<Value = Held> {
    PossibleValuesParser::new(Held::VALUES)
        .map(|name| Held::try_from(name).expect("one of the possible values"))
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::Auto => Precision::Auto,
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
            PrecisionArg::F16 => Precision::F16,
            PrecisionArg::Fp8 => Precision::Fp8,
            PrecisionArg::Int8 => Precision::Int8,
        }
    }
}

#[derive(Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  hone eval path/to/model --data book.txt --format text
  hone eval path/to/model --adapter runs/gsm8k/adapter --data test.jsonl \\
      --prompt-field question --completion-field answer
  hone eval path/to/model --adapter runs/dpo/adapter --data pairs.jsonl --format pairs
  hone eval small.gguf --against path/to/model --data book.txt --max-seq-len 512 \
      --context-tokens 257
  hone eval path/to/model --task arc_easy --task lambada_openai --data path/to/files
  hone eval path/to/model --task my_task.yaml --limit 100 --output results.json"
)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Files or glob patterns to evaluate on; with --task the folder that the data files of tasks
    /// are relative to (default: that of the task file, or the present one)
    #[arg(long, required_unless_present = "task", value_name = "FILE")]
    pub data: Vec<String>,
    /// A task or group of tasks: a file as lm-evaluation-harness has them, or the name of one that
    /// comes with Hone (see docs/tasks.md)
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "format", "beta", "prompt_field", "completion_field", "truncate", "append_eos",
            "context_tokens", "against", "logits",
        ]
    )]
    pub task: Vec<PathBuf>,
    /// Of each task, evaluate only so many first documents; a number below 1 is a share
    #[arg(long, value_name = "N", requires = "task", value_parser = limit)]
    pub limit: Option<f64>,
    /// Examples before each document, instead of the task's own number
    #[arg(long, value_name = "N", requires = "task", value_parser = whole_number::<usize>)]
    pub num_fewshot: Option<usize>,
    /// Write prompts of tasks as messages, by the model's chat template
    #[arg(long, requires = "task")]
    pub apply_chat_template: bool,
    /// Write what --json prints of tasks to this file
    #[arg(long, value_name = "FILE", requires = "task")]
    pub output: Option<PathBuf>,
    /// Fail, with status 1, if a task is worse than in FILE, an earlier --output, beyond the 95 %
    /// interval of the difference on the same documents
    #[arg(long, value_name = "FILE", requires = "task")]
    pub gate: Option<PathBuf>,
    /// Write each document's requests, scores and prediction to this file, one JSON object a line
    #[arg(long, value_name = "FILE", requires = "task")]
    pub items: Option<PathBuf>,
    /// Format of the records. pairs (prompt, chosen, rejected) and rated (prompt, completion,
    /// label): how likely the model makes good and bad answers, with --adapter also compared with
    /// the base
    #[arg(long, default_value = "auto")]
    pub format: FormatArg,
    /// Of pairs and rated answers with --adapter: rewards are log-ratios to the base times this
    /// (default: 0.1)
    #[arg(long, value_parser = positive)]
    pub beta: Option<f64>,
    /// Field with the prompt, if it has an unusual name
    #[arg(long, requires = "completion_field")]
    pub prompt_field: Option<String>,
    /// Field with the completion, if it has an unusual name
    #[arg(long, requires = "prompt_field")]
    pub completion_field: Option<String>,
    /// Maximum row length in tokens; text is split into windows of this length
    #[arg(long, value_parser = sequence_length)]
    pub max_seq_len: Option<usize>,
    /// Truncate longer rows instead of refusing them
    #[arg(long)]
    pub truncate: bool,
    /// Also score the end-of-text token after a text document
    #[arg(long)]
    pub append_eos: bool,
    /// Of each window of text, only read the first N tokens and score those that follow
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub context_tokens: usize,
    /// Compare with the model that this one was made of: KL divergence, tokens predicted
    #[arg(long, value_name = "MODEL", conflicts_with = "logits")]
    pub against: Option<String>,
    /// Write the logits of the first row to this safetensors file
    #[arg(long, value_name = "FILE")]
    pub logits: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum FormatArg {
    Auto,
    Messages,
    Sharegpt,
    Alpaca,
    PromptCompletion,
    Text,
    Pairs,
    Rated,
}

impl FormatArg {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Rated => "rated",
            _ => hone_data::Format::from(self).name(),
        }
    }

    /// What the records are.
    pub fn records(self) -> hone_data::RecordKind {
        match self {
            Self::Pairs => hone_data::RecordKind::Pairs,
            Self::Rated => hone_data::RecordKind::Rated,
            _ => hone_data::RecordKind::Plain,
        }
    }
}

impl From<FormatArg> for hone_data::Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Auto | FormatArg::Pairs | FormatArg::Rated => Self::Auto,
            FormatArg::Messages => Self::Messages,
            FormatArg::Sharegpt => Self::ShareGpt,
            FormatArg::Alpaca => Self::Alpaca,
            FormatArg::PromptCompletion => Self::PromptCompletion,
            FormatArg::Text => Self::Text,
        }
    }
}

#[derive(Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  hone generate path/to/model --prompt \"Once upon a time\"
  hone generate path/to/model --adapter runs/gsm8k/adapter --chat --prompt \"What is 7 x 8?\""
)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The text to continue
    #[arg(long, allow_hyphen_values = true, required_unless_present = "prompt_file")]
    pub prompt: Option<String>,
    /// A file with the text to continue; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Format the prompt as a user message with the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// With --chat: the system message before the prompt
    #[arg(long, allow_hyphen_values = true, requires = "chat")]
    pub system: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(long, default_value_t = 256, value_parser = whole_number::<usize>)]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.7, value_parser = temperature)]
    pub temperature: f32,
    /// Sample only from the k most likely tokens; 0: from all
    #[arg(long, default_value_t = 0, value_parser = whole_number::<usize>)]
    pub top_k: usize,
    /// Sample only from the most likely tokens that together have this probability
    #[arg(long, default_value_t = 0.95, value_parser = probability)]
    pub top_p: f32,
    /// Seed of the random numbers: the same seed gives the same text
    #[arg(long, default_value_t = 0, value_parser = whole_number::<u64>)]
    pub seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Example: \
    hone export path/to/model --adapter runs/gsm8k/adapter --out merged
  hone export path/to/model --adapter runs/gsm8k/adapter --adapter-only --format gguf \\
    --out adapter.gguf")]
pub struct ExportArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Layout to write
    #[arg(long, default_value = "hf")]
    pub format: ExportFormat,
    /// Output directory, or file of a GGUF; must not exist yet
    #[arg(long)]
    pub out: PathBuf,
    /// Write the adapter by itself instead of merging it: a GGUF file that llama.cpp applies to
    /// that of the model, or a directory in PEFT's layout
    #[arg(long)]
    pub adapter_only: bool,
    /// Element type of the written weights (default: that of the model's files)
    #[arg(long)]
    pub dtype: Option<DTypeArg>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  hone compress path/to/model --adapter runs/gsm8k/adapter --type q4_k_m --out small.gguf
  hone compress path/to/model --calibration train.jsonl --target-bpw 5 --out small.gguf
  hone compress path/to/model --calibration train.jsonl --max-kl 0.02 --out small.gguf
  hone compress path/to/model --calibration train.jsonl --type w4a16 --out small"
)]
pub struct CompressArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The GGUF file to write, or for the types of other engines the directory; must not exist yet.
    /// Until a GGUF file is whole, what is done is kept in OUT.work: the same command goes on from
    /// there if it is killed
    #[arg(long)]
    pub out: PathBuf,
    /// Mix of types that tensors of a GGUF file are stored in, as llama.cpp has it: q8_0, q6_k,
    /// q5_k_m, q4_k_m, iq4_xs, q3_k_m, q2_k and so on (default: q4_k_m, unless types are chosen for
    /// each tensor). Or what matrices of blocks are in a directory in Hugging Face layout, for
    /// transformers and other engines: w4a16 and w8a16 (integers) and fp8_dynamic, as
    /// llm-compressor calls them, in compressed-tensors' form, or bitsandbytes' nf4
    #[arg(long = "type", value_name = "TYPE")]
    pub mix: Option<String>,
    /// Weights along a row that share a scale: 32, 64 or 128, or channel, the whole row (default:
    /// 128 for w4a16, channel for w8a16)
    #[arg(long, value_name = "N", value_parser = group)]
    #[arg(conflicts_with_all = ["target_bpw", "target_size"])]
    pub group_size: Option<Group>,
    /// Choose the type of each tensor so that least is lost with a file of at most so many bits per
    /// weight of the model, all of the file counted. Takes memory for the file, for the largest
    /// matrix in 32 bits three times, and up to half of what is free, 5 GiB at most
    #[arg(long, value_name = "BITS", value_parser = positive)]
    #[arg(conflicts_with_all = ["mix", "fallback"])]
    pub target_bpw: Option<f64>,
    /// The same for a file of at most this size, such as 80MB or 1.5GiB
    #[arg(long, value_name = "SIZE")]
    #[arg(conflicts_with_all = ["mix", "fallback", "target_bpw"])]
    pub target_size: Option<String>,
    /// What becomes of a matrix whose rows are not whole blocks of its type
    #[arg(long, default_value = "refuse")]
    pub fallback: FallbackArg,
    /// Quantise a model that is quantised already; the errors of both add up
    #[arg(long)]
    pub requantise: bool,
    /// Text like that which the model is for, in any format of training data, or a run file, whose
    /// training data it is then: errors of the columns of a matrix count by how large their inputs
    /// are (default: the training data of the run that MODEL or its adapter is the result of, if
    /// they are that of a run in Hone)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub calibration: Vec<String>,
    /// How the run file describes that text
    #[arg(skip)]
    pub data: Option<DataSection>,
    /// Tokens of the calibration text that are used; an eighth as many are held out, to measure on
    /// (default: 131072)
    #[arg(long, value_parser = sequence_length)]
    pub calibration_tokens: Option<usize>,
    /// How far to go to lose less at the same size, in a GGUF file. With plain, memory is needed
    /// for one block of the model, or the embedding, and for hidden states of the text; feedback
    /// also needs it for the file and for squares of a block's widths, learning for 22 bytes per
    /// weight and for what a window goes through. What there is no memory for is refused
    /// (default: default)
    #[arg(long)]
    pub effort: Option<EffortArg>,
    /// Leave out a technique that this effort would use, to see what it gains
    #[arg(long, value_name = "TECHNIQUE", num_args = 1..)]
    pub without: Vec<TechniqueArg>,
    /// Importance of columns that was computed before, by this command or by llama-imatrix
    #[arg(long, value_name = "FILE", conflicts_with = "calibration")]
    pub imatrix: Option<PathBuf>,
    /// Where to write the importance of columns, as llama-quantize reads it; must not exist yet
    #[arg(long, value_name = "FILE")]
    pub save_imatrix: Option<PathBuf>,
    /// Write nothing if the mean KL divergence from the model, in nats per token of the held-out
    /// part of the calibration text, or else of four short built-in texts, is larger (default: what
    /// rounding is not known to do, by the bits per weight: 0.05 with 7 and more, up to 4). With
    /// --calibration, and neither --type nor a target: choose the type of each tensor so that the
    /// file is as small as this allows
    #[arg(long)]
    pub max_kl: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl CompressArgs {
    pub fn effort(&self) -> EffortArg {
        self.effort.unwrap_or(EffortArg::Default)
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum EffortArg {
    /// Scales are searched for, and each weight takes the nearest value
    Plain,
    /// With calibration text, weights also make up for each other's errors, and roundings are
    /// learned from what the model predicts
    Default,
    /// Roundings are learned for eight times as long
    Best,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum TechniqueArg {
    /// Errors of columns count by how large their inputs are
    Importance,
    /// Weights make up for the errors of those that were rounded before
    Feedback,
    /// Roundings are learned from what the model predicts
    Learning,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum FallbackArg {
    /// Nothing is written
    Refuse,
    /// It is stored in the larger type that llama.cpp takes then
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ExportFormat {
    /// A directory in Hugging Face layout
    Hf,
    /// One GGUF file, as llama.cpp and programs around it read it
    Gguf,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DTypeArg {
    F32,
    Bf16,
    F16,
}

impl From<DTypeArg> for hone_tensor::DType {
    fn from(arg: DTypeArg) -> Self {
        match arg {
            DTypeArg::F32 => Self::F32,
            DTypeArg::Bf16 => Self::Bf16,
            DTypeArg::F16 => Self::F16,
        }
    }
}

#[derive(Args)]
#[command(after_help = "Example: hone doctor")]
pub struct DoctorArgs {
    /// Threads to measure with (default: all cores)
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn group(text: &str) -> Result<Group, String> {
    match text.parse() {
        _ if text == "channel" => Ok(Group::Channel),
        Ok(n @ (32 | 64 | 128)) => Ok(Group::Of(n)),
        _ => Err("expected 32, 64, 128 or channel".to_owned()),
    }
}

fn whole_number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number of at least 0".to_owned())
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=4096) => Ok(n),
        _ => Err("expected a whole number from 1 to 4096".to_owned()),
    }
}

fn sequence_length(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 2..) => Ok(n),
        _ => Err("expected a whole number of at least 2".to_owned()),
    }
}

fn limit(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n > 0.0 && (n < 1.0 || n.fract() == 0.0) && n <= 1e15 => Ok(n),
        _ => Err("expected a whole number of at least 1, or a share between 0 and 1".to_owned()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}

fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a number above 0 and at most 1".to_owned()),
    }
}
