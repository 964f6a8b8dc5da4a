//! A Llama model of random weights, its tokenizer, and data for it. What it computes is noise; the
//! shapes are what matters.

use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

const HIDDEN_SIZE: usize = 384;
const INTERMEDIATE_SIZE: usize = 1024;
const NUM_LAYERS: usize = 12;
const NUM_HEADS: usize = 6;
const NUM_KV_HEADS: usize = 2;
const VOCAB_SIZE: usize = 8192;

/// Element type of the weights in the file.
#[derive(Clone, Copy, PartialEq)]
pub enum Precision {
    F32,
    Bf16,
}

/// Numbers that look random and are the same every time (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Between `-bound` and `bound`.
    fn uniform(&mut self, bound: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u32 << 24) as f32;
        (2.0 * unit - 1.0) * bound
    }
}

/// Writes a model directory in Hugging Face layout.
pub fn write_model(dir: &Path, precision: Precision) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.json"), config(precision).to_string())?;
    std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string())?;
    std::fs::write(dir.join("tokenizer_config.json"), json!({"eos_token": "</s>"}).to_string())?;
    write_weights(&dir.join("model.safetensors"), precision)
}

fn config(precision: Precision) -> Value {
    let f32 = precision == Precision::F32;
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": if f32 { "float32" } else { "bfloat16" },
    })
}

/// `<unk>`, `<s>`, `</s>`, then the words `w3`, `w4`, ….
fn tokenizer() -> Value {
    let special = |(id, name): (usize, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let names = ["<unk>", "<s>", "</s>"];
    let specials = (0..).zip(names).map(|(id, name): (usize, _)| (name.to_owned(), json!(id)));
    let words = (names.len()..VOCAB_SIZE).map(|id| (format!("w{id}"), json!(id)));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": names.into_iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "unk_token": "<unk>",
            "vocab": specials.chain(words).collect::<Map<_, _>>(),
        },
    })
}

/// Names and shapes of all tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let (h, i, kv) = (HIDDEN_SIZE, INTERMEDIATE_SIZE, HIDDEN_SIZE / NUM_HEADS * NUM_KV_HEADS);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB_SIZE, h]),
        ("model.norm.weight".to_owned(), vec![h]),
    ];
    for layer in 0..NUM_LAYERS {
        let parts = [
            ("input_layernorm", vec![h]),
            ("post_attention_layernorm", vec![h]),
            ("self_attn.q_proj", vec![h, h]),
            ("self_attn.k_proj", vec![kv, h]),
            ("self_attn.v_proj", vec![kv, h]),
            ("self_attn.o_proj", vec![h, h]),
            ("mlp.gate_proj", vec![i, h]),
            ("mlp.up_proj", vec![i, h]),
            ("mlp.down_proj", vec![h, i]),
        ];
        let named =
            parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape));
        all.extend(named);
    }
    all
}

fn write_weights(path: &Path, precision: Precision) -> Result<()> {
    let (dtype, size) = match precision {
        Precision::F32 => ("F32", 4),
        Precision::Bf16 => ("BF16", 2),
    };
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors() {
        let start = end;
        end += shape.iter().product::<usize>() * size;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut random = Random(1);
    for (_, shape) in tensors() {
        for _ in 0..shape.iter().product::<usize>() {
            // Norms are vectors and begin as ones.
            let x = if shape.len() == 1 { 1.0 } else { random.uniform(0.035) };
            match precision {
                Precision::F32 => out.write_all(&x.to_le_bytes())?,
                Precision::Bf16 => out.write_all(&x.to_le_bytes()[2..])?,
            }
        }
    }
    out.flush()
}

/// Writes documents of 100 to 900 words as JSON lines.
pub fn write_data(path: &Path) -> Result<()> {
    let mut random = Random(2);
    let mut out = BufWriter::new(File::create(path)?);
    for _ in 0..200 {
        let num_words = 100 + random.next() % 800;
        let words = (0..num_words).map(|_| format!("w{}", 3 + random.next() % 5000));
        let text = words.collect::<Vec<_>>().join(" ");
        writeln!(out, "{}", json!({"text": text}))?;
    }
    out.flush()
}
