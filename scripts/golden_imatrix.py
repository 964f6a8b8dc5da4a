"""Importance of columns as PyTorch computes it: crates/compress/tests/goldens/imatrix.json.

Of `../shared/models/stories260k` the mean of squares of what each linear layer reads, over rows of
tokens that this script makes up.

    python scripts/golden_imatrix.py
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "../shared/models/stories260k"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROWS = [[1] + [3 + (17 * i * i + 31 * i + 5 * row) % 509 for i in range(length)]
        for row, length in enumerate((40, 7, 100))]


def name_of(module):
    if module == "lm_head":
        return "token_embd.weight"
    _, _, block, rest = module.split(".", 3)
    return f"blk.{block}.{NAMES[rest]}.weight"


def main():
    model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
    sums = {}

    def watch(name):
        def hook(_module, inputs, _output):
            x = inputs[0].double().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, 0) + (x * x).sum(0)
        return hook

    for module, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(watch(name_of(module)))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    count = sum(len(row) for row in ROWS)
    tensors = {name: [float(f"{x / count:.6g}") for x in total.tolist()]
               for name, total in sorted(sums.items())}
    out = ROOT / "crates/compress/tests/goldens/imatrix.json"
    out.write_text(json.dumps({"rows": ROWS, "tensors": tensors}) + "\n")


main()
