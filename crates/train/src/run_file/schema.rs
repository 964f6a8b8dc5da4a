//! Every key of the run file, once: name, type, range, default, one line of documentation and an
//! example. Checking, error messages and the reference page are made from this table. It says
//! nothing about relations between keys; those are in `relations.rs`.

use std::fmt::Write as _;

/// One key of the run file.
pub(super) struct Key {
    /// Table and name, as in `train.learning_rate`.
    pub path: &'static str,
    pub kind: Kind,
    pub default: Default,
    pub doc: &'static str,
    /// A valid value other than the default, as TOML.
    pub example: &'static str,
}

/// Type and range of a value.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bool,
    /// From, to; both included.
    Int(i64, i64),
    Float(Interval),
    Text,
    /// One text or a list of them; `true` where the list may be empty.
    TextList(bool),
    Choice(&'static [&'static str]),
    /// A number of bytes, or a text such as "16GiB".
    Bytes,
}

/// Range of a real number; never infinite or NaN.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Interval {
    Positive,
    NonNegative,
    /// From 0 to 1, both included.
    UnitClosed,
    /// From 0, below 1.
    UnitOpen,
}

/// What holds when the key is absent.
pub(super) enum Default {
    Required,
    /// A value, as TOML.
    Value(&'static str),
    /// No fixed value; the text says what happens.
    Chosen(&'static str),
}

impl Key {
    /// Table and name.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').expect("every key of the schema is `table.name`")
    }
}

impl Interval {
    pub fn contains(self, x: f64) -> bool {
        x.is_finite()
            && match self {
                Interval::Positive => x > 0.0,
                Interval::NonNegative => x >= 0.0,
                Interval::UnitClosed => (0.0..=1.0).contains(&x),
                Interval::UnitOpen => (0.0..1.0).contains(&x),
            }
    }

    fn describe(self) -> &'static str {
        match self {
            Interval::Positive => "a number above 0",
            Interval::NonNegative => "a number, 0 or above",
            Interval::UnitClosed => "a number from 0 to 1",
            Interval::UnitOpen => "a number from 0 up to, but not including, 1",
        }
    }
}

impl Kind {
    /// What is expected, for messages and the reference.
    pub fn describe(self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Int(min, i64::MAX) => format!("a whole number, {min} or above"),
            Kind::Int(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Float(interval) => interval.describe().into(),
            Kind::Text => "a text that is not empty".into(),
            Kind::TextList(true) => "a text or a list of texts".into(),
            Kind::TextList(false) => "a text or a list of at least one text".into(),
            Kind::Choice([only]) => format!("\"{only}\""),
            Kind::Choice(options) => format!("one of \"{}\"", options.join("\", \"")),
            Kind::Bytes => "a size such as \"16GiB\" or \"800MB\", or a number of bytes".into(),
        }
    }
}

/// The table that may be left out as a whole: full fine-tuning then.
pub(super) const OPTIONAL_TABLE: &str = "adapter";

/// Keys of which only one may be given. On the command line, one takes the place of the other
/// that the file gives.
pub(super) const EXCLUSIVE: [(&str, &str); 2] =
    [("train.num_epochs", "train.max_steps"), ("train.warmup_ratio", "train.warmup_steps")];

/// Beginnings of the keys that may change between a run and its `--resume`: none of them changes
/// what the run has computed so far. `output.dir` may, since a run may be moved.
pub(super) const MAY_CHANGE: [&str; 7] = [
    "budget.memory",
    "budget.offload",
    "checkpoint.",
    "output.",
    "report.",
    "run.",
    "train.on_nonfinite",
];

/// The key of that path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Names of the tables, in the order of the reference.
pub(super) fn tables() -> Vec<&'static str> {
    TABLES.iter().map(|(name, _)| *name).collect()
}

/// The reference of all keys as Markdown.
pub(super) fn reference_markdown() -> String {
    let mut out = String::from(REFERENCE_HEAD);
    for (table, doc) in TABLES {
        let _ = write!(out, "\n## [{table}]\n\n{doc}\n\n");
        out.push_str("| key | value | default | meaning | example |\n");
        out.push_str("| --- | --- | --- | --- | --- |\n");
        for key in KEYS.iter().filter(|key| key.parts().0 == table) {
            let default = match key.default {
                Default::Required => "required".to_owned(),
                Default::Value(text) => format!("`{text}`"),
                Default::Chosen(text) => text.to_owned(),
            };
            let (name, value) = (key.parts().1, key.kind.describe());
            let (doc, example) = (key.doc, key.example);
            let _ = writeln!(out, "| `{name}` | {value} | {default} | {doc} | `{example}` |");
        }
    }
    out
}

const REFERENCE_HEAD: &str = "# Run file

<!-- Generated from the run file's schema; do not edit. -->

