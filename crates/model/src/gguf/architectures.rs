//! The architectures that are read, each a row of a table: its family, which keys of the metadata
//! are which keys of the family's `config.json`, and how its weights were changed for the file.

use super::metadata::Metadata;
use crate::raw_config::ConfigError;

/// An architecture of GGUF files.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// `general.architecture`, and the beginning of its keys.
    pub(super) name: &'static str,
    /// The family, and the class in transformers.
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    /// Keys besides [`COMMON`], without the architecture's name, and the configuration's. Not all
    /// have to be there.
    pub(super) keys: &'static [(&'static str, &'static str)],
    /// Keys of the configuration that are true.
    pub(super) flags: &'static [&'static str],
    /// Whether the configuration says which projections have biases; the file's tensors show it.
    pub(super) biases: Biases,
    /// Whether rotary embeddings turn neighbouring rows of query and key instead of the two halves
    /// of a head: the rows have that order in the file.
    pub(super) turns_neighbours: bool,
    /// Whether the file holds the weights of norms plus one.
    pub(super) norms_plus_one: bool,
}

/// Keys of a configuration that say which projections have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Biases {
    /// `attention_bias` and `mlp_bias`.
    Everywhere,
    /// `attention_bias`.
    InAttention,
    /// None: the family knows them.
    Known,
}

/// Keys of all architectures; those without a default must be there.
pub(super) const COMMON: [(&str, &str); 5] = [
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
];

/// Keys of all architectures that may be absent.
pub(super) const COMMON_OPTIONAL: [(&str, &str); 3] = [
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
];

/// What most architectures have in common; the rest is of none.
const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    class: "",
    keys: &[],
    flags: &[],
    biases: Biases::Known,
    turns_neighbours: false,
    norms_plus_one: false,
};

