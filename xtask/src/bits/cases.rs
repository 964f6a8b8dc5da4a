//! The runs whose bits are compared, and the tiny models and data for them.

use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const VOCAB_SIZE: usize = 131;
const HIDDEN_SIZE: usize = 64;
const INTERMEDIATE_SIZE: usize = 112;
const NUM_LAYERS: usize = 2;
const NUM_HEADS: usize = 4;
const NUM_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 24;

/// How an adapter is trained, if one is.
pub struct Adapter {
    use_rslora: bool,
    dropout: &'static str,
}

const LORA: Option<Adapter> = Some(Adapter { use_rslora: false, dropout: "0.0" });
const RSLORA: Option<Adapter> = Some(Adapter { use_rslora: true, dropout: "0.1" });

/// One run: a model, how its weights are held and multiplied, and what is trained.
pub struct Case {
    pub name: &'static str,
    model: Model,
    adapter: Option<Adapter>,
    base_precision: &'static str,
    compute: &'static str,
    recompute: &'static str,
    schedule: &'static str,
    objective: &'static str,
}

/// Which of the two models in the directory of inputs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Model {
    /// Embedding and head are one; no biases.
    Tied,
    /// A head of its own, biases, scaled positions.
    Biased,
}

impl Model {
    const ALL: [Self; 2] = [Self::Tied, Self::Biased];

    const fn name(self) -> &'static str {
        match self {
            Self::Tied => "tied",
            Self::Biased => "biased",
        }
    }
}

const fn case(name: &'static str, compute: &'static str) -> Case {
    Case {
        name,
        model: Model::Tied,
        adapter: LORA,
        base_precision: "auto",
        compute,
        recompute: "none",
        schedule: "cosine",
        objective: "sft",
    }
}

pub const CASES: [Case; 11] = [
    case("lora-f32", "f32"),
    Case { model: Model::Biased, adapter: RSLORA, ..case("lora-f32-biased", "f32") },
    Case { recompute: "block", schedule: "linear", ..case("lora-f32-recompute", "f32") },
    Case { base_precision: "bf16", ..case("lora-bf16", "bf16") },
    Case { base_precision: "bf16", ..case("lora-bf16-in-f32", "f32") },
    Case { base_precision: "int8", ..case("lora-int8", "bf16") },
    Case { base_precision: "int8", ..case("lora-int8-products", "int8") },
    Case { adapter: None, ..case("full-f32", "f32") },
    Case { adapter: None, model: Model::Biased, ..case("full-f32-biased", "f32") },
    Case { adapter: None, objective: "pretrain", ..case("full-bf16", "bf16") },
    Case {
        adapter: None,
        model: Model::Biased,
        schedule: "constant",
        ..case("full-bf16-biased", "bf16")
    },
];

/// How a binary wants the kinds of adapter, objective and schedule to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `adapter.method`, `train.objective`, `train.lr_schedule`.
    Keys,
    /// `kind` in tables `[adapter]`, `[objective]`, `[schedule]`.
    Tables,
}

impl Spelling {
    /// The one in which `hone` accepts a run file.
    pub fn of(hone: &Path, dir: &Path) -> Result<Self, String> {
        let mut refusals = String::new();
        for spelling in [Self::Tables, Self::Keys] {
            let run_file = dir.join("spelling.toml");
            std::fs::write(&run_file, CASES[0].run_file(spelling))
                .map_err(|error| error.to_string())?;
            let mut plan = Command::new(hone);
            plan.arg("plan").arg(&run_file).current_dir(dir);
            plan.env("XDG_CACHE_HOME", dir.join("cache"));
            let output = plan.output().map_err(|error| format!("{}: {error}", hone.display()))?;
            if output.status.success() {
                return Ok(spelling);
            }
            refusals += &String::from_utf8_lossy(&output.stderr);
        }
        Err(format!("{} takes neither spelling of a run file:\n{refusals}", hone.display()))
    }
}

impl Case {
    /// The run file; the run's directory is called like the case.
    pub fn run_file(&self, spelling: Spelling) -> String {
        let Self { name, base_precision, compute, recompute, .. } = self;
        let Self { schedule, objective, .. } = self;
        let mut text = format!(
            "[model]\npath = \"{}\"\nbase_precision = \"{base_precision}\"\n\
             compute = \"{compute}\"\n\
             [data]\ntrain = \"train.jsonl\"\nmax_seq_len = 32\n\
             [budget]\nmicro_batch_tokens = 64\nrecompute = \"{recompute}\"\n\
             [run]\ndevice = \"cpu\"\nthreads = 2\n[report]\nsamples = 0\n\
             [output]\ndir = \"{name}\"\n",
            self.model.name()
        );
        if let Some(adapter) = &self.adapter {
            let key = if spelling == Spelling::Keys { "method" } else { "kind" };
            let Adapter { use_rslora, dropout } = adapter;
            let _ = writeln!(
                text,
                "[adapter]\n{key} = \"lora\"\nrank = 4\nuse_rslora = {use_rslora}\n\
                 dropout = {dropout}"
            );
        }
        if spelling == Spelling::Tables {
            let _ = writeln!(text, "[objective]\nkind = \"{objective}\"");
            let _ = writeln!(text, "[schedule]\nkind = \"{schedule}\"");
        }
        let rate = if self.adapter.is_some() { "0.01" } else { "0.003" };
        let _ = writeln!(
            text,
            "[train]\nmax_steps = 8\nbatch_tokens = 192\nlearning_rate = {rate}\n\
             weight_decay = 0.01"
        );
        if spelling == Spelling::Keys {
            let _ = writeln!(text, "objective = \"{objective}\"\nlr_schedule = \"{schedule}\"");
        }
        text
    }
}

