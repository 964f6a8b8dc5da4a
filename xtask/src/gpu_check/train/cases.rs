//! What is trained: models, rows, and PyTorch's variants in the order of their promise.

use super::WARM_UP;
use crate::bench::model::{L1B, L8B, Random, Shape, TINY};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// A model of random weights to train, and how.
#[derive(Clone, Copy)]
pub struct Case {
    /// Names it on the command line.
    pub key: &'static str,
    pub name: &'static str,
    /// Directory of the model.
    pub model: &'static str,
    pub shape: Shape,
    pub data: Data,
    /// Bytes of the GPU's memory that it wants.
    pub wants_bytes: u64,
    /// Ways to train with Hone.
    pub hone: &'static [Hone],
    /// Ways to train with PyTorch.
    pub variants: &'static [Variant],
}

/// A way to train with Hone.
#[derive(Clone, Copy)]
pub struct Hone {
    /// What the tables call it.
    pub name: &'static str,
    /// `model.compute`.
    pub compute: &'static str,
    /// `run.cuda_graphs`.
    pub cuda_graphs: bool,
}

const BF16: Hone = Hone { name: "Hone", compute: "bf16", cuda_graphs: true };
const ONE_BY_ONE: Hone = Hone { name: "Hone, without graphs", cuda_graphs: false, ..BF16 };
const INT8: Hone = Hone { name: "Hone, products in int8", compute: "int8", ..BF16 };
const FP8: Hone = Hone { name: "Hone, products in FP8", compute: "fp8", ..BF16 };

/// The rows of a step.
#[derive(Clone, Copy)]
pub enum Data {
    /// So many rows of `len` tokens, every one a target; `of_pass` of them in one pass.
    Full { len: usize, rows: usize, of_pass: usize },
    /// So many rows of GSM8K's lengths, only completions targets: padded by PyTorch, packed by Hone
    /// into `units` of `unit_tokens`.
    Gsm8k { rows: usize, units: usize, unit_tokens: usize },
}

/// A way to train with PyTorch.
#[derive(Clone, Copy)]
pub struct Variant {
    /// `sdpa`, `cudnn` or `flash_attention_2`.
    pub attention: &'static str,
    /// `none`, `layers` or `model`.
    pub compile: &'static str,
    pub checkpointing: bool,
    /// Rows laid end to end instead of padded.
    pub packed: bool,
}

const SDPA: Variant =
    Variant { attention: "sdpa", compile: "none", checkpointing: false, packed: false };
const COMPILED: Variant = Variant { compile: "layers", ..SDPA };
const CUDNN: Variant = Variant { attention: "cudnn", ..COMPILED };
const WHOLE: Variant = Variant { compile: "model", ..SDPA };
const FLASH: Variant = Variant { attention: "flash_attention_2", ..SDPA };

const fn checkpointing(variant: Variant) -> Variant {
    Variant { checkpointing: true, ..variant }
}

const fn packed(variant: Variant) -> Variant {
    Variant { packed: true, ..variant }
}

const OF_8B: [Variant; 9] = [
    COMPILED,
    SDPA,
    checkpointing(COMPILED),
    CUDNN,
    FLASH,
    checkpointing(SDPA),
    checkpointing(CUDNN),
    WHOLE,
    checkpointing(FLASH),
];

/// Flash attention needs no padding, and no mask where rows lie end to end.
const OF_GSM8K: [Variant; 10] = [
    COMPILED,
    SDPA,
    packed(COMPILED),
    packed(FLASH),
    CUDNN,
    checkpointing(COMPILED),
    checkpointing(SDPA),
    checkpointing(CUDNN),
    WHOLE,
    checkpointing(packed(FLASH)),
];

const OF_1B: [Variant; 4] = [COMPILED, SDPA, CUDNN, FLASH];

