"""Writes `crates/train/tests/goldens/preference.json` with TRL's trainers of DPO and KTO.

The model is the golden Llama `tied_gqa` of `crates/model/tests/goldens` with its adapter, both with
the weights that `random_weights.py` draws; the reference is that model without the adapter.
Everything is in f32. One batch each: loss, the metrics that TRL logs, and of every gradient its L2
norm and its product with cos(0), cos(1), …, which together hold a gradient fast without storing it.
Prompts and completions are words of the tests' tokenizer.

    target/bench-venv/bin/python scripts/goldens_preference.py
"""

import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports below, which read it

import random_weights
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "crates" / "model" / "tests" / "goldens" / "tied_gqa"
OUT = ROOT / "crates" / "train" / "tests" / "goldens" / "preference.json"
METRICS = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "kl"]


def tokenizer():
    """As `tiny_model.rs` writes it: `<unk>`, `<s>`, `</s>`, then the words `w3`, `w4`, …"""
    specials = ["<unk>", "<s>", "</s>"]
    vocab = {name: i for i, name in enumerate(specials)}
    vocab |= {f"w{i}": i for i in range(3, 53)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="<unk>"
    )


def words(start, count):
    return " ".join(f"w{3 + (i * i + 5 * start) % 47}" for i in range(start, start + count))


def pairs():
    """Prompts and answers of several lengths, two answers to each prompt."""
    return [
        {
            "prompt": words(i, 2 + i),
            "chosen": " " + words(10 + 3 * i, 1 + (2 * i) % 5),
            "rejected": " " + words(30 + 2 * i, 3 + i % 2),
        }
        for i in range(4)
    ]


def ratings(offset):
    """Rated answers; `offset` picks other words, and with them the sign of the KL estimate."""
    return [
        {
            "prompt": words(2 * i + offset, 1 + i % 3),
            "completion": " " + words(11 + 7 * i + offset, 2 + i % 4),
            "label": i % 3 != 1,
        }
        for i in range(6)
    ]


def policy(folder):
    model = Path(folder) / "model"
    if not model.exists():
        random_weights.write(GOLDEN, model)
        random_weights.write(GOLDEN / "adapter", model / "adapter")
    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, model / "adapter", is_trainable=True)


def one_batch(trainer, settings, rows):
    # Without its copy of the adapter, the reference is the base.
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    gradients = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.double().flatten()
            pattern = torch.arange(len(gradient), dtype=torch.float64).cos()
            key = name.replace(".default.", ".")
            gradients[key] = [rounded(gradient.norm()), rounded(gradient @ pattern)]
    return {
        "settings": settings,
        "rows": rows,
        "loss": rounded(loss),
        "metrics": {name: rounded(logged[name]) for name in METRICS if name in logged},
        "gradients": gradients,
    }


def rounded(value):
    return float(f"{float(value):.8g}")


def common(folder, rows):
    return {
        "output_dir": folder,
        "per_device_train_batch_size": len(rows),
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "gradient_checkpointing": False,
    }


def dpo(folder, beta):
    rows = pairs()
    args = DPOConfig(**common(folder, rows), beta=beta, train_sampling_strategy="sequential")
    data = Dataset.from_list(rows)
    trainer = DPOTrainer(
        policy(folder), args=args, train_dataset=data, processing_class=tokenizer()
    )
    return one_batch(trainer, {"beta": beta}, rows)


def kto(folder, offset, settings):
    rows = ratings(offset)
    args = KTOConfig(**common(folder, rows), **settings, train_sampling_strategy="sequential")
    data = Dataset.from_list(rows)
    trainer = KTOTrainer(
        policy(folder), args=args, train_dataset=data, processing_class=tokenizer()
    )
    return one_batch(trainer, settings, rows)


def main():
    with tempfile.TemporaryDirectory() as folder:
        goldens = {
            "dpo": [dpo(folder, 0.1), dpo(folder, 0.5)],
            "kto": [
                kto(folder, 0, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
                kto(folder, 3, {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7}),
            ],
        }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(goldens, indent=1) + "\n")


if __name__ == "__main__":
    main()
