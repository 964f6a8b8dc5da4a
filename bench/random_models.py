"""Writes models of random weights for `cargo xtask bench families`.

    target/bench-venv/bin/python bench/random_models.py NAME
    target/bench-venv/bin/python bench/random_models.py NAME-TYPE.gguf FOLDER
    target/bench-venv/bin/python bench/random_models.py masked FOLDER

The first form writes a folder NAME, of a shape in `SHAPES`, in bf16 and without a tokenizer. The
second writes a GGUF file of the Llama in FOLDER: its shape and its tokenizer, and random blocks of
TYPE (such as Q4_K) in place of its weights, since the `gguf` package packs few types. The third
writes the encoder in FOLDER, its tokenizer and a random head for masked tokens as `masked`, in bf16.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
# SmolLM-135M's.
LIKE_LLAMA = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
MIXTURE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32_768,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SHAPES = {
    # Qwen3-0.6B's.
    "qwen3-0.6B": ("qwen3", {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    }),
    # gemma-3-270m's.
    "gemma3-270m": ("gemma3_text", {
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "vocab_size": 262_144,
    }),
    "gemma2": ("gemma2", LIKE_LLAMA | {"query_pre_attn_scalar": 64, "sliding_window": 4096}),
    "phi3": ("phi3", LIKE_LLAMA),
    "olmo2": ("olmo2", LIKE_LLAMA),
    "smollm3": ("smollm3", LIKE_LLAMA),
    "glm4": ("glm4", LIKE_LLAMA | {"attention_bias": True, "partial_rotary_factor": 0.5}),
    "mixture": ("qwen3_moe", MIXTURE | {
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 192,
        "norm_topk_prob": True,
    }),
    # As many multiply-adds for a token.
    "mixture-dense": ("qwen3", MIXTURE | {"intermediate_size": 8 * 192}),
    "qwen3_5": ("qwen3_5_text", {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }),
    # TinyLlama's.
    "1B": ("llama", {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }),
}


def write_folder(name):
    model_type, shape = SHAPES[name]
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **TOKENS | shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(name, max_shard_size="100GB")


def write_masked(name, folder):
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(name)
    AutoTokenizer.from_pretrained(folder).save_pretrained(name)


# Where a block's scales lie, as f16; what they are is small, so that weights are too.
SCALES = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
SCALE = {"Q4_0": 0.005, "Q5_0": 0.0025, "Q8_0": 0.0003, "Q4_K": 1e-4, "Q5_K": 5e-5, "Q6_K": 3e-5}


def random_blocks(kind, shape, generator):
    """Bytes `[rows, row]` of a matrix."""
    per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = generator.integers(0, 256, (shape[0], shape[1] // per_block, size), numpy.uint8)
    if kind == "MXFP4":
        blocks[:, :, 0] = 119  # the exponent of a power of two, from -127 on
    for at in SCALES.get(kind, []):
        scale = numpy.float16(SCALE[kind]).tobytes()
        blocks[:, :, at : at + 2] = numpy.frombuffer(scale, numpy.uint8)
    return blocks.reshape(shape[0], -1)


def write_gguf(path, folder):
    kind = path.removesuffix(".gguf").rpartition("-")[2]
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    generator = numpy.random.default_rng(1)
    for name, shape in tensors(config):
        if len(shape) == 1:
            writer.add_tensor(name, numpy.ones(shape, numpy.float32))
        else:
            data = random_blocks(kind, shape, generator)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, tokenizer):
    vocab, special = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    tokens = {id: token for token, id in vocab.items()} | {t["id"]: t["content"] for t in special}
    specials = {token["id"] for token in special}
    kinds = [gguf.TokenType.CONTROL if id in specials else gguf.TokenType.NORMAL
             for id in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[id] for id in range(len(tokens))])
    writer.add_token_types(kinds)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(special[0]["id"])
    writer.add_eos_token_id(special[0]["id"])


def tensors(config):
    """Names and shapes, as files of this architecture have them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "token_embd.weight", [config["vocab_size"], hidden]
    yield "output_norm.weight", [hidden]
    for layer in range(config["num_hidden_layers"]):
        for name, shape in [
            ("attn_norm", [hidden]),
            ("ffn_norm", [hidden]),
            ("attn_q", [hidden, hidden]),
            ("attn_k", [kv, hidden]),
            ("attn_v", [kv, hidden]),
            ("attn_output", [hidden, hidden]),
            ("ffn_gate", [inner, hidden]),
            ("ffn_up", [inner, hidden]),
            ("ffn_down", [hidden, inner]),
        ]:
            yield f"blk.{layer}.{name}.weight", shape


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_folder(sys.argv[1])
    elif sys.argv[1] == "masked":
        write_masked(*sys.argv[1:])
    else:
        write_gguf(sys.argv[1], Path(sys.argv[2]))
