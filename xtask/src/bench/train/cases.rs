//! Workloads, and those of `bench train`: one model in many settings.

use super::super::Place;
use super::super::doctor::Doctor;
use super::super::model::write_documents;
use super::figures::AMX;
use std::path::PathBuf;

/// What stands above the table.
pub const HEAD: &str = "# Training steps against PyTorch with PEFT

<!-- Written by `cargo xtask bench train`; do not edit. -->

A Llama of 135 million random weights (576/1536, 30 layers, 9 heads, 3 key-value heads, 49,152
tokens, tied embeddings); LoRA of rank 16 on all linear layers; forward, backward, clipping and
AdamW. Both train in turn, five rounds (two where a step holds more than 4,096 tokens); the ratio is
the median of the rounds' ratios, with the least and the greatest. Tokens are counted without
padding; on GSM8K both take the same rows, the peer eight at a time. Peaks are those of the whole
process. In each round the machine is measured just before Hone's step, and a plan made with that;
\"off by\", which may be 10 %, is the median of the rounds, and so are the rates of the instruction
set's products in the row's compute type, from registers and with loads from the first-level cache.
\"Of the peak\" is the share of the rate with loads that the step reaches, all of its time counted
(in rows without these rates, of that from registers). \"Peer's products\" is the kernel that took
most of their time, as oneDNN calls it. What is asked depends on whether the machine has AMX, as
PyTorch uses it too; what is missed is marked. Rows of different days may come from different
machines: their ratios compare, their rates do not. In the picture the peer's bars have one length.

![Tokens per second](train.svg)

";

/// Rows of GSM8K that both train on in a round.
pub const GSM8K_ROWS: usize = 24;
/// Hone's steps for as many, and one to warm up.
const GSM8K_STEPS: u64 = 5;

/// The method that is no training.
pub const EMBED: &str = "embed";

/// Hone's steps of masked tokens: two epochs of as many texts as the peer's steps have.
const MASKED_STEPS: u64 = 20;

/// One workload.
pub struct Case {
    /// Names it on the command line.
    pub key: &'static str,
    pub name: &'static str,
    /// One of `models.rs`.
    pub model: &'static str,
    pub method: &'static str,
    /// Hone's settings on top of the run file.
    pub settings: &'static [&'static str],
    pub peer: Peer,
    pub threads: usize,
    pub data: Data,
    /// Rounds, and Hone's steps in each, of which the first only warms up.
    pub rounds: (usize, u64),
    pub asked: Asked,
}

/// What we ask for.
#[derive(Clone, Copy)]
pub struct Asked {
    /// The least ratio to the peer's rate.
    pub ratio: Option<Least>,
    /// The same as a multiple of the ratio of the case `llama`.
    pub of_llama: Option<f64>,
    /// The greatest ratio to the peer's peak of memory.
    pub peak: Option<f64>,
    /// The most bytes at Hone's own peak.
    pub peak_bytes: Option<f64>,
    /// The most that what is neither product nor attention may take of a step, where the machine
    /// has AMX and its tiles are fast.
    pub rest: Option<f64>,
}

pub const NOTHING: Asked =
    Asked { ratio: None, of_llama: None, peak: None, peak_bytes: None, rest: None };

/// A target that depends on the instruction set which the round was computed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Least {
    /// With AMX, which PyTorch then uses too.
    pub with_amx: f64,
    pub without: f64,
}

/// So many times the peer's rate, with AMX and without.
const fn ratio(with_amx: f64, without: f64) -> Asked {
    Asked { ratio: Some(Least { with_amx, without }), ..NOTHING }
}

/// The same under any instruction set.
pub const fn ratio_anywhere(least: f64) -> Asked {
    ratio(least, least)
}

/// The same in at most a gigabyte.
const fn in_a_gigabyte(asked: Asked) -> Asked {
    Asked { peak_bytes: Some(1e9), ..asked }
}

/// What Hone is compared with.
pub enum Peer {
    /// PyTorch with PEFT.
    Peft {
        dtype: &'static str,
        checkpointing: bool,
        /// Adapters and their moments in bf16 too, which Hone does not do.
        bf16_adapters: bool,
        /// How transformers computes experts, for models with them.
        experts: Option<&'static str>,
    },
    /// sentence-transformers.
    SentenceTransformers,
    /// Hone itself with other settings, threads or instruction set, maybe on another model.
    Hone(Other),
}

/// What differs where Hone is compared with Hone.
pub struct Other {
    pub model: Option<&'static str>,
    pub settings: &'static [&'static str],
    pub threads: usize,
    /// `HONE_ISA`; the case is skipped where the machine lacks it or has no better one.
    pub isa: Option<&'static str>,
}

