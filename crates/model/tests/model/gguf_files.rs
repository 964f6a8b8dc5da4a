//! Model directories as GGUF files, written as llama.cpp's conversion writes them. The tests of
//! other crates read this file as well.

use hone_tensor::gguf::testing::{Meta, Writer};
use hone_tensor::safetensors::SafeTensorsFile;
use hone_tensor::{DType, Tensor};
use serde_json::Value;
use std::path::Path;

/// A block's modules and their tensors.
const OF_BLOCK: [(&str, &str); 34] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("linear_attn.in_proj_qkv", "attn_qkv"),
    ("linear_attn.in_proj_z", "attn_gate"),
    ("linear_attn.in_proj_b", "ssm_beta"),
    ("linear_attn.in_proj_a", "ssm_alpha"),
    ("linear_attn.out_proj", "ssm_out"),
    ("linear_attn.conv1d", "ssm_conv1d"),
    ("linear_attn.norm", "ssm_norm"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.router", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Architectures whose queries and keys conversion permutes.
const PERMUTED: [&str; 4] = ["llama", "granite", "mistral3", "smollm3"];

/// The model in a directory with one file of weights, without a tokenizer.
pub fn from_directory(dir: &Path) -> Writer {
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut writer = Writer::default();
    let architecture = match config["model_type"].as_str().unwrap() {
        "gemma3_text" => "gemma3",
        "glm4_moe" => "glm4moe",
        "gpt_oss" => "gpt-oss",
        "qwen2_moe" => "qwen2moe",
        "qwen3_moe" => "qwen3moe",
        "qwen3_5_text" => "qwen35",
        "qwen3_5_moe_text" => "qwen35moe",
        "olmo3" => "olmo2",
        "ministral3" => "mistral3",
        "mistral" | "mixtral" => "llama",
        other => other,
    };
    writer.set("general.architecture", architecture);
    metadata(&mut writer, architecture, &config);
    let file = SafeTensorsFile::open(&dir.join("model.safetensors")).unwrap();
    for name in file.names() {
        let tensor = file.tensor(&name).unwrap().unwrap();
        match name.contains(".experts.") {
            false if name.contains(".linear_attn.") => {
                add_delta(&mut writer, &config, &name, &tensor);
            }
            true if architecture == "gpt-oss" => add_columns(&mut writer, &name, &tensor),
            true if tensor.shape().len() == 3 => add_rows(&mut writer, &name, &tensor),
            true => add_expert(&mut writer, &name, &tensor),
            false => add(&mut writer, architecture, &config, &name, &tensor),
        }
    }
    writer
}

/// Adds a tokenizer whose tokens are a few letters, for texts such as `w12 w3`.
pub fn letters(writer: &mut Writer, vocab_size: usize) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "Ġ", "w"].map(str::to_owned).into();
    tokens.extend((0..10).map(|digit| digit.to_string()));
    tokens.push("Ġw".to_owned());
    let known = tokens.len();
    tokens.extend((known..vocab_size).map(|id| format!("<unused{id}>")));
    let kinds = (0..vocab_size).map(|id| match id {
        0..3 => 3,
        id if id < known => 1,
        _ => 5,
    });
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "gpt-2")
        .set("tokenizer.ggml.tokens", Meta::Texts(tokens))
        .set("tokenizer.ggml.token_type", Meta::I32s(kinds.collect()))
        .set("tokenizer.ggml.merges", Meta::Texts(vec!["Ġ w".to_owned()]))
        .set("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .set("tokenizer.ggml.eos_token_id", Meta::U32(2));
}