A run file is TOML. An unknown key, a wrong type or a value out of range is an error that names the
key and its line. Relative paths are relative to the current directory. Any key can be given on the
command line as `table.key=value`, which takes the place of the file's value; text needs no quotes
there. Of `num_epochs` and `max_steps`, and of `warmup_ratio` and `warmup_steps`, only one may be
given; the one on the command line takes the place of the other in the file.
";

const TABLES: [(&str, &str); 9] = [
    ("model", "The model to start from."),
    ("data", "Records to learn from and to evaluate on."),
    ("adapter", "Leave the whole table out for full fine-tuning."),
    ("train", "The objective and the optimizer."),
    ("checkpoint", "How often progress is kept. May change between a run and its `--resume`."),
    ("budget", "What the planner has to keep to."),
    ("run", "The machine. May change between a run and its `--resume`."),
    ("report", "What `report.html` shows. May change between a run and its `--resume`."),
    ("output", "Where the result goes."),
];

const ANY: i64 = i64::MAX;
const STORAGES: &[&str] = &["auto", "f32", "bf16", "f16", "int8"];
const PRECISIONS: &[&str] = &["auto", "f32", "bf16", "f16", "fp8", "int8"];
const FORMATS: &[&str] = &["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"];

const fn key(
    path: &'static str,
    kind: Kind,
    default: Default,
    doc: &'static str,
    example: &'static str,
) -> Key {
    Key { path, kind, default, doc, example }
}

use Default::{Chosen, Required, Value};
use Interval::{NonNegative, Positive, UnitClosed, UnitOpen};
use Kind::{Bool, Bytes, Choice, Float, Int, Text, TextList};

