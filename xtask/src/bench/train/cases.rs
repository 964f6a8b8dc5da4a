//! The workloads.

use super::super::Place;
use super::super::model::{M135, gpt2_tokenizer, write_documents, write_tokenizer};
use std::path::PathBuf;

/// Rows of GSM8K that both train on in a round.
pub const GSM8K_ROWS: usize = 24;
/// Hone's steps for as many, and one to warm up.
const GSM8K_STEPS: u64 = 5;

/// One workload.
pub struct Case {
    /// Names it on the command line.
    pub key: &'static str,
    pub name: &'static str,
    pub method: &'static str,
    /// Hone's settings on top of the run file.
    pub settings: &'static [&'static str],
    pub peer: Peer,
    pub threads: usize,
    pub data: Data,
    /// The least ratio that we ask for.
    pub target: Option<f64>,
}

/// What Hone is compared with.
pub enum Peer {
    /// PyTorch with PEFT.
    Peft {
        dtype: &'static str,
        checkpointing: bool,
        /// Adapters and their moments in bf16 too, which Hone does not do.
        bf16_adapters: bool,
    },
    /// Hone itself with other settings and threads.
    Hone { settings: &'static [&'static str], threads: usize },
}

#[derive(Clone, Copy)]
pub enum Data {
    /// Full rows of so many tokens, so many of them a step.
    Words { len: usize, rows: usize },
    /// Question and answer, only answers are targets.
    Gsm8k,
}

const BF16: Peer = Peer::Peft { dtype: "bf16", checkpointing: false, bf16_adapters: false };
const CHECKPOINTING: Peer = Peer::Peft { dtype: "bf16", checkpointing: true, bf16_adapters: false };
const SHORT: Data = Data::Words { len: 256, rows: 4 };
const INT8: &[&str] = &["model.compute=int8"];

const fn lora(key: &'static str, name: &'static str, data: Data, target: Option<f64>) -> Case {
    Case { key, name, method: "lora", settings: &[], peer: BF16, threads: 2, data, target }
}

const fn of_length(key: &'static str, name: &'static str, len: usize, rows: usize) -> Case {
    lora(key, name, Data::Words { len, rows }, None)
}

pub const CASES: [Case; 19] = [
    lora("bf16", "LoRA, bf16", SHORT, Some(2.5)),
    Case {
        peer: Peer::Peft { dtype: "bf16", checkpointing: false, bf16_adapters: true },
        ..lora("bf16-adapters", "LoRA, bf16, peer's adapters and moments too", SHORT, None)
    },
    Case {
        settings: &["model.base_precision=int8"],
        ..lora("int8-base", "LoRA, weights int8, products bf16; peer bf16", SHORT, None)
    },
    Case { settings: INT8, ..lora("int8", "LoRA, products int8; peer bf16", SHORT, Some(3.5)) },
    Case {
        settings: &["model.compute=f32", "model.base_precision=f32"],
        peer: Peer::Peft { dtype: "f32", checkpointing: false, bf16_adapters: false },
        ..lora("f32", "LoRA, f32", SHORT, None)
    },
    lora("gsm8k", "LoRA, bf16, GSM8K, peer padded", Data::Gsm8k, Some(5.0)),
    Case {
        settings: INT8,
        ..lora("gsm8k-int8", "LoRA, products int8, GSM8K, peer bf16, padded", Data::Gsm8k, None)
    },
    Case { method: "full", ..lora("full", "full, bf16 products", SHORT, Some(1.5)) },
    Case { threads: 1, ..lora("1-thread", "LoRA, bf16", SHORT, None) },
    Case {
        settings: &["budget.recompute=block"],
        peer: CHECKPOINTING,
        ..lora("recompute", "LoRA, bf16, blocks recomputed by both", SHORT, None)
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
        peer: Peer::Hone { settings: &[], threads: 2 },
        ..lora("int8-held", "Hone: weights int8 against bf16", SHORT, Some(0.95))
    },
    Case {
        peer: Peer::Hone { settings: &[], threads: 1 },
        ..lora("threads", "Hone: two threads against one", SHORT, Some(1.9))
    },
];

impl Case {
    /// Rounds, and Hone's steps in each, of which the first only warms up: fewer where a step takes
    /// a minute.
    pub fn rounds(&self) -> (usize, u64) {
        match self.data {
            Data::Words { len, rows } if len * rows > 4096 => (2, 2),
            Data::Words { len, rows } if len * rows > 1024 => (5, 2),
            Data::Gsm8k => (5, GSM8K_STEPS),
            Data::Words { .. } => (5, 4),
        }
    }
}

pub fn gsm8k(place: &Place) -> PathBuf {
    place.root.join("../shared/data/sft/gsm8k/train.jsonl")
}

/// The model again, with a tokenizer for real text.
pub fn prepare_gsm8k(place: &Place) -> std::io::Result<()> {
    let gpt2 = place.root.join("../shared/data/tokenizers/gpt2");
    if !(gsm8k(place).is_file() && gpt2.is_dir()) {
        return Ok(());
    }
    let other = place.dir.join("135M-gpt2");
    std::fs::create_dir_all(&other)?;
    for name in ["config.json", "model.safetensors"] {
        let _ = std::fs::remove_file(other.join(name));
        std::fs::hard_link(place.dir.join("135M").join(name), other.join(name))?;
    }
    write_tokenizer(&other, &gpt2_tokenizer(&gpt2, M135.vocab_size)?)
}

impl Data {
    pub fn model(self) -> &'static str {
        match self {
            Data::Words { .. } => "135M",
            Data::Gsm8k => "135M-gpt2",
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
        }
    }

    pub fn rows_per_step(self) -> usize {
        match self {
            Data::Words { rows, .. } => rows,
            Data::Gsm8k => 8,
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
        }
    }

    /// What a step holds, in words.
    pub fn tokens(self) -> String {
        match self {
            Data::Words { len, rows } => format!("{rows} × {len}"),
            Data::Gsm8k => "1024 packed".to_owned(),
        }
    }
}
