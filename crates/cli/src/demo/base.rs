//! The recipe of the demo's base model: everything `hone train` needs to make it from nothing.
//!
//! Writes the corpus, the tokenizer trained on it, a Llama configuration, weights drawn at random
//! and the run file. The training itself is an ordinary full fine-tuning of those weights.

use super::corpus::corpus;
use super::tokenizer::{BOS, EOS, train_tokenizer};
use anyhow::{Context, Result, anyhow};
use hone_data::random::Stream;
use hone_tensor::{Tensor, safetensors};
use serde_json::{Value, json};
use std::f64::consts::TAU;
use std::io::{BufWriter, Write};
use std::path::Path;

const SEED: u64 = 1;
const NUM_DOCUMENTS: u64 = 60_000;
/// Documents from which the tokenizer is trained.
const NUM_TOKENIZER_DOCUMENTS: u64 = 5_000;

const VOCAB_SIZE: usize = 768;
const HIDDEN_SIZE: usize = 128;
const INTERMEDIATE_SIZE: usize = 352;
const NUM_LAYERS: usize = 4;
const NUM_HEADS: usize = 4;
const NUM_KV_HEADS: usize = 2;
const INITIALIZER_RANGE: f64 = 0.02;

const DOMAIN: u16 = 0x0c0c;

/// Writes `start/` (the untrained model), `corpus.jsonl` and `run.toml` into `dir`, which is made.
/// `hone train DIR/run.toml` then makes the model in `DIR/run`.
pub fn write_base_recipe(dir: &Path) -> Result<()> {
    let start = dir.join("start");
    std::fs::create_dir_all(&start).with_context(|| format!("cannot make {}", start.display()))?;
    write_corpus(&dir.join("corpus.jsonl"))?;
    let sample = corpus(SEED, NUM_TOKENIZER_DOCUMENTS);
    let tokenizer = train_tokenizer(sample, VOCAB_SIZE).map_err(|error| anyhow!(error))?;
    tokenizer.save(start.join("tokenizer.json"), false).map_err(|error| anyhow!(error))?;
    write_json(&start.join("tokenizer_config.json"), &tokenizer_config())?;
    write_json(&start.join("config.json"), &config())?;
    let weights = weights();
    let named = weights.iter().map(|(name, tensor)| (name.clone(), tensor.into()));
    safetensors::write(&start.join("model.safetensors"), named)?;
    write(&dir.join("run.toml"), &run_file(dir))
}

fn write_corpus(path: &Path) -> Result<()> {
    let file =
        std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut out = BufWriter::new(file);
    for text in corpus(SEED, NUM_DOCUMENTS) {
        writeln!(out, "{}", json!({ "text": text }))?;
    }
    Ok(out.flush()?)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, &format!("{value:#}\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false,
    })
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
        "initializer_range": INITIALIZER_RANGE,
    })
}

/// Names and values of all weights: norms are one, the rest is normal.
fn weights() -> Vec<(String, Tensor)> {
    let head_dim = HIDDEN_SIZE / NUM_HEADS;
    let (q, kv) = (NUM_HEADS * head_dim, NUM_KV_HEADS * head_dim);
    let (h, i) = (HIDDEN_SIZE, INTERMEDIATE_SIZE);
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![VOCAB_SIZE, h])];
    for layer in 0..NUM_LAYERS {
        let block: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![h]),
            ("self_attn.q_proj", vec![q, h]),
            ("self_attn.k_proj", vec![kv, h]),
            ("self_attn.v_proj", vec![kv, h]),
            ("self_attn.o_proj", vec![h, q]),
            ("post_attention_layernorm", vec![h]),
            ("mlp.gate_proj", vec![i, h]),
            ("mlp.up_proj", vec![i, h]),
            ("mlp.down_proj", vec![h, i]),
        ];
        shapes.extend(block.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    shapes.push(("model.norm".to_owned(), vec![h]));
    let tensors = shapes.into_iter().enumerate().map(|(index, (name, shape))| {
        let num_values = shape.iter().product();
        let values = match shape.len() {
            1 => vec![1.0; num_values],
            _ => normal(&mut Stream::new(SEED, index as u64, DOMAIN), num_values),
        };
        (format!("{name}.weight"), Tensor::from_f32(&values, &shape))
    });
    tensors.collect()
}

/// Normal numbers of standard deviation `INITIALIZER_RANGE`, by Box and Muller.
fn normal(random: &mut Stream, num_values: usize) -> Vec<f32> {
    // In (0, 1]: its logarithm is finite.
    let mut uniform = || ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let draw = |_| {
        let radius = (-2.0 * uniform().ln()).sqrt();
        (INITIALIZER_RANGE * radius * (TAU * uniform()).cos()) as f32
    };
    (0..num_values).map(draw).collect()
}

fn run_file(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[model]\npath = \"{dir}/start\"\ncompute = \"f32\"\n\n\
         [data]\ntrain = [\"{dir}/corpus.jsonl\"]\nformat = \"text\"\nmax_seq_len = 512\n\n\
         [train]\nobjective = \"pretrain\"\nmax_steps = 2400\nbatch_tokens = 2048\n\
         learning_rate = 2e-3\nwarmup_steps = 50\n\n\
         [output]\ndir = \"{dir}/run\"\n"
    )
}