/// Both models and the data.
pub fn write_inputs(dir: &Path) -> std::io::Result<()> {
    for model in Model::ALL {
        let dir = dir.join(model.name());
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("config.json"), config(model).to_string())?;
        std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string())?;
        std::fs::write(dir.join("model.safetensors"), weights(model))?;
    }
    std::fs::write(dir.join("train.jsonl"), rows())
}

fn config(model: Model) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "num_hidden_layers": NUM_LAYERS, "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE, "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": model == Model::Tied, "attention_bias": model == Model::Biased,
        "mlp_bias": model == Model::Biased, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32",
    });
    if model == Model::Biased {
        config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
    }
    config
}

/// `<unk>`, `<s>`, `</s>`, then the words `w3`, `w4`, … with a space between them.
fn tokenizer() -> Value {
    let specials = ["<unk>", "<s>", "</s>"];
    let added = specials.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    });
    let named = specials.iter().map(|&name| name.to_owned());
    let words = named.chain((specials.len()..VOCAB_SIZE).map(|id| format!("w{id}")));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": words.zip((0..VOCAB_SIZE).map(Value::from)).collect::<Map<_, _>>()},
    })
}

/// Sixty prompts with completions of 1 to 12 words.
fn rows() -> String {
    let mut text = String::new();
    for row in 0..60 {
        let words = |from: u64, count: u64| -> String {
            let word = |i| 3 + uniform(from + i, row) % (VOCAB_SIZE as u64 - 3);
            (0..count).map(|i| format!("w{}", word(i))).collect::<Vec<_>>().join(" ")
        };
        let (prompt, completion) = (words(0, 2 + row % 7), words(100, 1 + row * 5 % 12));
        let record = json!({"prompt": prompt, "completion": format!(" {completion}")});
        let _ = writeln!(text, "{record}");
    }
    text
}

/// The weights as a safetensors file, in f32.
fn weights(model: Model) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (stream, (name, shape)) in (1..).zip(shapes(model)) {
        let count: usize = shape.iter().product();
        let begin = data.len();
        for i in 0..count as u64 {
            data.extend(value(&name, &shape, uniform(i, stream)).to_le_bytes());
        }
        let about = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name, about);
    }
    let mut header = Value::from(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// A weight from 64 random bits: norms near 1, others uniform with variance 1 / inputs.
fn value(name: &str, shape: &[usize], bits: u64) -> f32 {
    // 24 bits in -1..1: exact in f32.
    let uniform = (bits >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
    match shape {
        _ if name.ends_with("norm.weight") => 1.0 + 0.25 * uniform,
        [_, inputs] => uniform * (3.0 / *inputs as f32).sqrt(),
        _ => 0.125 * uniform,
    }
}

/// Names and shapes of all weights.
fn shapes(model: Model) -> Vec<(String, Vec<usize>)> {
    let (q, kv) = (NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM);
    let (h, i) = (HIDDEN_SIZE, INTERMEDIATE_SIZE);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB_SIZE, h])];
    for layer in 0..NUM_LAYERS {
        let mut add =
            |name: &str, shape| shapes.push((format!("model.layers.{layer}.{name}"), shape));
        add("input_layernorm.weight", vec![h]);
        add("post_attention_layernorm.weight", vec![h]);
        let linears = [
            ("self_attn.q_proj", [q, h]),
            ("self_attn.k_proj", [kv, h]),
            ("self_attn.v_proj", [kv, h]),
            ("self_attn.o_proj", [h, q]),
            ("mlp.gate_proj", [i, h]),
            ("mlp.up_proj", [i, h]),
            ("mlp.down_proj", [h, i]),
        ];
        for (name, shape) in linears {
            add(&format!("{name}.weight"), shape.to_vec());
            if model == Model::Biased {
                add(&format!("{name}.bias"), vec![shape[0]]);
            }
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![h]));
    if model == Model::Biased {
        shapes.push(("lm_head.weight".to_owned(), vec![VOCAB_SIZE, h]));
    }
    shapes
}

/// SplitMix64's finaliser over a counter: the same numbers on every machine.
fn uniform(counter: u64, stream: u64) -> u64 {
    let mut z =
        counter.wrapping_add(stream << 32).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
