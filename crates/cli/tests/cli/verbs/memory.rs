//! What models that are larger than the memory that they may take need of it. The system says how
//! much a process has taken at most, pages of mapped files included, on Linux alone.
#![cfg(target_os = "linux")]

use super::Scene;
use hone_tensor::testing;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const HIDDEN: usize = 512;
const FFN: usize = 2048;
const BLOCKS: usize = 20;
const VOCAB: usize = 40_000;

/// The tensors of a Llama, bytes of bf16 in order.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for block in 0..BLOCKS {
        let of_block: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", &[HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("mlp.gate_proj", &[FFN, HIDDEN]),
            ("mlp.up_proj", &[FFN, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, FFN]),
        ];
        let name = |name: &str| format!("model.layers.{block}.{name}.weight");
        tensors.extend(of_block.map(|(module, shape)| (name(module), shape.to_vec())));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors
}

/// Writes 200 MB of weights, noise of about 0.02, with a tokenizer of fewer tokens; `false` if that
/// is absent.
fn write_model(dir: &Path) -> bool {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    if !own.is_dir() {
        testing::skip("../shared is absent");
        return false;
    }
    std::fs::create_dir(dir).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(dir.join(name), std::fs::read(own.join(name)).unwrap()).unwrap();
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": BLOCKS, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "rope_theta": 10_000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors() {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // 2⁻⁶ to 2⁻⁵, of either sign: the mantissa and the sign are drawn.
    let random = hone_tensor::Philox::new(7, 0);
    let number = |i: u64| 0x3c80 | (random.words(i)[0] & 0x807f) as u16;
    let noise: Vec<u8> = (0..100_003).flat_map(|i| number(i).to_le_bytes()).collect();
    while at > 0 {
        let len = at.min(noise.len());
        file.write_all(&noise[..len]).unwrap();
        at -= len;
    }
    true
}

/// The most memory, in MiB, that a command takes, which must succeed.
fn peak(scene: &Scene, arguments: &[&str]) -> u64 {
    let mut child = scene.hone(arguments).spawn().unwrap();
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let found = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak = found.unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    peak / 1024
}

/// Of 200 MB of weights no more is held at once than a block, or the embedding, and what is made
/// of some of its rows.
#[test]
fn a_model_is_compressed_in_less_memory_than_it_has_weights() {
    let scene = Scene::new();
    // Without optimisation this takes minutes.
    if !testing::is_full() || !write_model(&scene.path("big")) {
        return;
    }
    let bytes = std::fs::metadata(scene.path("big/model.safetensors")).unwrap().len();
    assert!(bytes >> 20 > 185, "{bytes}");
    let text: String = (0..3000).map(|i| format!("word {i} and ")).collect();
    scene.write("text.txt", &text);
    let compress = ["compress", "big", "--type", "q8_0", "--out"];
    let plain = [&compress[..], &["plain.gguf"]].concat();
    let found = peak(&scene, &plain);
    assert!(found < MOST_MIB, "{found} MiB without text");
    let export = ["export", "big", "--format", "gguf", "--dtype", "bf16", "--out", "bf16.gguf"];
    let found = peak(&scene, &export);
    // Its rows of queries and keys, in another order, are copies.
    assert!(found < MOST_MIB + 20, "{found} MiB to export");
    let text = ["--calibration", "text.txt", "--calibration-tokens", "2048"];
    let known = [&compress[..], &["known.gguf", "--effort", "plain"], &text].concat();
    let found = peak(&scene, &known);
    assert!(found < MOST_MIB + 20, "{found} MiB with text");
}

/// The embedding takes 39 MiB, and a block 8.
const MOST_MIB: u64 = 150;
