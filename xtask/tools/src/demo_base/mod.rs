//! `cargo xtask demo-base`: the recipe of the demo's base model, which is everything that
//! `hone train` needs to make it from nothing.
//!
//! Writes the corpus, the tokenizer trained on it, a Llama configuration, weights drawn at random
//! and the run file. The training itself is an ordinary full fine-tuning of those weights.

mod corpus;
mod stories;
#[cfg(test)]
mod tests;
mod tokenizer;
// The demo's task is made of the same words.
#[path = "../../../../crates/cli/src/demo/scene.rs"]
mod scene;
#[path = "../../../../crates/cli/src/demo/words.rs"]
mod words;

use corpus::corpus;
use hone_data::random::Stream;
use hone_tensor::{Tensor, safetensors};
use serde_json::{Value, json};
use std::error::Error;
use std::f64::consts::TAU;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use tokenizer::{BOS, EOS, train_tokenizer};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

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
/// Standard deviation of the embedding. Large, so that the first steps, in which all words move
/// alike, do not drown what tells one word from another: with 0.02, copying came many times later.
const EMBEDDING_STD: f64 = 0.5;
/// The final norm's weight; small, because the tied head's rows are large.
const FINAL_NORM: f32 = 0.15;

const DOMAIN: u16 = 0x0c0c;

/// Writes the recipe into the directory that the command line names.
pub fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [dir] = &args[..] else {
        eprintln!("usage: cargo xtask demo-base DIR");
        return ExitCode::from(2);
    };
    let dir = Path::new(dir);
    match write_recipe(dir, NUM_DOCUMENTS) {
        Ok(()) => {
            println!("hone train {}", dir.join("run.toml").display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("demo-base: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes `start/` (the untrained model), `corpus.jsonl` and `run.toml` into `dir`, which is made.
/// `hone train DIR/run.toml` then makes the model in `DIR/run`.
fn write_recipe(dir: &Path, num_documents: u64) -> Result<()> {
    let start = dir.join("start");
    std::fs::create_dir_all(&start)
        .map_err(|error| format!("cannot make {}: {error}", start.display()))?;
    write_corpus(&dir.join("corpus.jsonl"), num_documents)?;
    let sample = corpus(SEED, NUM_TOKENIZER_DOCUMENTS);
    train_tokenizer(sample, VOCAB_SIZE)?.save(start.join("tokenizer.json"), false)?;
    write_json(&start.join("tokenizer_config.json"), &tokenizer_config())?;
    write_json(&start.join("config.json"), &config())?;
    let weights = weights();
    let named = weights.iter().map(|(name, tensor)| (name.clone(), tensor.into()));
    safetensors::write(&start.join("model.safetensors"), named)?;
    write(&dir.join("run.toml"), &run_file(dir))
}

fn write_corpus(path: &Path, num_documents: u64) -> Result<()> {
    let file = std::fs::File::create(path)
        .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    let mut out = BufWriter::new(file);
    for text in corpus(SEED, num_documents) {
        writeln!(out, "{}", json!({ "text": text }))?;
    }
    Ok(out.flush()?)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, &format!("{value:#}\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
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
    })
}

/// Names and values of all weights. Matrices are normal with variance 1 / inputs.
fn weights() -> Vec<(String, Tensor)> {
    let head_dim = HIDDEN_SIZE / NUM_HEADS;
    let (q, kv) = (NUM_HEADS * head_dim, NUM_KV_HEADS * head_dim);
    let (h, i) = (HIDDEN_SIZE, INTERMEDIATE_SIZE);
    let mut draws = 0;
    let mut normal = |std, shape: [usize; 2]| {
        draws += 1;
        let values = normal(&mut Stream::new(SEED, draws, DOMAIN), std, shape[0] * shape[1]);
        Tensor::from_f32(&values, &shape)
    };
    let norm = |weight| Tensor::from_f32(&vec![weight; h], &[h]);
    let embedding = normal(EMBEDDING_STD, [VOCAB_SIZE, h]);
    let mut named = vec![("model.embed_tokens.weight".to_owned(), embedding)];
    for layer in 0..NUM_LAYERS {
        let mut add = |name, tensor| named.push((format!("model.layers.{layer}.{name}"), tensor));
        add("input_layernorm.weight", norm(1.0));
        add("post_attention_layernorm.weight", norm(1.0));
        let matrices = [
            ("self_attn.q_proj.weight", [q, h]),
            ("self_attn.k_proj.weight", [kv, h]),
            ("self_attn.v_proj.weight", [kv, h]),
            ("self_attn.o_proj.weight", [h, q]),
            ("mlp.gate_proj.weight", [i, h]),
            ("mlp.up_proj.weight", [i, h]),
            ("mlp.down_proj.weight", [h, i]),
        ];
        for (name, shape) in matrices {
            add(name, normal((1.0 / shape[1] as f64).sqrt(), shape));
        }
    }
    named.push(("model.norm.weight".to_owned(), norm(FINAL_NORM)));
    named
}

/// Normal numbers of standard deviation `std`, by Box and Muller.
fn normal(random: &mut Stream, std: f64, num_values: usize) -> Vec<f32> {
    // In (0, 1]: its logarithm is finite.
    let mut uniform = || ((random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let draw = |_| {
        let radius = (-2.0 * uniform().ln()).sqrt();
        (std * radius * (TAU * uniform()).cos()) as f32
    };
    (0..num_values).map(draw).collect()
}

fn run_file(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[model]\npath = \"{dir}/start\"\ncompute = \"f32\"\n\n\
         [data]\ntrain = [\"{dir}/corpus.jsonl\"]\nformat = \"text\"\nmax_seq_len = 256\n\n\
         [objective]\nkind = \"pretrain\"\n\n[train]\nmax_steps = 2600\nbatch_tokens = 1024\n\
         learning_rate = 2e-3\nwarmup_steps = 50\n\n[optimizer]\nbeta2 = 0.95\n\n\
         [output]\ndir = \"{dir}/run\"\n"
    )
}
