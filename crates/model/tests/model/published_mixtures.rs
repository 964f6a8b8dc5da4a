//! Configurations of mixtures as their makers publish them: each is read, has the number of
//! parameters that the Hub counts in its weights, and the names that are in them.

use hone_model::DecoderConfig;
use serde_json::{Value, json};

/// Name, parameters that the Hub shows, one of the last expert's tensors, and `config.json` without
/// keys that no model reads.
type Published = (&'static str, usize, &'static str, Value);

pub fn published() -> impl Iterator<Item = Published> {
    qwen().into_iter().chain(qwen_with_delta_nets()).chain(others()).chain(gpt_oss())
}

fn qwen() -> [Published; 2] {
    [
        (
            "Qwen/Qwen3-30B-A3B",
            30_532_122_624,
            "model.layers.47.mlp.experts.127.down_proj.weight",
            json!({
                "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
                "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
                "num_key_value_heads": 4, "head_dim": 128, "hidden_act": "silu",
                "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
                "rope_scaling": null, "attention_bias": false, "attention_dropout": 0.0,
                "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768,
                "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true,
                "router_aux_loss_coef": 0.001, "output_router_logits": false,
                "max_window_layers": 48, "sliding_window": null, "use_sliding_window": false,
                "tie_word_embeddings": false, "bos_token_id": 151643, "eos_token_id": 151645
            }),
        ),
        (
            "Qwen/Qwen1.5-MoE-A2.7B",
            14_315_784_192,
            "model.layers.23.mlp.shared_expert_gate.weight",
            json!({
                "model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 2048,
                "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
                "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "attention_dropout": 0.0,
                "decoder_sparse_step": 1, "moe_intermediate_size": 1408, "norm_topk_prob": false,
                "shared_expert_intermediate_size": 5632, "num_experts": 60,
                "num_experts_per_tok": 4, "router_aux_loss_coef": 0.001,
                "output_router_logits": false, "max_window_layers": 21, "sliding_window": 32768,
                "use_sliding_window": false, "tie_word_embeddings": false,
                "bos_token_id": 151643, "eos_token_id": 151643
            }),
        ),
    ]
}

fn qwen_with_delta_nets() -> [Published; 2] {
    [
        (
            // Without the block for tokens after the next.
            "Qwen/Qwen3-Next-80B-A3B-Instruct",
            79_674_391_296,
            "model.layers.46.linear_attn.in_proj_qkvz.weight",
            json!({
                "model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048,
                "intermediate_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 16,
                "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu",
                "max_position_embeddings": 262144, "rms_norm_eps": 1e-6,
                "attention_bias": false, "attention_dropout": 0.0, "full_attention_interval": 4,
                "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
                "linear_value_head_dim": 128, "linear_num_key_heads": 16,
                "linear_num_value_heads": 32, "decoder_sparse_step": 1, "mlp_only_layers": [],
                "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
                "norm_topk_prob": true, "num_experts": 512, "num_experts_per_tok": 10,
                "output_router_logits": false, "router_aux_loss_coef": 0.001,
                "partial_rotary_factor": 0.25, "rope_scaling": null, "rope_theta": 10000000,
                "tie_word_embeddings": false, "bos_token_id": 151643, "eos_token_id": 151645
            }),
        ),
        (
            // Without its vision tower and the block for tokens after the next.
            "Qwen/Qwen3.5-35B-A3B",
            34_660_610_688,
            "model.layers.39.mlp.experts.255.down_proj.weight",
            json!({
                "model_type": "qwen3_5_moe_text", "vocab_size": 248320, "hidden_size": 2048,
                "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2,
                "head_dim": 256, "hidden_act": "silu", "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-6, "attention_bias": false, "attention_dropout": 0.0,
                "attn_output_gate": true, "full_attention_interval": 4,
                "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
                "linear_value_head_dim": 128, "linear_num_key_heads": 16,
                "linear_num_value_heads": 32, "mamba_ssm_dtype": "float32",
                "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
                "num_experts": 256, "num_experts_per_tok": 8, "router_aux_loss_coef": 0.001,
                "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": false,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                    "mrope_interleaved": true, "mrope_section": [11, 11, 10]
                },
                "tie_word_embeddings": false, "eos_token_id": 248044
            }),
        ),
    ]
}

fn gpt_oss() -> [Published; 2] {
    let config = |num_layers: usize, num_experts: usize| {
        let kind = |layer: usize| match layer.is_multiple_of(2) {
            true => "sliding_attention",
            false => "full_attention",
        };
        json!({
            "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880,
            "intermediate_size": 2880, "num_hidden_layers": num_layers,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
            "hidden_act": "silu", "max_position_embeddings": 131072,
            "initial_context_length": 4096, "rms_norm_eps": 1e-5, "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
                "original_max_position_embeddings": 4096, "truncate": false
            },
            "attention_bias": true, "attention_dropout": 0.0, "sliding_window": 128,
            "layer_types": (0..num_layers).map(kind).collect::<Vec<_>>(),
            "num_local_experts": num_experts, "num_experts_per_tok": 4, "experts_per_token": 4,
            "output_router_logits": false, "router_aux_loss_coef": 0.9, "swiglu_limit": 7.0,
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router",
                    "model.embed_tokens", "lm_head"
                ],
                "quant_method": "mxfp4"
            },
            "tie_word_embeddings": false, "eos_token_id": 200002, "pad_token_id": 199999
        })
    };
    let name = "model.layers.23.mlp.experts.31.down_proj.bias";
    [
        ("openai/gpt-oss-20b", 20_914_757_184, name, config(24, 32)),
        ("openai/gpt-oss-120b", 116_829_156_672, name, config(36, 128)),
    ]
}

fn others() -> [Published; 2] {
    [
        (
            "mistralai/Mixtral-8x7B-v0.1",
            46_702_792_704,
            "model.layers.31.block_sparse_moe.experts.7.w2.weight",
            json!({
                "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
                "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": null,
                "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": false,
                "router_aux_loss_coef": 0.02, "tie_word_embeddings": false, "bos_token_id": 1,
                "eos_token_id": 2
            }),
        ),
        (
            "allenai/OLMoE-1B-7B-0924",
            6_919_161_856,
            "model.layers.15.mlp.experts.63.up_proj.weight",
            json!({
                "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048,
                "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
                "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
                "attention_bias": false, "attention_dropout": 0.0, "clip_qkv": null,
                "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": false,
                "output_router_logits": false, "router_aux_loss_coef": 0.01,
                "tie_word_embeddings": false, "eos_token_id": 50279, "pad_token_id": 1
            }),
        ),
    ]
}

#[test]
fn published_mixtures_are_read() {
    for (name, expected, tensor, config) in published() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let config = DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.num_parameters(), expected, "{name}");
        assert!(config.weights().any(|weight| weight.name == tensor), "{name}: {tensor}");
    }
}
