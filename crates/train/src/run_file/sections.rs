//! Every key of the run file, once, table by table. Checking, error messages, the typed tree and
//! the reference page all come from these declarations; what holds between keys is in
//! `relations.rs`.

use super::bytes::ByteSize;
use super::held::Held;
use super::macros::{choice, section, tagged};
use super::schema::Check::{Bool, Bytes, Choice, Float, Int, Paths, Text, TextList};
use super::schema::Default::{Chosen, Required, Value};
use super::schema::Interval::{NonNegative, Positive, UnitClosed, UnitInside, UnitOpen, Weight};
use super::schema::{Check, Key, Section};
use hone_data::{Format, OnError, Overlong, WeightedPath};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const ANY: i64 = i64::MAX;
const FORMATS: &[&str] = &["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"];

section! {
    /// The model to start from.
    ["model"] ModelSection {
        /// directory in Hugging Face layout, a GGUF file, or a hub name
        path: String = Text, Required, r#""Qwen/Qwen3-0.6B""#, changeable;
        /// how frozen weights are held. `auto`: as in the file, but floats as f16 where `compute`
        /// is f16, and all as int8 where it is fp8 or int8. `int8`: bytes with a scale per row.
        /// `nf4`: four bits, as QLoRA has them, embedding and head as in the file. `q8_0` and those
        /// after it: GGUF's blocks of 32 or 256 weights, of which rows must be made
        base_precision: Held = Choice(Held::VALUES), Value(r#""auto""#), r#""bf16""#;
        /// what matrices are multiplied in. `auto`: f32 for f32 files, otherwise bf16, or f16 on a
        /// GPU without bf16. `f16`: GPUs only, the loss is scaled. `fp8` (GPUs from compute
        /// capability 8.9 on) and `int8` (CPU, and GPUs from 8.0 on): products with frozen weights
        /// in eight bits, others in bf16
        compute: Precision = Choice(Precision::VALUES), Value(r#""auto""#), r#""f32""#;
    }
}

section! {
    /// Records to learn from and to evaluate on.
    ["data"] DataSection {
        /// files or glob patterns to train on; as tables `[[data.train]]`, with weights
        train: TrainFiles = Paths(&TrainFilesSection::SECTION), Required, r#"["train.jsonl"]"#,
            changeable;
        /// files or glob patterns to evaluate on; they have no weights, as every row counts once
        eval: Vec<String> = TextList { may_be_empty: true }, Value("[]"), r#"["test.jsonl"]"#,
            changeable;
        /// format of the records, but for preferences, which have their own; `auto`: found from the
        /// first record
        format: Format = Choice(FORMATS), Value(r#""auto""#), r#""messages""#;
        /// field of the prompt; needs `completion_field`
        prompt_field: Option<String> = Text, Chosen("the usual names"), r#""question""#;
        /// field of the completion; needs `prompt_field`
        completion_field: Option<String> = Text, Chosen("the usual names"), r#""answer""#;
        /// most tokens in a sequence
        max_seq_len: Option<usize> = Int(2, ANY),
            Chosen("2048, or the model's maximum or `batch_tokens` if smaller"), "1024";
        /// what to do with a row longer than `max_seq_len`
        overlong: Overlong = Choice(&["refuse", "truncate"]), Value(r#""refuse""#),
            r#""truncate""#;
        /// what to do with a row that cannot be used; skipped rows are counted
        on_error: OnError = Choice(&["fail", "skip"]), Value(r#""fail""#), r#""skip""#;
        /// append an end-of-text token, as a target, to documents of format text; completions
        /// always get one
        append_eos: bool = Bool, Value("true"), "false";
    }
}

section! {
    /// One table for each part of a mixture. Keys of `[data]` come before the first of them.
    ["data.train"] TrainFilesSection {
        /// a file or a glob pattern; a file that several tables name belongs to the first
        path: String = Text, Required, r#""chat.jsonl""#, changeable;
        /// how often an epoch sees each row: 2.0 is twice, and 0.5 a half, drawn anew for each
        /// epoch. Rounded to whole rows, at least one; neighbouring tables of one weight are
        /// rounded together. A resumed run keeps its weights
        weight: f64 = Float(Weight), Value("1.0"), "0.5";
    }
}

tagged! {
    /// Leave the whole table out for full fine-tuning.
    ["adapter"] AdapterSection, Required, r#""lora""# {
        /// low-rank adaptation
        Lora(LoraSection) = "lora";
    }
}

section! {
    /// Low-rank adapters.
    ["adapter" if kind = "lora"] LoraSection {
        /// rank of the two adapter matrices
        rank: usize = Int(1, 1024), Value("16"), "8";
        /// the adapter is scaled by alpha / rank
        alpha: f64 = Float(Positive), Chosen("2 × `rank`"), "64.0";
        /// share of the adapter's inputs set to zero in training
        dropout: f64 = Float(UnitOpen), Value("0.0"), "0.05";
        /// names or patterns of linear layers, or what they do: `experts`, `router`,
        /// `linear-attention`; `all-linear`: all but routers and the head
        target_modules: TargetModules = TextList { may_be_empty: false },
            Value(r#""all-linear""#), r#"["q_proj", "v_proj"]"#;
        /// scale by alpha / √rank instead
        use_rslora: bool = Bool, Value("false"), "true";
        /// all experts of a block learn one pair of matrices for each projection, instead of one
        /// each
        share_experts: bool = Bool, Value("false"), "true";
        /// directory of a PEFT adapter to start from, or a GGUF file of one
        init_from: Option<PathBuf> = Text, Chosen("a new adapter"), r#""runs/first/adapter""#,
            changeable;
    }
}

tagged! {
    /// What is learnt.
    ["objective"] ObjectiveSection, Value(r#""sft""#), r#""pretrain""# {
        /// the target tokens
        Sft = "sft";
        /// every token
        Pretrain = "pretrain";
        /// hidden tokens, where they are, by an encoder
        Masked(MaskedSection) = "masked";
        /// the better of two answers, by direct preference optimisation
        Dpo(DpoSection) = "dpo";
        /// good and bad answers, by Kahneman–Tversky optimisation
        Kto(KtoSection) = "kto";
    }
}

section! {
    /// Prediction of masked tokens, for encoders. Of the chosen tokens 80 % are replaced by the
    /// mask token, 10 % by any; special tokens are never chosen.
    ["objective" if kind = "masked"] MaskedSection {
        /// share of tokens that are chosen
        ratio: f64 = Float(UnitInside), Value("0.15"), "0.3";
    }
}

section! {
    /// Kahneman–Tversky optimisation.
    ["objective" if kind = "kto"] KtoSection {
        /// how strongly the model is kept close to the one that training starts from
        beta: f64 = Float(Positive), Value("0.1"), "0.3";
        /// weight of good answers
        desirable_weight: f64 = Float(Positive), Value("1.0"), "1.33";
        /// weight of bad answers
        undesirable_weight: f64 = Float(Positive), Value("1.0"), "0.5";
    }
}

section! {
    /// Direct preference optimisation, with the sigmoid loss.
    ["objective" if kind = "dpo"] DpoSection {
        /// how strongly the model is kept close to the one that training starts from
        beta: f64 = Float(Positive), Value("0.1"), "0.3";
    }
}

tagged! {
    /// How parameters follow their gradients; what all optimizers share is in `[train]`.
    ["optimizer"] OptimizerSection, Value(r#""adamw""#), r#""adamw""# {
        /// Adam with decoupled weight decay
        Adamw(AdamwSection) = "adamw";
    }
}

section! {
    /// Adam with decoupled weight decay.
    ["optimizer" if kind = "adamw"] AdamwSection {
        /// decay of the gradient's running mean
        beta1: f64 = Float(UnitOpen), Value("0.9"), "0.85";
        /// decay of the squared gradient's running mean
        beta2: f64 = Float(UnitOpen), Value("0.999"), "0.95";
        /// added to the denominator of the update
        epsilon: f64 = Float(Positive), Value("1e-8"), "1e-6";
    }
}

tagged! {
    /// Course of the learning rate after the warm-up.
    ["schedule"] ScheduleSection, Value(r#""cosine""#), r#""linear""#, changeable {
        /// stays at its highest
        Constant = "constant";
        /// falls linearly to 0
        Linear = "linear";
        /// falls along half a cosine
        Cosine(CosineSection) = "cosine";
    }
}

section! {
    /// Half a cosine.
    ["schedule" if kind = "cosine"] CosineSection {
        /// learning rate at the end, as a share of the highest
        min_ratio: f64 = Float(UnitClosed), Value("0.0"), "0.1", changeable;
    }
}

section! {
    /// How long and in what steps to train.
    ["train"] TrainSection {
        /// passes over the training data; `--resume` may raise it under `schedule.kind =
        /// "constant"`
        num_epochs: Option<u64> = Int(1, ANY), Chosen("1 unless `max_steps` is given"), "3";
        /// number of optimizer steps; `--resume` may raise it as `num_epochs`
        max_steps: Option<u64> = Int(1, ANY), Chosen("as `num_epochs` says"), "500";
        /// tokens per optimizer step, over all micro-batches
        batch_tokens: usize = Int(2, ANY), Value("16384"), "8192";
        /// highest learning rate
        learning_rate: f64 = Float(Positive), Chosen("2e-4 with an adapter, 2e-5 without"),
            "1e-4";
        /// share of the steps in which the learning rate rises
        warmup_ratio: Option<f64> = Float(UnitClosed),
            Chosen("0.03 unless `warmup_steps` is given"), "0.1";
        /// number of steps in which the learning rate rises
        warmup_steps: Option<u64> = Int(0, ANY), Chosen("as `warmup_ratio` says"), "20";
        /// decoupled weight decay
        weight_decay: f64 = Float(NonNegative), Value("0.0"), "0.01";
        /// the gradient is scaled down to this norm; 0 switches it off
        max_grad_norm: f64 = Float(NonNegative), Value("1.0"), "0.5";
        /// weight of the loss that evens out the load of experts, of the whole step; a step then
        /// takes a pass more
        router_aux_loss_coef: f64 = Float(NonNegative), Value("0.0"), "0.001";
        /// evaluate every so many steps; 0: only before and after training
        eval_every_steps: u64 = Int(0, ANY), Value("0"), "50", changeable;
        /// what to do when loss or gradient is NaN or infinite; the step is never applied
        on_nonfinite: OnNonfinite = Choice(OnNonfinite::VALUES), Value(r#""stop""#), r#""skip""#,
            changeable;
        /// seed of everything random
        seed: u64 = Int(0, ANY), Value("42"), "7";
    }
}

section! {
    /// How often progress is kept.
    ["checkpoint"] CheckpointSection {
        /// steps between checkpoints; the last step leaves one too, and the one that Ctrl-C ends
        every_steps: u64 = Int(1, ANY), Value("100"), "20", changeable;
        /// minutes after which a step leaves a checkpoint however few steps were done: what a kill
        /// may cost; 0: no such limit
        every_minutes: f64 = Float(NonNegative), Value("10.0"), "2.0", changeable;
        /// how many whole checkpoints are kept
        keep: usize = Int(1, ANY), Value("2"), "3", changeable;
    }
}

section! {
    /// What the planner has to keep to.
    ["budget"] BudgetSection {
        /// most memory the process may take, or of a GPU where that computes, of which at most
        /// 31/32 are taken
        memory: Option<ByteSize> = Bytes,
            Chosen("three quarters of the machine's memory, or 31/32 of a GPU's"), r#""16GiB""#,
            changeable;
        /// tokens per forward and backward pass; a multiple of `max_seq_len`
        micro_batch_tokens: Option<usize> = Int(2, ANY), Chosen("the planner's choice"), "4096";
        /// `block`: keep only each block's input and compute the rest again in backward
        recompute: Recompute = Choice(Recompute::VALUES), Value(r#""auto""#), r#""block""#;
        /// blocks whose frozen weights stay in page-locked memory of the CPU and take turns in two
        /// places on the GPU. `auto`: as many as memory demands; `all`: all, with `[adapter]` and
        /// on a GPU only. Results do not depend on it
        offload: Offload = Choice(Offload::VALUES), Value(r#""auto""#), r#""all""#, changeable;
    }
}

section! {
    /// The machine.
    ["run"] RunSection {
        /// `auto`: the first NVIDIA GPU that can be used, otherwise the CPU; `cpu`; `cuda` or
        /// `cuda:1`: that GPU. `--resume` must find the same kind of processor
        device: String = Text, Value(r#""auto""#), r#""cuda:0""#, changeable;
        /// number of threads of the CPU; results do not depend on it
        threads: Option<usize> = Int(1, 4096), Chosen("all cores"), "2", changeable;
        /// whether a GPU launches a pass as a whole where batches of its shape came before: meant
        /// for small models, not measured yet. Results do not depend on it; not done with blocks
        /// beside the GPU
        cuda_graphs: bool = Bool, Value("true"), "false", changeable;
    }
}

section! {
    /// What `report.html` shows.
    ["report"] ReportSection {
        /// texts generated before and after training; encoders generate none
        samples: usize = Int(0, 16), Value("2"), "4", changeable;
        /// most tokens in each of them
        max_new_tokens: usize = Int(1, ANY), Value("64"), "128", changeable;
    }
}

section! {
    /// Where the result goes.
    ["output"] OutputSection {
        /// directory of the run, which may be moved before a `--resume`
        dir: PathBuf = Text, Required, r#""runs/gsm8k""#, changeable;
    }
}

choice! {
    /// Precision of products.
    Precision {
        /// Decided from the model's files.
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE 754 binary16.
        F16 = "f16",
        /// Floats of eight bits.
        Fp8 = "fp8",
        /// 8-bit integers with a scale per row.
        Int8 = "int8",
    }
}

choice! {
    /// What a NaN or infinite loss or gradient does.
    OnNonfinite {
        /// Stops the run.
        Stop = "stop",
        /// Leaves the step out.
        Skip = "skip",
    }
}

choice! {
    /// What backward computes again.
    Recompute {
        /// The planner's choice.
        Auto = "auto",
        /// Nothing.
        None = "none",
        /// Everything within a block but its input.
        Block = "block",
    }
}

choice! {
    /// Which frozen weights a GPU's run keeps in the CPU's memory, to be copied when their turn
    /// comes.
    Offload {
        /// Those of as many blocks as memory demands.
        Auto = "auto",
        /// None.
        None = "none",
        /// Those of all blocks.
        All = "all",
    }
}

/// What to train on: written as a list of paths where no weight is other than 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "WrittenFiles", into = "WrittenFiles")]
pub struct TrainFiles(pub Vec<TrainFilesSection>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenFiles {
    Paths(Vec<String>),
    Tables(Vec<TrainFilesSection>),
}

impl TrainFiles {
    /// The files and patterns.
    pub fn paths(&self) -> Vec<String> {
        self.0.iter().map(|files| files.path.clone()).collect()
    }
}

impl From<WrittenFiles> for TrainFiles {
    fn from(written: WrittenFiles) -> Self {
        let unweighted = |path| TrainFilesSection { path, weight: 1.0 };
        Self(match written {
            WrittenFiles::Paths(paths) => paths.into_iter().map(unweighted).collect(),
            WrittenFiles::Tables(tables) => tables,
        })
    }
}

impl From<TrainFiles> for WrittenFiles {
    fn from(TrainFiles(files): TrainFiles) -> Self {
        match files.iter().all(|files| files.weight == 1.0) {
            true => Self::Paths(files.into_iter().map(|files| files.path).collect()),
            false => Self::Tables(files),
        }
    }
}

impl From<&TrainFilesSection> for WeightedPath {
    fn from(TrainFilesSection { path, weight }: &TrainFilesSection) -> Self {
        Self { path: path.clone(), weight: *weight }
    }
}

/// Which linear layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub enum TargetModules {
    /// All but the head.
    AllLinear,
    /// Names or glob patterns, at least one.
    Patterns(Vec<String>),
}

impl From<Vec<String>> for TargetModules {
    fn from(list: Vec<String>) -> Self {
        if list == ["all-linear"] { Self::AllLinear } else { Self::Patterns(list) }
    }
}

impl From<TargetModules> for Vec<String> {
    fn from(targets: TargetModules) -> Self {
        match targets {
            TargetModules::AllLinear => vec!["all-linear".to_owned()],
            TargetModules::Patterns(list) => list,
        }
    }
}

impl TrainSection {
    /// Warm-up steps of a run of `num_steps`: as given, or the share rounded up.
    pub fn num_warmup_steps(&self, num_steps: u64) -> u64 {
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _) => steps.min(num_steps),
            (None, ratio) => (ratio.unwrap_or(0.0) * num_steps as f64).ceil() as u64,
        }
    }
}
