//! Parts of models that are not supported: each is named, with what to do.

use crate::bad_models::check;
use crate::fixture::set_key;
use hone_model::families::supported;
use serde_json::json;
use std::path::Path;

const CASE: &str = "tied_gqa";

#[test]
fn parts_are_refused_by_their_names() {
    let names = supported().collect::<Vec<_>>().join(", ");
    for (model_type, key, value, part) in [
        ("deepseek_v3", "kv_lora_rank", 512, "multi-head latent attention (MLA)"),
        ("deepseek_v4", "hc_mult", 4, "hyper-connections"),
        ("llama", "index_topk", 2048, "a sparse indexer"),
        ("glm_moe_dsa", "index_n_heads", 32, "a sparse indexer"),
        ("bamba", "mamba_d_state", 128, "Mamba's state spaces"),
        ("nemotron_h", "ssm_state_size", 128, "Mamba's state spaces"),
        ("rwkv7", "rwkv_heads", 32, "RWKV's recurrence"),
        ("mllama_text_model", "cross_attention_layers", 8, "cross-attention"),
    ] {
        let change = |dir: &Path| {
            set_key(&dir.join("config.json"), "model_type", json!(model_type));
            set_key(&dir.join("config.json"), key, json!(value));
        };
        let problem = format!(
            "`{key}` is {value}: {part} is not supported yet; use a model without it, of one of \
             these families: {names}"
        );
        check(CASE, change, &format!("DIR/config.json: {problem}"));
    }
}

fn unlike(block: usize, kind: &str) -> String {
    format!(
        "`per_layer_config.{block}` is not what the others have, and only sizes that are the same \
         for all blocks {kind} a window are supported: use a configuration of a published model, \
         such as google/gemma-4-31B"
    )
}

/// Sizes of Gemma 4 that contradict each other, or that no block can have.
#[test]
fn impossible_blocks_of_gemma_4() {
    const SOURCE: &str = "take the file from the source of the weights";
    let sizes = |head_dim: usize| json!({"head_dim": head_dim, "num_key_value_heads": 1});
    for (case, key, value, problem) in [
        (
            "gemma4_moe",
            "top_k_experts",
            json!(6),
            format!(
                "`top_k_experts` must be at most 5 with num_experts 5, found 6: {SOURCE}"
            ),
        ),
        (
            "gemma4",
            "use_bidirectional_attention",
            json!("all"),
            "`use_bidirectional_attention` is \"all\", which is not supported; only \"vision\" and \
             null are: use a checkpoint with causal attention, such as google/gemma-4-31B"
                .to_owned(),
        ),
        (
            "gemma4",
            "global_head_dim",
            json!(31),
            format!(
                "`global_head_dim` must be even for rotary embeddings, found 31: {SOURCE}"
            ),
        ),
        (
            "gemma4",
            "per_layer_config",
            json!({"0": sizes(32), "2": sizes(16)}),
            unlike(2, "without"),
        ),
        (
            "gemma4",
            "per_layer_config",
            json!({"0": sizes(32), "1": sizes(32), "2": sizes(32)}),
            unlike(1, "with"),
        ),
        (
            "gemma4",
            "per_layer_config",
            json!({"0": sizes(64), "2": sizes(64)}),
            "`global_head_dim` is 32, but per_layer_config says 64 of blocks without a window: \
             remove the one that does not fit the weights"
                .to_owned(),
        ),
        (
            "gemma4_small",
            "num_kv_shared_layers",
            json!(4),
            format!(
                "`num_kv_shared_layers` is 4 of num_hidden_layers 5, so that block 1 would read \
                 the keys and values of an earlier block of full_attention, of which `layer_types` \
                 has none: {SOURCE}"
            ),
        ),
        (
            "gemma4_small",
            "vocab_size_per_layer_input",
            json!(42),
            format!(
                "`vocab_size_per_layer_input` must be at least vocab_size (43), found 42: {SOURCE}"
            ),
        ),
    ] {
        let change = |dir: &Path| set_key(&dir.join("config.json"), key, value);
        check(case, change, &format!("DIR/config.json: {problem}"));
    }
}