const CASES: [Case; 3] = [
    Case {
        key: "8B",
        name: "8B, full rows",
        model: "8B",
        shape: L8B,
        // A row a pass, as Hone has it: two would not fit into 80 GB without checkpointing.
        data: Data::Full { len: 4096, rows: 2, of_pass: 1 },
        wants_bytes: 60 << 30,
        hone: &[BF16, FP8],
        variants: &OF_8B,
    },
    Case {
        key: "gsm8k",
        name: "1B, rows of GSM8K's lengths",
        model: "1B",
        shape: L1B,
        data: Data::Gsm8k { rows: 32, units: 10, unit_tokens: 496 },
        wants_bytes: 20 << 30,
        hone: &[BF16, ONE_BY_ONE],
        variants: &OF_GSM8K,
    },
    Case {
        key: "1B",
        name: "1B, full rows",
        model: "1B",
        shape: L1B,
        data: Data::Full { len: 2048, rows: 2, of_pass: 2 },
        wants_bytes: 20 << 30,
        hone: &[BF16, INT8],
        variants: &OF_1B,
    },
];

/// All keys.
pub fn keys() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.key)
}

/// All cases, or the same in tiny.
pub fn all(tiny: bool) -> Vec<Case> {
    CASES.iter().map(|case| if tiny { case.tiny() } else { *case }).collect()
}

/// A row as PyTorch reads it: its tokens, and the first that is a target.
pub struct Row {
    pub ids: Vec<usize>,
    pub first_target: usize,
}

/// The end-of-text token of the models' tokenizer, and the first of its words.
const EOS: usize = 2;
const FIRST_WORD: usize = 3;

impl Case {
    fn tiny(self) -> Self {
        let data = match self.data {
            Data::Full { rows, of_pass, .. } => Data::Full { len: 64, rows, of_pass },
            Data::Gsm8k { .. } => Data::Gsm8k { rows: 6, units: 2, unit_tokens: 496 },
        };
        // The CPU has no FP8.
        Self { model: "tiny", shape: TINY, data, wants_bytes: 0, hone: &[BF16], ..self }
    }

    /// The rows of so many steps.
    pub fn rows(&self, num_steps: usize) -> Vec<Row> {
        let mut random = Random(5);
        let mut row = |num_words: usize, first_target: usize| {
            let num_known = self.shape.vocab_size - FIRST_WORD;
            let word = |_| FIRST_WORD + random.next() as usize % num_known;
            let ids = (0..num_words).map(word).chain([EOS]).collect();
            Row { ids, first_target }
        };
        match self.data {
            Data::Full { len, rows, .. } => {
                (0..num_steps * rows).map(|_| row(len - 1, 0)).collect()
            }
            Data::Gsm8k { rows, .. } => {
                let lengths = gsm8k_lengths(num_steps * rows).into_iter();
                lengths.map(|(prompt, completion)| row(prompt + completion, prompt)).collect()
            }
        }
    }

    /// Tokens of a step, in words.
    pub fn step(&self) -> String {
        match self.data {
            Data::Full { len, rows, .. } => format!("{rows} × {len} tokens a step"),
            Data::Gsm8k { rows, units, unit_tokens } => {
                format!("{rows} rows a step, packed by Hone into {units} × {unit_tokens}")
            }
        }
    }

    /// `[data]`, `[train]` and `[budget]` of Hone's run file.
    pub fn settings(&self) -> Vec<String> {
        let (unit, tokens, of_pass) = match self.data {
            Data::Full { len, rows, of_pass } => (len, len * rows, len * of_pass),
            Data::Gsm8k { units, unit_tokens, .. } => {
                (unit_tokens, units * unit_tokens, units * unit_tokens)
            }
        };
        vec![
            format!("data.max_seq_len={unit}"),
            format!("train.batch_tokens={tokens}"),
            format!("budget.micro_batch_tokens={of_pass}"),
        ]
    }

