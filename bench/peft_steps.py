"""Trains with PyTorch, transformers and PEFT, a few steps at a time, as a peer to measure against.

    target/bench-venv/bin/python bench/peft_steps.py SETTINGS.json

The settings name the model directory, the method, the element type, the number of threads, the
data and how many rows make a step. Prints a line of JSON when it is ready, and after that one for every line on
standard input, which holds the number of steps to run: their seconds and tokens (padding not
counted), and the peak of the process's memory. Started by `cargo xtask bench train`, which lets Hone and this process take turns.
"""

import json
import os
import resource
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
with open(sys.argv[1], encoding="utf-8") as file:
    SETTINGS = json.load(file)
os.environ["OMP_NUM_THREADS"] = str(SETTINGS["threads"])

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
IGNORED = -100


def load():
    """The model with its adapter, and the optimizer.

    Adapters are in f32, as PEFT has them unless told otherwise and as Hone has them;
    `bf16_adapters` puts them, and so their moments, into the model's own type.
    """
    dtype = DTYPES[SETTINGS["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(SETTINGS["model"], dtype=dtype)
    if SETTINGS["method"] == "lora":
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        in_f32 = not SETTINGS["bf16_adapters"]
        model = get_peft_model(model, config, autocast_adapter_dtype=in_f32)
    if SETTINGS["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, trained, torch.optim.AdamW(trained, lr=1e-4, fused=True)


def read_rows():
    """Rows of `(ids, first target)`, as Hone makes them: `text`, or `question` with `answer`."""
    tokenizer = AutoTokenizer.from_pretrained(SETTINGS["model"])
    rows = []
    with open(SETTINGS["data"], encoding="utf-8") as file:
        for record in map(json.loads, file):
            prompt = record.get("question", "")
            encoded = tokenizer(prompt + record.get("answer", record.get("text", "")),
                                return_offsets_mapping=True)
            ids = encoded["input_ids"] + [tokenizer.eos_token_id]
            ends = [end for _, end in encoded["offset_mapping"]] + [len(prompt) + 1]
            rows.append((ids, next(i for i, end in enumerate(ends) if end > len(prompt))))
    return rows


def batch(rows):
    """Rows padded to the longest, with labels where a target is."""
    longest = max(len(ids) for ids, _ in rows)
    shape = (len(rows), longest)
    ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, (row, first_target) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, first_target : len(row)] = ids[i, first_target : len(row)]
    # Without padding there is no mask to apply, which is faster.
    padded = {"attention_mask": mask} if mask.min() == 0 else {}
    return {"input_ids": ids, "labels": labels, **padded}


def main():
    torch.set_num_threads(SETTINGS["threads"])
    torch.manual_seed(1)
    model, trained, optimizer = load()
    rows, per_step = read_rows(), SETTINGS["rows_per_step"]
    batches = [batch(rows[i : i + per_step]) for i in range(0, len(rows), per_step)]
    done = 0

    def step():
        nonlocal done
        inputs = batches[done % len(batches)]
        start = time.perf_counter()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        tokens = len(inputs["labels"].flatten())
        if "attention_mask" in inputs:
            tokens = int(inputs["attention_mask"].sum())
        return time.perf_counter() - start, tokens

    step()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seconds, tokens = zip(*(step() for _ in range(int(line))))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        done_now = {"seconds": sum(seconds), "tokens": sum(tokens), "peak_bytes": peak}
        print(json.dumps(done_now), flush=True)


main()
