//! Unusable models with experts: the full text of each error message.

use crate::bad_models::{BOTH, SOURCE, check};
use crate::fixture::{rewrite, set_key};
use serde_json::json;
use std::path::Path;

#[test]
fn unusable_experts() {
    let list = "must be a list of blocks below num_hidden_layers (3), found";
    let ruled_out = |problem: &str| format!("{problem}: {SOURCE}");
    for (key, value, problem) in [
        ("num_experts", json!(1025), ruled_out("must be at most 1024, found 1025")),
        (
            "num_experts_per_tok",
            json!(7),
            ruled_out("must be at most 6 with num_experts 6, found 7"),
        ),
        (
            "decoder_sparse_step",
            json!(0),
            "must be a whole number from 1 to 2147483647, found 0".into(),
        ),
        ("mlp_only_layers", json!([3]), ruled_out(&format!("{list} [3]"))),
        ("mlp_only_layers", json!([-1]), ruled_out(&format!("{list} [-1]"))),
        ("mlp_only_layers", json!(1), ruled_out(&format!("{list} 1"))),
        ("norm_topk_prob", json!(1), "must be true or false, found 1".into()),
        (
            "shared_expert_intermediate_size",
            json!(8),
            "is 8, but Hone does not know this key, \
            which may change what the model computes: remove it if transformers does not read it \
            for this family"
                .into(),
        ),
    ] {
        let change = |dir: &Path| set_key(&dir.join("config.json"), key, value.clone());
        check("qwen3_moe", change, &format!("DIR/config.json: `{key}` {problem}"));
    }
    check(
        "qwen3_moe",
        |dir| set_key(&dir.join("config.json"), "num_experts", json!(7)),
        &format!(
            "DIR/model.safetensors: tensor `model.layers.0.mlp.gate.weight` has shape [6, 24], but \
             the configuration requires [7, 24]. {BOTH}"
        ),
    );
    let third = "model.layers.0.mlp.experts.3.up_proj.weight";
    let narrow = |dir: &Path| {
        rewrite(&dir.join("model.safetensors"), |tensors| {
            let (_, shape, bytes) = tensors.get_mut(third).unwrap();
            bytes.truncate(bytes.len() / shape[0] * (shape[0] - 1));
            shape[0] -= 1;
        });
    };
    check(
        "qwen3_moe",
        narrow,
        &format!(
            "DIR/model.safetensors: tensor `{third}` has shape [9, 24], but the configuration \
             requires [10, 24]. {BOTH}"
        ),
    );
    check(
        "qwen3_moe",
        |dir| rewrite(&dir.join("model.safetensors"), |tensors| drop(tensors.remove(third))),
        &format!(
            "DIR/model.safetensors: tensor `{third}` is missing, but the configuration \
             requires it. {BOTH}"
        ),
    );
}

#[test]
fn settings_of_single_families() {
    for (case, key, value, problem) in [
        (
            "glm4_moe",
            "n_group",
            json!(3),
            "must divide n_routed_experts (8), found 3: take the file from the source of the \
             weights",
        ),
        (
            "glm4_moe",
            "topk_group",
            json!(1),
            "must be from 2, in which a token finds num_experts_per_tok (3) experts, to n_group \
             (4), found 1: take the file from the source of the weights",
        ),
        (
            "olmoe",
            "clip_qkv",
            json!(8.0),
            "is 8.0: clipping of queries, keys and values is not supported",
        ),
        (
            "mixtral",
            "router_jitter_noise",
            json!(0.1),
            "is 0.1, which is not supported; only 0 is: set it to 0, which changes training alone",
        ),
        (
            "gpt_oss",
            "swiglu_limit",
            json!(5.0),
            "is 5.0, which is not supported; only 7 is: use a checkpoint that was trained with it",
        ),
        (
            "gpt_oss",
            "layer_types",
            json!(["sliding_attention", "chunked_attention"]),
            "has \"chunked_attention\" for block 1, which is not supported; only \
             \"full_attention\" and \"sliding_attention\" are: use a model without such blocks",
        ),
    ] {
        let change = |dir: &Path| set_key(&dir.join("config.json"), key, value);
        check(case, change, &format!("DIR/config.json: `{key}` {problem}"));
    }
}