/// As the cases of Hone are.
pub const LIKE_HONE: Other = Other { model: None, settings: &[], threads: 2, isa: None };

#[derive(Clone, Copy)]
pub enum Data {
    /// Full rows of so many tokens, so many of them a step.
    Words { len: usize, rows: usize },
    /// Question and answer, only answers are targets.
    Gsm8k,
    /// So many short texts of unequal length, for encoders.
    Banking77 { texts: usize },
}

pub const BF16: Peer =
    Peer::Peft { dtype: "bf16", checkpointing: false, bf16_adapters: false, experts: None };
const CHECKPOINTING: Peer =
    Peer::Peft { dtype: "bf16", checkpointing: true, bf16_adapters: false, experts: None };
pub const SHORT: Data = Data::Words { len: 256, rows: 4 };
const INT8: &[&str] = &["model.compute=int8"];

/// LoRA against PyTorch in bf16, with two threads.
pub const fn lora(key: &'static str, name: &'static str, data: Data, asked: Asked) -> Case {
    let (model, method, peer, rounds) = ("135M", "lora", BF16, data.rounds());
    Case { key, name, model, method, settings: &[], peer, threads: 2, data, rounds, asked }
}

const fn of_length(key: &'static str, name: &'static str, len: usize, rows: usize) -> Case {
    lora(key, name, Data::Words { len, rows }, NOTHING)
}

pub const CASES: [Case; 20] = [
    lora(
        "bf16",
        "LoRA, bf16",
        SHORT,
        Asked { rest: Some(1.0 / 3.0), ..in_a_gigabyte(ratio(3.0, 2.5)) },
    ),
    Case {
        peer: Peer::Peft {
            dtype: "bf16",
            checkpointing: false,
            bf16_adapters: true,
            experts: None,
        },
        ..lora("bf16-adapters", "LoRA, bf16, peer's adapters and moments too", SHORT, NOTHING)
    },
    Case {
        settings: &["model.base_precision=int8"],
        ..lora("int8-base", "LoRA, weights int8, products bf16; peer bf16", SHORT, NOTHING)
    },
    Case {
        settings: INT8,
        ..lora("int8", "LoRA, products int8; peer bf16", SHORT, in_a_gigabyte(ratio(4.0, 3.5)))
    },
    Case {
        settings: &["model.compute=f32", "model.base_precision=f32"],
        peer: Peer::Peft {
            dtype: "f32",
            checkpointing: false,
            bf16_adapters: false,
            experts: None,
        },
        ..lora("f32", "LoRA, f32", SHORT, NOTHING)
    },
    lora(
        "gsm8k",
        "LoRA, bf16, GSM8K, peer padded",
        Data::Gsm8k,
        in_a_gigabyte(ratio_anywhere(5.0)),
    ),
    Case {
        settings: INT8,
        ..lora("gsm8k-int8", "LoRA, products int8, GSM8K, peer bf16, padded", Data::Gsm8k, NOTHING)
    },
    Case { method: "full", ..lora("full", "full, bf16 products", SHORT, ratio(2.0, 1.5)) },
    Case { threads: 1, ..lora("1-thread", "LoRA, bf16", SHORT, NOTHING) },
    Case {
        settings: &["budget.recompute=block"],
        peer: CHECKPOINTING,
        ..lora("recompute", "LoRA, bf16, blocks recomputed by both", SHORT, NOTHING)
    },
    of_length("len-512", "LoRA, bf16", 512, 2),
    of_length("len-1024", "LoRA, bf16", 1024, 1),
    of_length("len-2048", "LoRA, bf16", 2048, 1),
    of_length("len-4096", "LoRA, bf16", 4096, 1),
    Case {
        peer: CHECKPOINTING,
        ..of_length("len-8192", "LoRA, bf16, peer with checkpointing", 8192, 1)
    },
    of_length("batch-4096", "LoRA, bf16", 256, 16),
    Case {
        peer: CHECKPOINTING,
        ..of_length("batch-16384", "LoRA, bf16, peer with checkpointing", 256, 64)
    },
    Case {
        settings: &["model.base_precision=int8"],
        peer: Peer::Hone(LIKE_HONE),
        ..lora("int8-held", "Hone: weights int8 against bf16", SHORT, ratio_anywhere(0.95))
    },
    Case {
        peer: Peer::Hone(Other { threads: 1, ..LIKE_HONE }),
        ..lora("threads", "Hone: two threads against one", SHORT, ratio_anywhere(1.9))
    },
    Case {
        peer: Peer::Hone(Other { isa: Some("avx512bf16"), ..LIKE_HONE }),
        ..lora("amx", "Hone: AMX against `avx512bf16`", SHORT, ratio_anywhere(5.0))
    },
];

