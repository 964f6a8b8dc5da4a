"""Moves a Llama's weights off the grid of the file of few bits that they came from.

    PYTHON bench/off_grid.py MODEL OUT

MODEL and OUT are folders in Hugging Face layout; weights are written in f32. The model computes
the same afterwards, as far as f32 tells. Columns of the matrices after a norm are multiplied by its
gains, which become 1. Columns of `o_proj` and `down_proj` are divided by drawn factors from 0.8 to
1.25, by which the rows of `v_proj` and `up_proj` are multiplied. The last norm and the embedding
stay as they are, as the head is the embedding.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file

FOLLOWS = {
    "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
}


def pass_factors(tensors, config):
    draw = numpy.random.default_rng(1)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def factors(number):
        drawn = numpy.exp(draw.uniform(numpy.log(0.8), numpy.log(1.25), number))
        return drawn.astype(numpy.float32)

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        v, o = tensors[at + "self_attn.v_proj.weight"], tensors[at + "self_attn.o_proj.weight"]
        of_kv = factors(v.shape[0])
        v *= of_kv[:, None]
        # Heads that share a head of values follow one another.
        o /= numpy.repeat(of_kv.reshape(kv_heads, -1), heads // kv_heads, axis=0).reshape(-1)
        up, down = tensors[at + "mlp.up_proj.weight"], tensors[at + "mlp.down_proj.weight"]
        of_inner = factors(up.shape[0])
        up *= of_inner[:, None]
        down /= of_inner


def main(model, out):
    tensors = load_file(model / "model.safetensors")
    norms = [name for name in tensors if name.rsplit(".", 2)[-2] in FOLLOWS]
    for norm in norms:
        block, which, _ = norm.rsplit(".", 2)
        for matrix in FOLLOWS[which]:
            tensors[f"{block}.{matrix}.weight"] *= tensors[norm]
        tensors[norm] = numpy.ones_like(tensors[norm])
    pass_factors(tensors, json.loads((model / "config.json").read_text()))
    out.mkdir(exist_ok=True)
    for file in model.glob("*.json"):
        shutil.copy(file, out)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    print(f"{len(norms)} norms folded", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