/// Files have the matrices of all experts in one tensor.
fn add_expert(writer: &mut Writer, name: &str, tensor: &Tensor) {
    let parts: Vec<&str> = name.split('.').collect();
    let [_, _, layer, _, _, expert, module, kind] = parts[..] else { panic!("{name}") };
    let part = match module {
        "w1" => "gate",
        "w2" => "down",
        "w3" => "up",
        other => other.trim_end_matches("_proj"),
    };
    let name = format!("blk.{layer}.ffn_{part}_exps.{kind}");
    let expert: usize = expert.parse().unwrap();
    if !writer.tensors.iter().any(|other| other.name == name) {
        let shape: Vec<usize> = [&[0], tensor.shape()].concat();
        writer.tensor(&name, 0, &shape, Vec::new());
    }
    let all = writer.tensors.iter_mut().find(|other| other.name == name).unwrap();
    let len = tensor.num_bytes();
    all.bytes.resize(all.bytes.len().max((expert + 1) * len), 0);
    all.bytes[expert * len..][..len].copy_from_slice(tensor.bytes());
    all.shape[0] = (all.bytes.len() / len) as u64;
}

/// `[experts, in, out]`, or biases `[experts, out]`, whose columns of gate and up alternate: one
/// tensor `[experts, out, in]` of each.
fn add_columns(writer: &mut Writer, name: &str, tensor: &Tensor) {
    let (layer, of_all) = (name.split('.').nth(2).unwrap(), name.rsplit('.').next().unwrap());
    let (parts, rest) = match of_all.strip_prefix("gate_up_proj") {
        Some(rest) => (&["gate", "up"][..], rest),
        None => (&["down"][..], of_all.strip_prefix("down_proj").unwrap()),
    };
    let kind = if rest.is_empty() { "weight" } else { "bias" };
    let (&out, before) = tensor.shape().split_last().unwrap();
    let (num_experts, k) = (before[0], before[1..].iter().product::<usize>());
    let (values, n) = (tensor.to_vec_f32(), out / parts.len());
    for (i, part) in parts.iter().enumerate() {
        let at = |e: usize, row: usize, col: usize| (e * k + col) * out + row * parts.len() + i;
        let rows = (0..num_experts).flat_map(|e| (0..n).map(move |row| (e, row)));
        let elements = rows.flat_map(|(e, row)| (0..k).map(move |col| at(e, row, col)));
        let values: Vec<f32> = elements.map(|at| values[at]).collect();
        let shape = if kind == "bias" { vec![num_experts, n] } else { vec![num_experts, n, k] };
        writer.floats(&format!("blk.{layer}.ffn_{part}_exps.{kind}"), &shape, &values);
    }
}

/// All experts' in one tensor, gate before up, which files have apart.
fn add_rows(writer: &mut Writer, name: &str, tensor: &Tensor) {
    let (layer, shape, values) = (name.split('.').nth(2).unwrap(), tensor.shape(), tensor.f32());
    let names: &[&str] = if name.ends_with("down_proj") { &["down"] } else { &["gate", "up"] };
    let len = values.len() / shape[0] / names.len();
    for (part, to) in names.iter().enumerate() {
        let of_expert = values.chunks(len).skip(part).step_by(names.len());
        let values: Vec<f32> = of_expert.flatten().copied().collect();
        let shape = [shape[0], shape[1] / names.len(), shape[2]];
        writer.floats(&format!("blk.{layer}.ffn_{to}_exps.weight"), &shape, &values);
    }
}

