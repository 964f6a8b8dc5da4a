"""Counts the parameters of published models with transformers: each is built without memory from
its configuration, and its weights are added up, tied ones once, with the buffers in its files.

    target/bench-venv/bin/python scripts/count_published.py

Compares with `crates/model/tests/published.json`, and fails where a number differs.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

FILE = pathlib.Path(__file__).parent.parent / "crates/model/tests/published.json"
ENCODERS = ("bert", "distilbert", "modernbert", "roberta", "xlm-roberta")
# What these say changes no shape.
LEFT_OUT = ("auto_map", "dtype", "quantization_config", "torch_dtype")


def count(config):
    settings = {key: value for key, value in config.items() if key not in LEFT_OUT}
    described = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with_head = AutoModelForMaskedLM if config["model_type"] in ENCODERS else AutoModelForCausalLM
    with torch.device("meta"):
        model = with_head.from_config(described)
    stored = model.state_dict()
    buffers = (buffer for name, buffer in model.named_buffers() if name in stored)
    return sum(weight.numel() for weight in [*model.parameters(), *buffers])


def main():
    families = json.loads(FILE.read_text())["families"]
    wrong = 0
    for model in (model for family in families for model in family["models"]):
        counted = count(model["config"])
        is_right = counted == model["parameters"]
        wrong += not is_right
        print(f"{model['name']}: {counted}" + ("" if is_right else f", not {model['parameters']}"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