static ARCHITECTURES: [Architecture; 18] = [
    // Mistral's files are Llama's too, and Mixtral's: see [`MIXTRAL`].
    Architecture {
        name: "llama",
        model_type: "llama",
        class: "LlamaForCausalLM",
        keys: &[],
        biases: Biases::Everywhere,
        turns_neighbours: true,
        ..PLAIN
    },
    // For Mistral Small see [`MISTRAL_SMALL`].
    Architecture {
        name: MISTRAL3,
        model_type: MINISTRAL3,
        class: "Ministral3ForCausalLM",
        turns_neighbours: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        keys: &[],
        biases: Biases::Known,
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        keys: &[],
        biases: Biases::InAttention,
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        keys: &[
            ("expert_count", "num_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
        ],
        flags: &["norm_topk_prob"],
        biases: Biases::InAttention,
        ..PLAIN
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        keys: &[
            ("attention.sliding_window", "sliding_window"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        biases: Biases::InAttention,
        norms_plus_one: true,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        keys: &[
            ("attention.sliding_window", "sliding_window"),
            ("rope.freq_base_swa", "rope_local_base_freq"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        biases: Biases::InAttention,
        norms_plus_one: true,
        ..PLAIN
    },
    Architecture {
        name: "smollm3",
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        keys: &[],
        biases: Biases::Everywhere,
        turns_neighbours: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        keys: &[
            ("expert_count", "num_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ],
        biases: Biases::Known,
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        keys: &[("attention.sliding_window", "sliding_window")],
        biases: Biases::Known,
        ..PLAIN
    },
    // OLMo 3's files too, which have windows.
    Architecture {
        name: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        keys: &[("attention.sliding_window", "sliding_window")],
        biases: Biases::InAttention,
        ..PLAIN
    },
    Architecture {
        name: "olmoe",
        model_type: "olmoe",
        class: "OlmoeForCausalLM",
        keys: &[("expert_count", "num_experts"), ("expert_used_count", "num_experts_per_tok")],
        biases: Biases::InAttention,
        ..PLAIN
    },
    // Turns neighbouring rows, as its family does: the rows are as there.
    Architecture {
        name: "glm4",
        model_type: "glm4",
        class: "Glm4ForCausalLM",
        keys: &[],
        biases: Biases::InAttention,
        ..PLAIN
    },
    Architecture {
        name: GLM4_MOE,
        model_type: "glm4_moe",
        class: "Glm4MoeForCausalLM",
        keys: &[
            ("expert_count", "n_routed_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_shared_count", "n_shared_experts"),
            ("leading_dense_block_count", "first_k_dense_replace"),
            ("expert_group_count", "n_group"),
            ("expert_group_used_count", "topk_group"),
            ("expert_weights_scale", "routed_scaling_factor"),
        ],
        biases: Biases::InAttention,
        ..PLAIN
    },
    Architecture {
        name: "qwen35",
        model_type: "qwen3_5_text",
        class: "Qwen3_5ForCausalLM",
        keys: &[
            ("ssm.conv_kernel", "linear_conv_kernel_dim"),
            ("ssm.state_size", "linear_key_head_dim"),
            ("ssm.group_count", "linear_num_key_heads"),
            ("ssm.time_step_rank", "linear_num_value_heads"),
            ("ssm.inner_size", DELTA_WIDTH),
            ("full_attention_interval", "full_attention_interval"),
        ],
        biases: Biases::Known,
        norms_plus_one: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen35moe",
        model_type: "qwen3_5_moe_text",
        class: "Qwen3_5MoeForCausalLM",
        keys: &[
            ("ssm.conv_kernel", "linear_conv_kernel_dim"),
            ("ssm.state_size", "linear_key_head_dim"),
            ("ssm.group_count", "linear_num_key_heads"),
            ("ssm.time_step_rank", "linear_num_value_heads"),
            ("ssm.inner_size", DELTA_WIDTH),
            ("full_attention_interval", "full_attention_interval"),
            ("expert_count", "num_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ],
        biases: Biases::Known,
        norms_plus_one: true,
        ..PLAIN
    },
    Architecture {
        name: "granite",
        model_type: "granite",
        class: "GraniteForCausalLM",
        keys: &[
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ],
        biases: Biases::Everywhere,
        turns_neighbours: true,
        ..PLAIN
    },
    Architecture {
        name: GPT_OSS,
        model_type: "gpt_oss",
        class: "GptOssForCausalLM",
        keys: &[
            ("expert_count", "num_local_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "intermediate_size"),
            ("attention.sliding_window", "sliding_window"),
        ],
        biases: Biases::InAttention,
        ..PLAIN
    },
];

/// Files of Llama's architecture that have experts.
static MIXTRAL: Architecture = Architecture {
    name: "llama",
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    keys: &[("expert_count", "num_local_experts"), ("expert_used_count", "num_experts_per_tok")],
    turns_neighbours: true,
    ..PLAIN
};

/// Files of Mistral Small from 3.1 on, which have no YaRN: Llama's but for the name.
static MISTRAL_SMALL: Architecture = Architecture {
    name: MISTRAL3,
    model_type: "llama",
    class: "LlamaForCausalLM",
    biases: Biases::Everywhere,
    turns_neighbours: true,
    ..PLAIN
};

/// What the type of files that hold an adapter is.
pub(super) const ADAPTER: &str = "adapter";

/// The architecture of Ministral 3 and of newer Mistral Small.
pub(super) const MISTRAL3: &str = "mistral3";

/// The family of Ministral 3.
pub(super) const MINISTRAL3: &str = "ministral3";

/// The key of what Ministral 3's queries grow by.
pub(super) const QUERY_GROWTH: &str = "attention.temperature_scale";

/// The architecture of gpt-oss, whose files have some things their own way.
pub(super) const GPT_OSS: &str = "gpt-oss";

/// The architecture of GLM-4 with experts, whose files say more of its router than others.
pub(super) const GLM4_MOE: &str = "glm4moe";

/// Architectures that name the norm before the MLP by where it stands, and not by what it is of.
pub(super) const MLP_NORM_BY_PLACE: [&str; 4] = [GPT_OSS, GLM4_MOE, "qwen35", "qwen35moe"];

/// What is divided among the value heads of gated delta nets.
pub(super) const DELTA_WIDTH: &str = "linear_value_width";

/// The architecture of files that hold models of this `model_type`; `None`: there is none that is
/// read.
pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Architecture> {
    let model_type = match model_type {
        "mistral" => "llama",
        "olmo3" => "olmo2",
        "qwen3_5" => "qwen3_5_text",
        "qwen3_5_moe" => "qwen3_5_moe_text",
        "gemma3" => "gemma3_text",
        other => other,
    };
    let mut all = ARCHITECTURES.iter().chain([&MIXTRAL]);
    all.find(|architecture| architecture.model_type == model_type)
}

/// The architecture that a file names.
pub(super) fn of(metadata: &Metadata<'_>) -> Result<&'static Architecture, ConfigError> {
    let key = "general.type";
    match metadata.text(key)? {
        None | Some("model") => {}
        Some(ADAPTER) => {
            let problem = "is `adapter`, and this is the model's place: give the model that it was \
                           trained for, and this file with --adapter";
            return Err(metadata.error(key, problem));
        }
        Some(other) => {
            let problem =
                format!("is `{other}`, and only models are read: give the model's own file");
            return Err(metadata.error(key, problem));
        }
    }
    let key = "general.architecture";
    let Some(name) = metadata.text(key)? else {
        let problem = "is missing, so nothing says how the tensors are used: fetch the model again";
        return Err(metadata.error(key, problem));
    };
    if name == MIXTRAL.name && metadata.size("llama.expert_count")?.is_some_and(|n| n > 0) {
        return Ok(&MIXTRAL);
    }
    let is_set = |key| metadata.get(&format!("{name}.{key}")).is_some();
    if name == MISTRAL_SMALL.name && !is_set("rope.scaling.type") && !is_set(QUERY_GROWTH) {
        return Ok(&MISTRAL_SMALL);
    }
    ARCHITECTURES.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        let names = names.join(", ");
        metadata.error(key, format!("is `{name}`, which is not supported yet; supported: {names}"))
    })
}