/// All keys, in the order of the reference.
#[rustfmt::skip] // one key, one or two lines
pub(super) const KEYS: &[Key] = &[
    key("model.path", Text, Required,
        "directory in Hugging Face layout, or a hub name", r#""Qwen/Qwen3-0.6B""#),
    key("model.base_precision", Choice(STORAGES), Value(r#""auto""#),
        "how frozen weights are held. `auto`: as in the file, but as f16 where `compute` is f16, \
         and as int8 where it is fp8 or int8. `int8`: bytes with a scale per row",
        r#""bf16""#),
    key("model.compute", Choice(PRECISIONS), Value(r#""auto""#),
        "what products are computed in. `auto`: f32 for f32 files, otherwise bf16, or f16 on a GPU \
         without bf16. `f16`: GPUs only, the loss is scaled. `fp8` (GPUs from compute capability \
         8.9 on) and `int8` (CPU, and GPUs from 8.0 on): products with frozen weights in eight \
         bits, others in bf16",
        r#""f32""#),

    key("data.train", TextList(false), Required,
        "files or glob patterns to train on", r#"["train.jsonl"]"#),
    key("data.eval", TextList(true), Value("[]"),
        "files or glob patterns to evaluate on", r#"["test.jsonl"]"#),
    key("data.format", Choice(FORMATS), Value(r#""auto""#),
        "format of the records; `auto`: found from the first record", r#""messages""#),
    key("data.prompt_field", Text, Chosen("the usual names"),
        "field of the prompt; needs `completion_field`", r#""question""#),
    key("data.completion_field", Text, Chosen("the usual names"),
        "field of the completion; needs `prompt_field`", r#""answer""#),
    key("data.max_seq_len", Int(2, ANY),
        Chosen("2048, or the model's maximum or `batch_tokens` if smaller"),
        "most tokens in a sequence", "1024"),
    key("data.overlong", Choice(&["refuse", "truncate"]), Value(r#""refuse""#),
        "what to do with a row longer than `max_seq_len`", r#""truncate""#),
    key("data.on_error", Choice(&["fail", "skip"]), Value(r#""fail""#),
        "what to do with a row that cannot be used; skipped rows are counted", r#""skip""#),
    key("data.append_eos", Bool, Value("true"),
        "append an end-of-text token, as a target, to documents of format text; completions \
         always get one", "false"),

    key("adapter.method", Choice(&["lora"]), Required,
        "kind of adapter", r#""lora""#),
    key("adapter.rank", Int(1, 1024), Value("16"),
        "rank of the two adapter matrices", "8"),
    key("adapter.alpha", Float(Positive), Chosen("2 × `rank`"),
        "the adapter is scaled by alpha / rank", "64.0"),
    key("adapter.dropout", Float(UnitOpen), Value("0.0"),
        "share of the adapter's inputs set to zero in training", "0.05"),
    key("adapter.target_modules", TextList(false), Value(r#""all-linear""#),
        "names or glob patterns of linear layers; `all-linear`: all but the head",
        r#"["q_proj", "v_proj"]"#),
    key("adapter.use_rslora", Bool, Value("false"),
        "scale by alpha / √rank instead", "true"),
    key("adapter.init_from", Text, Chosen("a new adapter"),
        "directory of a PEFT adapter to start from", r#""runs/first/adapter""#),

    key("train.objective", Choice(&["sft", "pretrain"]), Value(r#""sft""#),
        "`sft`: learn the target tokens; `pretrain`: learn every token", r#""pretrain""#),
    key("train.num_epochs", Int(1, ANY), Chosen("1 unless `max_steps` is given"),
        "passes over the training data", "3"),
    key("train.max_steps", Int(1, ANY), Chosen("as `num_epochs` says"),
        "number of optimizer steps", "500"),
    key("train.batch_tokens", Int(2, ANY), Value("16384"),
        "tokens per optimizer step, over all micro-batches", "8192"),
    key("train.learning_rate", Float(Positive), Chosen("2e-4 with an adapter, 2e-5 without"),
        "highest learning rate", "1e-4"),
    key("train.lr_schedule", Choice(&["constant", "linear", "cosine"]), Value(r#""cosine""#),
        "course of the learning rate after the warm-up", r#""linear""#),
    key("train.warmup_ratio", Float(UnitClosed), Chosen("0.03 unless `warmup_steps` is given"),
        "share of the steps in which the learning rate rises", "0.1"),
    key("train.warmup_steps", Int(0, ANY), Chosen("as `warmup_ratio` says"),
        "number of steps in which the learning rate rises", "20"),
    key("train.weight_decay", Float(NonNegative), Value("0.0"),
        "decoupled weight decay", "0.01"),
    key("train.adam_beta1", Float(UnitOpen), Value("0.9"),
        "decay of the gradient's running mean", "0.85"),
    key("train.adam_beta2", Float(UnitOpen), Value("0.999"),
        "decay of the squared gradient's running mean", "0.95"),
    key("train.adam_epsilon", Float(Positive), Value("1e-8"),
        "added to the denominator of the update", "1e-6"),
    key("train.max_grad_norm", Float(NonNegative), Value("1.0"),
        "the gradient is scaled down to this norm; 0 switches it off", "0.5"),
    key("train.eval_every_steps", Int(0, ANY), Value("0"),
        "evaluate every so many steps; 0: only before and after training", "50"),
    key("train.on_nonfinite", Choice(&["stop", "skip"]), Value(r#""stop""#),
        "what to do when loss or gradient is NaN or infinite; the step is never applied; \
         may change for `--resume`",
        r#""skip""#),
    key("train.seed", Int(0, ANY), Value("42"),
        "seed of everything random", "7"),

    key("checkpoint.every_steps", Int(1, ANY), Value("100"),
        "steps between checkpoints", "20"),
    key("checkpoint.keep", Int(1, ANY), Value("2"),
        "how many whole checkpoints are kept", "3"),

    key("budget.memory", Bytes,
        Chosen("three quarters of the machine's memory, or 31/32 of a GPU's"),
        "most memory the process may take, or of a GPU where that computes, of which at most \
         31/32 are taken; may change for `--resume`", r#""16GiB""#),
    key("budget.micro_batch_tokens", Int(2, ANY), Chosen("the planner's choice"),
        "tokens per forward and backward pass; a multiple of `max_seq_len`", "4096"),
    key("budget.recompute", Choice(&["auto", "none", "block"]), Value(r#""auto""#),
        "`block`: keep only each block's input and compute the rest again in backward",
        r#""block""#),
    key("budget.offload", Choice(&["auto", "none", "all"]), Value(r#""auto""#),
        "blocks whose frozen weights stay in page-locked memory of the CPU and take turns in two \
         places on the GPU. `auto`: as many as memory demands; `all`: all, with `[adapter]` and \
         on a GPU only. Results do not depend on it; may change for `--resume`",
        r#""all""#),

    key("run.device", Text, Value(r#""auto""#),
        "`auto`: the first NVIDIA GPU that can be used, otherwise the CPU; `cpu`; `cuda` or \
         `cuda:1`: that GPU. `--resume` must find the same kind of processor", r#""cuda:0""#),
    key("run.threads", Int(1, 4096), Chosen("all cores"),
        "number of threads of the CPU; results do not depend on it", "2"),
    key("run.cuda_graphs", Bool, Value("true"),
        "whether a GPU launches a pass as a whole where batches of its shape came before: meant \
         for small models, not measured yet. Results do not depend on it; not done with blocks \
         beside the GPU", "false"),

    key("report.samples", Int(0, 16), Value("2"),
        "texts generated before and after training", "4"),
    key("report.max_new_tokens", Int(1, ANY), Value("64"),
        "most tokens in each of them", "128"),

    key("output.dir", Text, Required,
        "directory of the run", r#""runs/gsm8k""#),
];