#[test]
fn routing_functions_and_heads_of_delta_nets() {
    for (case, key, value, problem) in [
        (
            "glm4_moe",
            "scoring_func",
            json!("softmax"),
            "is `softmax`, which is not supported; only `sigmoid` is: use a \
             checkpoint that was trained with it",
        ),
        (
            "glm4_moe",
            "topk_method",
            json!("group_limited_greedy"),
            "is `group_limited_greedy`, which is not supported; only \
             `noaux_tc` is: use a checkpoint that was trained with it",
        ),
        (
            "qwen3_moe",
            "scoring_func",
            json!("sqrtsoftplus"),
            "is `sqrtsoftplus`, which is not supported; only `softmax` is: \
             use a checkpoint that was trained with it",
        ),
        (
            "qwen3_5",
            "linear_num_key_heads",
            json!(5),
            "must divide linear_num_value_heads (4), found 5: take the file from the source of \
             the weights",
        ),
        (
            "qwen3_5",
            "linear_conv_kernel_dim",
            json!(1),
            "must be from 2 to 8, found 1: take the file from the source of the weights",
        ),
    ] {
        let change = |dir: &Path| set_key(&dir.join("config.json"), key, value);
        check(case, change, &format!("DIR/config.json: `{key}` {problem}"));
    }
}

/// Few bytes of a configuration could otherwise describe millions of weights.
#[test]
fn more_experts_than_any_model_has() {
    let many = |num_layers: usize, num_experts: usize| {
        move |dir: &Path| {
            let config = dir.join("config.json");
            set_key(&config, "num_hidden_layers", json!(num_layers));
            set_key(&config, "num_experts", json!(num_experts));
        }
    };
    let problem = "must be at most 677 with num_hidden_layers 64, found 678";
    let expected = format!("DIR/config.json: `num_experts` {problem}: {SOURCE}");
    check("qwen3_moe", many(64, 678), &expected);
    check(
        "qwen3_moe",
        many(64, 677),
        &format!(
            "DIR/model.safetensors: tensor `model.layers.0.mlp.gate.weight` has shape [6, 24], but \
             the configuration requires [677, 24]. {BOTH}"
        ),
    );
}

#[test]
fn experts_in_one_tensor_that_are_too_few() {
    let fused = "model.layers.1.mlp.experts.gate_up_proj";
    let one_less = |dir: &Path| {
        rewrite(&dir.join("model.safetensors"), |tensors| {
            let (_, shape, bytes) = tensors.get_mut(fused).unwrap();
            bytes.truncate(bytes.len() / 5 * 4);
            shape[0] = 4;
        });
    };
    check(
        "qwen3_5_moe",
        one_less,
        &format!(
            "DIR/model.safetensors: tensor `{fused}` has shape [4, 14, 24], but the configuration \
             requires [5, 14, 24]. {BOTH}"
        ),
    );
}

/// Of a family whose files always have them so.
#[test]
fn experts_in_one_tensor_by_columns() {
    let fused = "model.layers.1.mlp.experts.gate_up_proj";
    let bias = format!("{fused}_bias");
    check(
        "gpt_oss",
        |dir| rewrite(&dir.join("model.safetensors"), |tensors| drop(tensors.remove(&bias))),
        &format!(
            "DIR/model.safetensors: tensor `{bias}` is missing, but the configuration \
             requires it. {BOTH}"
        ),
    );
    let by_rows = |dir: &Path| {
        rewrite(&dir.join("model.safetensors"), |tensors| {
            tensors.get_mut(fused).unwrap().1 = vec![5, 22, 24];
        });
    };
    check(
        "gpt_oss",
        by_rows,
        &format!(
            "DIR/model.safetensors: tensor `{fused}` has shape [5, 22, 24], but the configuration \
             requires [5, 24, 22]. {BOTH}"
        ),
    );
}
