//! A Llama model of random weights, its tokenizer, and data for it. What it computes is noise; the
//! shapes are what matters.

use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// Sizes of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    pub vocab_size: usize,
    max_position_embeddings: usize,
}

impl Shape {
    /// Floating-point operations that one row needs in a step of LoRA, two for a multiply-add:
    /// products with frozen weights forward and for their inputs' gradients, the head only where a
    /// token is predicted; and for each pair of a query and a key that it sees two products forward
    /// and four backward. What is computed twice, on padding or for logits that nobody asked for
    /// counts for nothing, nor do adapters (under 2 %), norms and the optimizer.
    pub fn lora_flops(&self, num_tokens: usize, num_targets: usize) -> f64 {
        let of_layer = |(name, shape): &(String, Vec<usize>)| {
            let is_product = name.contains(".layers.") && shape.len() == 2;
            if is_product { shape.iter().product() } else { 0 }
        };
        let in_layers: usize = tensors(self).iter().map(of_layer).sum();
        let in_head = self.vocab_size * self.hidden_size;
        let pairs = num_tokens * (num_tokens + 1) / 2 * self.num_layers * self.hidden_size;
        (4 * (num_tokens * in_layers + num_targets * in_head) + 12 * pairs) as f64
    }
}

/// A few weights, to try a benchmark with.
pub const TINY: Shape = Shape {
    hidden_size: 64,
    intermediate_size: 128,
    num_layers: 2,
    num_heads: 4,
    num_kv_heads: 2,
    vocab_size: 2048,
    max_position_embeddings: 2048,
};

/// 22 million weights.
pub const SMALL: Shape = Shape {
    hidden_size: 384,
    intermediate_size: 1024,
    num_layers: 12,
    num_heads: 6,
    num_kv_heads: 2,
    vocab_size: 8192,
    max_position_embeddings: 2048,
};

/// 135 million weights, as SmolLM-135M has them.
pub const M135: Shape = Shape {
    hidden_size: 576,
    intermediate_size: 1536,
    num_layers: 30,
    num_heads: 9,
    num_kv_heads: 3,
    vocab_size: 49_152,
    max_position_embeddings: 8192,
};

/// A billion weights, as Llama 3.2 1B has them.
pub const L1B: Shape = Shape {
    hidden_size: 2048,
    intermediate_size: 8192,
    num_layers: 16,
    num_heads: 32,
    num_kv_heads: 8,
    vocab_size: 128_256,
    max_position_embeddings: 8192,
};

/// Seven and a half billion, as Llama 3 8B has them but for a head of its own.
pub const L8B: Shape = Shape {
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: 8,
    vocab_size: 128_256,
    max_position_embeddings: 8192,
};

/// Element type of the weights in the file.
#[derive(Clone, Copy, PartialEq)]
pub enum Precision {
    F32,
    Bf16,
}

/// Numbers that look random and are the same every time (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// From 0 up to, but not including, 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Between `-bound` and `bound`.
    fn uniform(&mut self, bound: f32) -> f32 {
        (2.0 * self.unit() - 1.0) * bound
    }
}

/// Writes a model directory in Hugging Face layout.
pub fn write_model(dir: &Path, shape: &Shape, precision: Precision) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.json"), config(shape, precision).to_string())?;
    write_tokenizer(dir, &word_tokenizer(shape.vocab_size))?;
    write_weights(&dir.join("model.safetensors"), shape, precision)
}

