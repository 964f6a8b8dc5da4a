//! Parts of models that are not supported: each is named, with what to do.

use crate::bad_models::check;
use crate::fixture::set_key;
use hone_model::families::supported;
use serde_json::json;
use std::path::Path;

const CASE: &str = "tied_gqa";

#[test]
fn parts_are_refused_by_their_names() {
    for (key, value, part) in [
        ("hidden_size_per_layer_input", json!(8), "embeddings of each block are"),
        ("num_kv_shared_layers", json!(1), "keys and values of other blocks are"),
        ("enable_moe_block", json!(true), "experts beside a dense MLP are"),
    ] {
        let problem = format!(
            "`{key}` is {value}: {part} not supported yet; use a model without, such as \
             google/gemma-4-31B"
        );
        let change = |dir: &Path| set_key(&dir.join("config.json"), key, value);
        check("gemma4", change, &format!("DIR/config.json: {problem}"));
    }
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