    /// PyTorch's settings beside those of the variant.
    pub fn peer_settings(&self, variant: &Variant) -> Value {
        let (rows, of_pass, varies) = match self.data {
            Data::Full { rows, of_pass, .. } => (rows, of_pass, false),
            Data::Gsm8k { rows, .. } => (rows, rows, true),
        };
        // Batches differ in length: what is compiled must have seen all of them.
        let all = if varies && variant.compile != "none" { super::NUM_STEPS } else { 0 };
        json!({
            "method": "lora",
            "dtype": "bf16",
            "random_weights": true,
            "rows_per_step": rows,
            "rows_per_pass": of_pass,
            "attention": variant.attention,
            "compile": variant.compile,
            "checkpointing": variant.checkpointing,
            "packed": variant.packed,
            "warm_up": WARM_UP + all,
        })
    }
}

impl Variant {
    /// What the tables call it.
    pub fn name(&self) -> String {
        let attention = match self.attention {
            "cudnn" => "sdpa by cuDNN",
            "flash_attention_2" => "flash-attn 2",
            other => other,
        };
        let compile = match self.compile {
            "layers" => ", layers compiled",
            "model" => ", model compiled",
            _ => "",
        };
        let packed = if self.packed { ", rows end to end" } else { "" };
        let checkpointing = if self.checkpointing { ", checkpointing" } else { "" };
        format!("PyTorch, {attention}{compile}{packed}{checkpointing}")
    }
}

/// Shares of GSM8K's training rows, and the lengths of prompts and completions in GPT-2's tokens
/// that so many of them do not exceed; means 55 and 95.
const SHARES: [f32; 9] = [0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0];
const PROMPTS: [f32; 9] = [10.0, 29.0, 40.0, 51.0, 66.0, 83.0, 121.0, 158.0, 213.0];
const COMPLETIONS: [f32; 9] = [23.0, 43.0, 64.0, 86.0, 118.0, 153.0, 224.0, 286.0, 342.0];

/// Words of prompts and completions, the same every time. Half of the completions are as long
/// among completions as their prompts are among prompts, since GSM8K's correlate by one half. Of
/// the seeds this is one whose rows fill seven steps of Hone's, and whose batches of 32 grow by
/// padding as GSM8K's do on average (1.95 times).
pub fn gsm8k_lengths(num_rows: usize) -> Vec<(usize, usize)> {
    let mut random = Random(22);
    let row = |_| {
        let prompt = random.unit();
        let completion = if random.next().is_multiple_of(2) { prompt } else { random.unit() };
        (length(&PROMPTS, prompt), length(&COMPLETIONS, completion))
    };
    (0..num_rows).map(row).collect()
}

/// The length that `share` of the rows do not exceed.
fn length(lengths: &[f32; 9], share: f32) -> usize {
    let after = SHARES.iter().position(|&s| s > share).unwrap_or(SHARES.len() - 1);
    let before = after - 1;
    let part = (share - SHARES[before]) / (SHARES[after] - SHARES[before]);
    (lengths[before] + part * (lengths[after] - lengths[before])).round() as usize
}

/// Writes rows as Hone reads them: documents, or prompts with completions. Hone appends the
/// end-of-text token.
pub fn write_for_hone(path: &Path, rows: &[Row]) -> Result<()> {
    let text = |ids: &[usize]| ids.iter().map(|id| format!(" w{id}")).collect::<String>();
    write_lines(path, rows, |row| {
        let (prompt, rest) = row.ids[..row.ids.len() - 1].split_at(row.first_target);
        match prompt {
            [] => json!({"text": text(rest)}),
            prompt => json!({"prompt": text(prompt), "completion": text(rest)}),
        }
    })
}

/// Writes rows as `peft_steps.py` reads them.
pub fn write_for_peer(path: &Path, rows: &[Row]) -> Result<()> {
    write_lines(path, rows, |row| json!({"ids": row.ids, "first_target": row.first_target}))
}

fn write_lines(path: &Path, rows: &[Row], record: impl Fn(&Row) -> Value) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for row in rows {
        writeln!(out, "{}", record(row))?;
    }
    out.flush()
}