fn gsm8k(place: &Place) -> PathBuf {
    place.root.join("../shared/data/sft/gsm8k/train.jsonl")
}

fn banking77(place: &Place) -> PathBuf {
    place.root.join("../shared/data/classify/banking77/train.csv")
}

impl Case {
    /// What it needs that is not here; none: nothing.
    pub fn missing(&self, place: &Place, doctor: &Doctor) -> Option<String> {
        if let Peer::Hone(Other { isa: Some(other), .. }) = self.peer {
            let has_amx = doctor.isa().is_ok_and(|isa| isa == AMX);
            if !has_amx || !doctor.instruction_sets().contains(&other) {
                return Some(format!("AMX or `{other}` is not here"));
            }
        }
        self.data.missing(place).map(str::to_owned)
    }

    /// What matrices are multiplied in; the run file's unless the settings name another.
    pub fn compute(&self) -> &'static str {
        let named = |setting: &&'static str| setting.strip_prefix("model.compute=");
        self.settings.iter().rev().find_map(named).unwrap_or("bf16")
    }
}

impl Data {
    /// What it needs that this checkout has not; none: nothing.
    pub fn missing(self, place: &Place) -> Option<&'static str> {
        let minilm = || super::models::minilm(place).is_dir();
        match self {
            Data::Gsm8k if !gsm8k(place).is_file() => Some("../shared is absent"),
            Data::Banking77 { .. } if !banking77(place).is_file() => Some("../shared is absent"),
            Data::Banking77 { .. } if !minilm() => Some("`cargo xtask models minilm` fetches it"),
            _ => None,
        }
    }

    /// Fewer rounds and steps where a step takes a minute.
    const fn rounds(self) -> (usize, u64) {
        match self {
            Data::Words { len, rows } if len * rows > 4096 => (2, 2),
            Data::Words { len, rows } if len * rows > 1024 => (5, 2),
            Data::Gsm8k => (5, GSM8K_STEPS),
            Data::Banking77 { .. } => (5, MASKED_STEPS),
            Data::Words { .. } => (5, 4),
        }
    }

    pub fn write(self, place: &Place) -> std::io::Result<()> {
        let path = place.dir.join("train.jsonl");
        match self {
            // The end-of-text token makes each row full.
            Data::Words { len, rows } => write_documents(&path, &vec![len - 1; 2 * rows]),
            Data::Gsm8k => {
                let all = std::fs::read_to_string(gsm8k(place))?;
                let some: Vec<&str> = all.lines().take(GSM8K_ROWS).collect();
                std::fs::write(&path, some.join("\n") + "\n")
            }
            Data::Banking77 { texts } => {
                let all = std::fs::read_to_string(banking77(place))?;
                // Rows of one line and without quotes are enough, and are read without a parser.
                let plain = all.lines().skip(1).filter(|line| !line.contains('"'));
                let text = plain.filter_map(|line| Some(line.rsplit_once(',')?.0));
                let record = |text: &str| serde_json::json!({ "text": text }).to_string() + "\n";
                std::fs::write(&path, text.take(texts).map(record).collect::<String>())
            }
        }
    }

    pub fn rows_per_step(self) -> usize {
        match self {
            Data::Words { rows, .. } => rows,
            Data::Gsm8k => 8,
            Data::Banking77 { .. } => 32,
        }
    }

    pub fn settings(self) -> Vec<String> {
        match self {
            Data::Words { len, rows } => vec![
                format!("data.max_seq_len={len}"),
                format!("train.batch_tokens={}", len * rows),
            ],
            Data::Gsm8k => [
                "data.max_seq_len=512",
                "train.batch_tokens=1024",
                "data.format=prompt_completion",
                "data.prompt_field=question",
                "data.completion_field=answer",
            ]
            .map(str::to_owned)
            .to_vec(),
            Data::Banking77 { .. } => {
                ["data.max_seq_len=128", "train.batch_tokens=512", "objective.kind=masked"]
                    .map(str::to_owned)
                    .to_vec()
            }
        }
    }

    /// What a step holds, in words.
    pub fn tokens(self) -> String {
        match self {
            Data::Words { len, rows } => format!("{rows} × {len}"),
            Data::Gsm8k => "1024 packed".to_owned(),
            Data::Banking77 { texts } => format!("of {texts} texts"),
        }
    }
}