/// Puts a tokenizer into a model directory; its end-of-text token is `</s>`.
pub fn write_tokenizer(dir: &Path, tokenizer: &Value) -> Result<()> {
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    // Without a class transformers takes one by the model's type, and its own way to split text.
    let config = json!({"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string())
}

/// GPT-2's tokenizer from its `gpt2_vocab.json` and `gpt2_merges.txt`, cut to `vocab_size` tokens.
/// The last of them gives way to `</s>`.
pub fn gpt2_tokenizer(dir: &Path, vocab_size: usize) -> Result<Value> {
    let vocab = std::fs::read(dir.join("gpt2_vocab.json"))?;
    let mut vocab: Map<String, Value> = serde_json::from_slice(&vocab)?;
    let eos = vocab_size - 1;
    vocab.retain(|_, id| id.as_u64().is_some_and(|id| id < eos as u64));
    let merges = std::fs::read_to_string(dir.join("gpt2_merges.txt"))?;
    let known = |merge: &&str| {
        let parts = merge.split_once(' ');
        parts
            .is_some_and(|(a, b)| [a, b, &format!("{a}{b}")].iter().all(|t| vocab.contains_key(*t)))
    };
    let merges: Vec<&str> = merges.lines().filter(known).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(eos, "</s>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }))
}

fn special(id: usize, name: &str) -> Value {
    json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

fn config(shape: &Shape, precision: Precision) -> Value {
    let f32 = precision == Precision::F32;
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
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
pub fn word_tokenizer(vocab_size: usize) -> Value {
    let names = ["<unk>", "<s>", "</s>"];
    let specials = (0..).zip(names).map(|(id, name): (usize, _)| (name.to_owned(), json!(id)));
    let words = (names.len()..vocab_size).map(|id| (format!("w{id}"), json!(id)));
    let added_tokens = names.into_iter().enumerate().map(|(id, name)| special(id, name));
    let added_tokens: Vec<Value> = added_tokens.collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
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
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let kv = h / shape.num_heads * shape.num_kv_heads;
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![shape.vocab_size, h]),
        ("model.norm.weight".to_owned(), vec![h]),
    ];
    for layer in 0..shape.num_layers {
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

/// Matrices take their weights from one block of so many, again and again: drawing 15 GB would take
/// longer than training on them. No multiple of a row's length, so that rows differ.
const BLOCK: usize = (4 << 20) - 77;

fn write_weights(path: &Path, shape: &Shape, precision: Precision) -> Result<()> {
    let (dtype, size) = match precision {
        Precision::F32 => ("F32", 4),
        Precision::Bf16 => ("BF16", 2),
    };
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors(shape) {
        let start = end;
        end += shape.iter().product::<usize>() * size;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    // Aside, since whoever finds the file takes it to be whole.
    let aside = path.with_extension("part");
    let mut out = File::create(&aside)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    // Of a number in little endian the last two bytes are its bf16.
    let bytes_of = |x: f32| x.to_le_bytes().into_iter().skip(4 - size);
    let mut random = Random(1);
    let block: Vec<u8> =
        (0..BLOCK.min(end / size)).flat_map(|_| bytes_of(random.uniform(0.035))).collect();
    let mut rest: &[u8] = &[];
    for (_, shape) in tensors(shape) {
        let num_bytes = shape.iter().product::<usize>() * size;
        if shape.len() == 1 {
            // Norms are vectors and begin as ones.
            let ones: Vec<u8> = (0..shape[0]).flat_map(|_| bytes_of(1.0)).collect();
            out.write_all(&ones)?;
            continue;
        }
        let mut missing = num_bytes;
        while missing > 0 {
            if rest.is_empty() {
                rest = &block;
            }
            let (now, later) = rest.split_at(missing.min(rest.len()));
            out.write_all(now)?;
            (rest, missing) = (later, missing - now.len());
        }
    }
    std::fs::rename(&aside, path)
}

/// Writes documents of 100 to 900 words as JSON lines.
pub fn write_data(path: &Path) -> Result<()> {
    let mut random = Random(2);
    let lengths: Vec<usize> = (0..200).map(|_| 100 + (random.next() % 800) as usize).collect();
    write_documents(path, &lengths)
}

/// Writes documents of so many words as JSON lines.
pub fn write_documents(path: &Path, num_words: &[usize]) -> Result<()> {
    let mut random = Random(3);
    let mut out = BufWriter::new(File::create(path)?);
    for &num_words in num_words {
        let words = (0..num_words).map(|_| format!("w{}", 3 + random.next() % 5000));
        let text = words.collect::<Vec<_>>().join(" ");
        writeln!(out, "{}", json!({"text": text}))?;
    }
    out.flush()
}