/// A weight of a gated delta net, as `_LinearAttentionVReorderBase` of the conversion writes it.
fn add_delta(writer: &mut Writer, config: &Value, name: &str, tensor: &Tensor) {
    let size = |key: &str| size(config, &format!("linear_{key}"));
    let (keys, values) = (size("num_key_heads"), size("num_value_heads"));
    let (layer, module) = name.split_once(".linear_attn.").unwrap();
    let block = format!("blk.{}", layer.rsplit('.').next().unwrap());
    let (mut data, mut shape) = (tensor.f32().to_vec(), tensor.shape().to_vec());
    // `reshape(keys, values / keys, len).swapaxes(0, 1)`.
    let tiled = |data: &[f32], len: usize| -> Vec<f32> {
        let of = |head: usize| &data[head * len..][..len];
        let heads = (0..values).map(|tile| tile % keys * (values / keys) + tile / keys);
        heads.flat_map(of).copied().collect()
    };
    let row = *shape.last().unwrap();
    match module {
        "in_proj_qkv.weight" | "conv1d.weight" => {
            let of_values = data.split_off(2 * keys * size("key_head_dim") * row);
            data.extend(tiled(&of_values, size("value_head_dim") * row));
        }
        "out_proj.weight" => {
            let of_row = |row: &[f32]| tiled(row, size("value_head_dim"));
            data = data.chunks(row).flat_map(of_row).collect();
        }
        "norm.weight" => {}
        "A_log" => data = tiled(&data, 1).into_iter().map(|x| -x.exp()).collect(),
        _ => data = tiled(&data, data.len() / values),
    }
    shape.retain(|&size| size > 1);
    let to = match module {
        "A_log" => format!("{block}.ssm_a"),
        "dt_bias" => format!("{block}.ssm_dt.bias"),
        _ => name_in_gguf(name, "qwen35"),
    };
    writer.floats(&to, &shape, &data);
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize
}

fn metadata(writer: &mut Writer, architecture: &str, config: &Value) {
    let key = |key: &str| format!("{architecture}.{key}");
    for (from, to) in [
        ("max_position_embeddings", "context_length"),
        ("hidden_size", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("head_dim", "attention.value_length"),
        ("num_experts", "expert_count"),
        ("num_local_experts", "expert_count"),
        ("n_routed_experts", "expert_count"),
        ("n_shared_experts", "expert_shared_count"),
        ("first_k_dense_replace", "leading_dense_block_count"),
        ("n_group", "expert_group_count"),
        ("topk_group", "expert_group_used_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ("linear_conv_kernel_dim", "ssm.conv_kernel"),
        ("linear_key_head_dim", "ssm.state_size"),
        ("linear_num_key_heads", "ssm.group_count"),
        ("linear_num_value_heads", "ssm.time_step_rank"),
        ("sliding_window", "attention.sliding_window"),
        ("sliding_window_pattern", "attention.sliding_window_pattern"),
    ] {
        if config[from].is_u64() {
            writer.set(&key(to), Meta::U32(size(config, from) as u32));
        }
    }
    let number = |writer: &mut Writer, to: &str, value: &Value| set_number(writer, &key(to), value);
    number(writer, "attention.layer_norm_rms_epsilon", &config["rms_norm_eps"]);
    for (from, to) in [
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
        ("routed_scaling_factor", "expert_weights_scale"),
    ] {
        number(writer, to, &config[from]);
    }
    let head_dim = config["head_dim"].as_f64().unwrap_or_else(|| {
        (size(config, "hidden_size") / size(config, "num_attention_heads")) as f64
    });
    let share = first(&[
        &rope_parameters(config)["partial_rotary_factor"],
        &config["partial_rotary_factor"],
    ]);
    let rotated = head_dim * share.as_f64().unwrap_or(1.0);
    writer.set(&key("rope.dimension_count"), Meta::U32(rotated as u32));
    if config["linear_num_value_heads"].is_u64() {
        let width = size(config, "linear_num_value_heads") * size(config, "linear_value_head_dim");
        writer.set(&key("ssm.inner_size"), Meta::U32(width as u32));
        writer.set(&key("rope.dimension_sections"), Meta::I32s(vec![11, 11, 10, 0]));
        writer.set(&key("full_attention_interval"), Meta::U32(4));
    }
    kinds_of_blocks(writer, architecture, config);
    if architecture == "glm4moe" {
        writer.set(&key("expert_weights_norm"), Meta::Bool(config["norm_topk_prob"] == true));
        writer.set(&key("expert_gating_func"), Meta::U32(2));
    }
    if architecture == "phi3" && config["sliding_window"].is_null() {
        writer.set(&key("attention.sliding_window"), Meta::U32(0));
    }
    rope_scaling(writer, architecture, config);
}

/// Lists with a boolean for each block.
fn kinds_of_blocks(writer: &mut Writer, architecture: &str, config: &Value) {
    let of_kind = |kind: &str| -> Option<Meta> {
        let kinds = config["layer_types"].as_array()?.iter();
        Some(Meta::Bools(kinds.map(|found| found == kind).collect()))
    };
    let key = |key: &str| format!("{architecture}.attention.{key}");
    if let Some(list) = of_kind("linear_attention").filter(|_| architecture.starts_with("qwen35")) {
        writer.set(&key("recurrent_layers"), list);
    }
    if architecture == "olmo2" && config["sliding_window"].is_u64() {
        let by_rule = (1..=size(config, "num_hidden_layers")).map(|i| i % 4 != 0);
        let list = of_kind("sliding_attention").unwrap_or(Meta::Bools(by_rule.collect()));
        writer.set(&key("sliding_window_pattern"), list);
    }
}

fn set_number(writer: &mut Writer, key: &str, value: &Value) {
    if let Some(value) = value.as_f64() {
        writer.set(key, Meta::F32(value as f32));
    }
}

/// The object that says how positions are embedded, that of full attention.
fn rope_parameters(config: &Value) -> &Value {
    let all = first(&[&config["rope_parameters"], &config["rope_scaling"]]);
    first(&[&all["full_attention"], all])
}

/// The first that is not null, if there is one.
fn first<'a>(values: &[&'a Value]) -> &'a Value {
    values.iter().find(|value| !value.is_null()).copied().unwrap_or(&Value::Null)
}

