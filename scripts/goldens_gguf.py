"""Logits and greedy answers of real GGUF files, as transformers computes them in f32.

usage: python scripts/goldens_gguf.py NAME FILE.gguf

Writes crates/train/tests/goldens/gguf/NAME.json: results only. Needs torch, transformers and gguf;
FILE is what `cargo xtask models` fetches, or another that the tests look for in target/models.
"""

import hashlib
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = (
    "Once upon a time there was a little girl who lived in a village near the forest. In 2023, "
    "sales rose by 12.5 % to 3,480 units; don't ask why. Ça va ? 你好!\n\n    return x[0]"
)
PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fib(n):",
    "1, 2, 3, 4,",
    "Water boils at",
    "My favourite colour is",
]
NUM_TOKENS = 16
# Logits of this many tokens, evenly spread over the vocabulary.
NUM_SAMPLED = 16
OUT = pathlib.Path(__file__).parent.parent / "crates/train/tests/goldens/gguf"


def main(name, path):
    path = pathlib.Path(path)
    folder, file = str(path.parent), path.name
    options = {"gguf_file": file, "dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    size = logits.shape[1]
    sampled = [i * size // NUM_SAMPLED for i in range(NUM_SAMPLED)]
    golden = {
        "file": file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "text": TEXT,
        "ids": ids,
        "range": float(logits.max() - logits.min()),
        "sampled": sampled,
        "logits": [[round(x, 5) for x in row] for row in logits[:, sampled].tolist()],
        "answers": [answer(model, tokenizer, prompt) for prompt in PROMPTS],
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


def answer(model, tokenizer, prompt):
    """Greedy tokens, and by how much each leads, as a share of the logits' range."""
    ids = tokenizer(prompt)["input_ids"]
    tokens, margins, cache = [], [], None
    for _ in range(NUM_TOKENS):
        step = torch.tensor([tokens[-1:] or ids])
        with torch.no_grad():
            out = model(step, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[0, -1], out.past_key_values
        first, second = logits.topk(2).values
        margins.append(round(float((first - second) / (logits.max() - logits.min())), 6))
        tokens.append(int(logits.argmax()))
    return {"prompt": prompt, "ids": ids, "tokens": tokens, "margins": margins}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
