"""A small model as compressed-tensors packs it, for `crates/model`.

usage: python scripts/goldens_packed.py

Needs torch, transformers 5.24 and compressed-tensors 0.20.1. Writes into crates/model/tests/goldens
`packed.json`, the model's configuration as compressed-tensors leaves it, and `packed.safetensors`:
the tensors of its file, and `values.<name>` with what it makes of each quantised matrix when scales
are taken to f32. Every projection is in another form: widths, groups, rows, whole matrices, FP8.
"""

import json
import tempfile
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

GOLDENS = Path(__file__).resolve().parent.parent / "crates" / "model" / "tests" / "goldens"


def ints(bits, group=None):
    strategy = "channel" if group is None else "group"
    return QuantizationArgs(num_bits=bits, type="int", strategy=strategy, group_size=group)


def fp8(strategy, **more):
    return QuantizationArgs(num_bits=8, type="float", strategy=strategy, **more)


TOKEN = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
STATIC = QuantizationArgs(num_bits=8, type="float", strategy="tensor")
# Of each projection of a block: weights and activations.
FORMS = {
    "layers.0.self_attn.q_proj": (ints(4, 32), None),
    "layers.0.self_attn.k_proj": (ints(4), None),
    "layers.0.self_attn.v_proj": (ints(8), None),
    "layers.0.self_attn.o_proj": (ints(8, 32), None),
    "layers.0.mlp.gate_proj": (ints(2), None),
    "layers.0.mlp.up_proj": (ints(5), None),
    "layers.0.mlp.down_proj": (ints(4, 64), None),
    "layers.1.self_attn.q_proj": (fp8("channel"), TOKEN),
    "layers.1.self_attn.k_proj": (fp8("tensor"), STATIC),
    "layers.1.self_attn.v_proj": (fp8("block", block_structure=[128, 128]), None),
    "layers.1.self_attn.o_proj": (ints(4, 16), None),
    "layers.1.mlp.gate_proj": (QuantizationArgs(num_bits=4, type="int", strategy="tensor"), None),
    "layers.1.mlp.up_proj": (ints(4, 32), None),
    "layers.1.mlp.down_proj": (ints(3, 32), None),
}


def set_scale(module):
    """The scale of the least and the largest weight of each group."""
    args, weight = module.quantization_scheme.weights, module.weight.detach()
    shape = module.weight_scale.shape
    if args.strategy in ("block", "tensor"):
        parts = weight.reshape(1, -1)
    else:
        parts = weight.reshape(-1, args.group_size or weight.shape[1])
    scale, _ = calculate_qparams(parts.amin(1), parts.amax(1), args)
    module.weight_scale.data.copy_(scale.reshape(shape))
    if hasattr(module, "input_scale"):
        module.input_scale.data.fill_(0.5)


def main():
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=False, dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    # A row and a group of zeros, and one too small for f16.
    model.model.layers[0].self_attn.q_proj.weight.data[3, :32] = 0
    model.model.layers[0].self_attn.v_proj.weight.data[5] = 0
    model.model.layers[1].mlp.up_proj.weight.data[7, :32] *= 1e-6
    groups = {
        f"group_{i}": QuantizationScheme(
            targets=[f"re:.*{name.replace('.', '[.]')}$"],
            weights=weights,
            input_activations=inputs,
        )
        for i, (name, (weights, inputs)) in enumerate(FORMS.items())
    }
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    modules = dict(model.model.named_modules())
    for name in FORMS:
        set_scale(modules[name])
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        compressor.update_config(folder)
        tensors.update(load_file(Path(folder) / "model.safetensors"))
        text = json.loads((Path(folder) / "config.json").read_text())
    for name in FORMS:
        module = modules[name]
        prefix = f"model.{name}."
        own = {key[len(prefix):]: x for key, x in tensors.items() if key.startswith(prefix)}
        own["weight_scale"] = own["weight_scale"].float()
        scheme = module.quantization_scheme
        found = BaseCompressor.get_value_from_registry(scheme.format.value).decompress(own, scheme)
        tensors[f"values.{prefix}weight"] = found["weight"].float().contiguous()
    save_file(tensors, GOLDENS / "packed.safetensors")
    (GOLDENS / "packed.json").write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