fn rope_scaling(writer: &mut Writer, architecture: &str, config: &Value) {
    let key = |key: &str| format!("{architecture}.{key}");
    let number = |writer: &mut Writer, to: &str, value: &Value| set_number(writer, &key(to), value);
    let scaling = rope_parameters(config);
    number(writer, "rope.freq_base", first(&[&scaling["rope_theta"], &config["rope_theta"]]));
    let of_windows = &config["rope_parameters"]["sliding_attention"]["rope_theta"];
    number(writer, "rope.freq_base_swa", first(&[of_windows, &config["rope_local_base_freq"]]));
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    match kind {
        None | Some("default") => {}
        Some("longrope") => {
            let original = size(config, "original_max_position_embeddings");
            let factor = size(config, "max_position_embeddings") as f64 / original as f64;
            let multiplier = (1.0 + factor.ln() / (original as f64).ln()).sqrt();
            writer.set(&key("rope.scaling.original_context_length"), Meta::U32(original as u32));
            writer.set(&key("rope.scaling.attn_factor"), Meta::F32(multiplier as f32));
            for part in ["short", "long"] {
                let factors = scaling[format!("{part}_factor")].as_array().unwrap().iter();
                let factors: Vec<f32> = factors.map(|x| x.as_f64().unwrap() as f32).collect();
                writer.floats(&format!("rope_factors_{part}.weight"), &[factors.len()], &factors);
            }
        }
        Some("llama3") => {
            let factors = llama3_factors(config);
            writer.floats("rope_freqs.weight", &[factors.len()], &factors);
        }
        Some(kind) => {
            writer.set(&key("rope.scaling.type"), kind);
            number(writer, "rope.scaling.factor", &scaling["factor"]);
            number(writer, "rope.scaling.yarn_beta_fast", &scaling["beta_fast"]);
            number(writer, "rope.scaling.yarn_beta_slow", &scaling["beta_slow"]);
            if let Some(original) = scaling["original_max_position_embeddings"].as_u64() {
                let original = Meta::U32(original as u32);
                writer.set(&key("rope.scaling.original_context_length"), original);
            }
            number(writer, "rope.scaling.yarn_attn_factor", &scaling["attention_factor"]);
            if architecture == "mistral3" {
                number(writer, "rope.scaling.yarn_log_multiplier", &scaling["mscale_all_dim"]);
                number(writer, "attention.temperature_scale", &scaling["llama_4_scaling_beta"]);
            }
        }
    }
}

/// As `generate_extra_tensors` of the conversion computes them.
fn llama3_factors(config: &Value) -> Vec<f32> {
    let scaling = |key: &str| rope_parameters(config)[key].as_f64().unwrap();
    let dim = size(config, "head_dim");
    let base = config["rope_theta"].as_f64().unwrap();
    let original = scaling("original_max_position_embeddings");
    let (low, high) = (scaling("low_freq_factor"), scaling("high_freq_factor"));
    let factor = |i: usize| {
        let frequency = base.powf(-2.0 * i as f64 / dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            scaling("factor")
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / scaling("factor") + smooth)
        }
    };
    (0..dim / 2).map(|i| factor(i) as f32).collect()
}

fn add(writer: &mut Writer, architecture: &str, config: &Value, name: &str, tensor: &Tensor) {
    let to = name_in_gguf(name, architecture);
    let is_norm = to.contains("norm");
    let heads = match to.split('.').nth(2) {
        Some("attn_q") => Some(size(config, "num_attention_heads")),
        Some("attn_k") => Some(size(config, "num_key_value_heads")),
        _ => None,
    };
    if to.contains("_shexp") && tensor.shape()[0] == 1 {
        // As files have it that were written before llama.cpp kept such dimensions.
        writer.floats(&to, &tensor.shape()[1..], &tensor.to_vec_f32());
        return;
    }
    if is_norm || tensor.shape().len() == 1 {
        let plus_one = architecture.starts_with("gemma") || architecture.starts_with("qwen35");
        let plus = if is_norm && plus_one { 1.0 } else { 0.0 };
        let mut values: Vec<f32> = tensor.to_vec_f32().iter().map(|x| x + plus).collect();
        if let Some(heads) = heads.filter(|_| PERMUTED.contains(&architecture)) {
            values = permuted(&values, heads, 1);
        }
        writer.floats(&to, tensor.shape(), &values);
        return;
    }
    let kind = match tensor.dtype() {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 30,
    };
    let bytes = match heads.filter(|_| PERMUTED.contains(&architecture)) {
        Some(heads) => permuted(tensor.bytes(), heads, tensor.shape()[1] * tensor.dtype().size()),
        None => tensor.bytes().to_vec(),
    };
    writer.tensor(&to, kind, tensor.shape(), bytes);
}

fn name_in_gguf(name: &str, architecture: &str) -> String {
    match name {
        "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
        "model.norm.weight" => "output_norm.weight".to_owned(),
        "lm_head.weight" => "output.weight".to_owned(),
        _ if name.ends_with("self_attn.sinks") => {
            let layer = name.split('.').nth(2).unwrap();
            format!("blk.{layer}.attn_sinks.weight")
        }
        _ if name.ends_with("e_score_correction_bias") => {
            let layer = name.split('.').nth(2).unwrap();
            format!("blk.{layer}.exp_probs_b.bias")
        }
        _ => {
            let rest = name.strip_prefix("model.layers.").unwrap();
            let (layer, rest) = rest.split_once('.').unwrap();
            let (module, kind) = rest.rsplit_once('.').unwrap();
            let tensor = match (module, architecture) {
                (
                    "post_attention_layernorm",
                    "gemma2" | "gemma3" | "glm4moe" | "gpt-oss" | "olmo2" | "qwen35" | "qwen35moe",
                ) => "post_attention_norm",
                _ => OF_BLOCK.iter().find(|(from, _)| *from == module).unwrap().1,
            };
            format!("blk.{layer}.{tensor}.{kind}")
        }
    }
}

/// `weights.reshape(heads, 2, head_dim / 2, row).swapaxes(1, 2)`.
fn permuted<T: Copy>(values: &[T], heads: usize, row: usize) -> Vec<T> {
    let half = values.len() / row / heads / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for i in 0..half {
            for part in 0..2 {
                let from = (head * 2 * half + part * half + i) * row;
                out.extend_from_slice(&values[from..from + row]);
            }
        }
    }
    out
}
