"""Trains on real files as they are, and compares with transformers, PEFT and bitsandbytes.

    target/bench-venv/bin/python scripts/live_files.py [CASE ...]

SmolLM2-135M-Instruct (Q4_1) and Gemma 3 270M (Q4_K_M) from target/models, each if it is there:

- `NAME-greedy`: 24 tokens after each of 50 questions of GSM8K are those that transformers finds
  with the file's weights as f32, until its lead over the next one is below 1e-3 of the logits'
  range.
- `NAME-lora`: 200 LoRA steps on GSM8K, straight on the file's blocks. The evaluation loss is within
  1 % of PEFT's on the file's weights as f32, with the same initial adapter and the same rows in
  every step; the file is as before.
- `NAME-nf4`: the same on the weights as NF4; every step's loss is within 0.5 % of that of PEFT with
  bitsandbytes. 100 steps.
- `quantised`: a small model that transformers saves in NF4 with bitsandbytes, with and without
  double quantisation, and one in FP8 with scales of blocks: logits within 1e-4 of their range of
  those of the dequantised weights.
- `minilm`: 1,000 texts of banking77 by `hone embed` and all-MiniLM-L6-v2, against
  sentence-transformers, which it needs: no number is more than 1e-5 off.
- `nf4`: 100 random matrices, and those of SmolLM2, as NF4: every byte is bitsandbytes'.

What is in common with other such proofs is in `parity.py`. Figures are printed as they come.
"""

import argparse
import csv
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import bitsandbytes
import numpy
import parity
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = parity.ROOT
MODELS = ROOT / "target" / "models"
WORK = ROOT / "target" / "live-files"
FILES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
NUM_PROMPTS, NUM_TOKENS, MIN_MARGIN = 50, 24, 1e-3
NUM_MATRICES = 100
MINILM, NUM_TEXTS, MAX_EMBEDDING_DEVIATION = "all-MiniLM-L6-v2", 1000, 1e-5
MAX_SEQ_LEN, EVAL_ROWS = 256, 40
STEPS = {"lora": 200, "nf4": 100}
MAX_DEVIATION = {"lora": 0.01, "nf4": 0.005}
LEARNING_RATE = 2e-4


class Run:
    """Settings that `parity.train` reads."""

    learning_rate = LEARNING_RATE


def say(text):
    print(text, flush=True)


def file_of(name):
    return MODELS / FILES[name]


def nf4_config(double=True):
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_directory(name):
    """The file's model in Hugging Face layout, its weights as f32: once."""
    folder = WORK / name / "floats"
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        parity.hone("export", file_of(name), "--format", "hf", "--dtype", "f32", "--out", folder)
    return folder


def dequantised(name):
    """The file as transformers reads it, with its own code."""
    path = file_of(name)
    options = {"gguf_file": path.name, "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(str(path.parent), **options).eval()


def questions():
    path = parity.SHARED / "data" / "sft" / "gsm8k" / "test.jsonl"
    return [json.loads(line)["question"] for line in parity.read_lines(path)]


# -- greedy texts ----------------------------------------------------------------------------------


def greedy(model, tokenizer, prompt):
    """Tokens, and by how much each leads, as a share of the logits' range."""
    ids = tokenizer(prompt)["input_ids"]
    tokens, margins, cache = [], [], None
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    for _ in range(NUM_TOKENS):
        step = torch.tensor([tokens[-1:] or ids])
        with torch.no_grad():
            out = model(step, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[0, -1], out.past_key_values
        first, second = logits.topk(2).values
        token = int(logits.argmax())
        margins.append(float((first - second) / (logits.max() - logits.min())))
        if token in stops:
            break
        tokens.append(token)
    return tokens, margins


def compare_greedy(name):
    model = dequantised(name)
    tokenizer = AutoTokenizer.from_pretrained(as_directory(name))
    wrong, undecided = 0, 0
    for prompt in questions()[:NUM_PROMPTS]:
        tokens, margins = greedy(model, tokenizer, prompt)
        options = ["--max-new-tokens", str(NUM_TOKENS), "--temperature", "0", "--compute", "f32"]
        command = [parity.HONE, "generate", file_of(name), "--prompt", prompt, *options, "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)["text"]
        expected = tokenizer.decode(tokens, skip_special_tokens=True)
        if found == expected:
            continue
        # Up to the first token that hardly leads.
        close = [i for i, margin in enumerate(margins) if margin < MIN_MARGIN]
        sure = tokenizer.decode(tokens[: close[0]] if close else tokens, skip_special_tokens=True)
        if close and found.startswith(sure.rstrip("\ufffd")):
            undecided += 1
        else:
            wrong += 1
            say(f"{name}: {prompt!r}: {found!r} instead of {expected!r}")
    say(
        f"{name}-greedy: {NUM_PROMPTS - wrong - undecided} of {NUM_PROMPTS} texts of {NUM_TOKENS} "
        f"tokens equal, {undecided} until a lead below {MIN_MARGIN}, {wrong} not"
    )
    return wrong == 0


# -- NF4 -------------------------------------------------------------------------------------------


def random_matrices():
    """Of awkward sizes, some with numbers that are rare."""
    generator = torch.Generator().manual_seed(7)
    matrices = {}
    for i in range(NUM_MATRICES):
        rows, cols = torch.randint(1, 200, (2,), generator=generator).tolist()
        matrix = torch.randn(rows, cols, generator=generator) * 10.0 ** (i % 9 - 6)
        if i % 4 == 1:
            matrix = matrix**3
        elif i % 4 == 2:
            matrix = matrix.to(torch.bfloat16).float()
        elif i % 4 == 3:
            matrix[torch.rand(rows, cols, generator=generator) < 0.7] = 0.0
        matrices[f"{i:03}"] = matrix
    return matrices


def nf4_bytes(matrix):
    """bitsandbytes' tensors of a matrix, in the order in which Hone holds them."""
    weight, state = bitsandbytes.functional.quantize_4bit(
        matrix.contiguous(), quant_type="nf4", compress_statistics=True
    )
    parts = [state.state2.code, state.offset.reshape(1), state.state2.absmax, state.absmax, weight]
    return b"".join(part.contiguous().numpy().tobytes() for part in parts)


def compare_nf4():
    folder = WORK / "nf4"
    folder.mkdir(parents=True, exist_ok=True)
    smollm2 = load_file(as_directory("smollm2") / "model.safetensors")
    smollm2 = {name: value for name, value in smollm2.items() if "_proj" in name}
    wrong = 0
    for name, matrices in (("random", random_matrices()), ("smollm2", smollm2)):
        source, packed = folder / f"{name}.safetensors", folder / f"{name}.nf4"
        save_file(matrices, source)
        tool = ["cargo", "run", "--quiet", "--package", "xtask-tools", "--bin", "nf4", "--"]
        subprocess.run([*tool, source, packed], cwd=ROOT, check=True)
        found, start = packed.read_bytes(), 0
        for key in sorted(matrices):
            expected = nf4_bytes(matrices[key])
            if found[start : start + len(expected)] != expected:
                wrong += 1
                say(f"nf4: {name}: {key} {tuple(matrices[key].shape)} differs")
            start += len(expected)
        parity.expect(start == len(found), f"nf4: {name}: {len(found)} bytes instead of {start}")
        say(f"nf4: {name}: {len(matrices)} matrices, {start} bytes compared")
    return wrong == 0


# -- quantised repositories ------------------------------------------------------------------------


def save_floats(folder):
    torch.manual_seed(1)
    shape = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=49_152, initializer_range=0.2, **shape, **heads)
    LlamaForCausalLM(config).float().save_pretrained(folder)


def save_nf4(floats, folder, double=True):
    """Returns what bitsandbytes' weights are as floats, by name."""
    settings = {"quantization_config": nf4_config(double)}
    options = {**settings, "dtype": torch.float32, "device_map": "cpu"}
    AutoModelForCausalLM.from_pretrained(floats, **options).save_pretrained(folder)
    tensors, values = load_file(folder / "model.safetensors"), {}
    for name in tensors:
        prefix = f"{name}."
        parts = {key: part for key, part in tensors.items() if key.startswith(prefix)}
        if parts:
            parts = {key.removeprefix(prefix): part for key, part in parts.items()}
            state = bitsandbytes.functional.QuantState.from_dict(parts, device="cpu")
            values[name] = bitsandbytes.functional.dequantize_4bit(tensors[name], state).float()
    return values


def save_fp8(floats, folder):
    """As repositories have it: a scale for each 128 x 128 weights. Returns the values, by name."""
    tensors, values = {}, {}
    for name, weight in load_file(floats / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        scales = torch.zeros([-(-size // 128) for size in weight.shape])
        scaled = torch.zeros_like(weight)
        for i, j in itertools.product(*map(range, scales.shape)):
            block = (slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1)))
            scales[i, j] = weight[block].abs().max() / 448
            scaled[block] = weight[block] / scales[i, j]
        tensors[name] = scaled.to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
        values[name] = tensors[name].float() * spread(scales, weight.shape)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((floats / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    return values


def spread(scales, shape):
    scales = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return scales[: shape[0], : shape[1]]


def compare_quantised():
    folder = WORK / "quantised"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("Once upon a time there was a little girl who liked to read. " * 3)
    floats = folder / "floats"
    save_floats(floats)
    passed = True
    plain = functools.partial(save_nf4, double=False)
    for name, save in (("nf4", save_nf4), ("nf4-plain", plain), ("fp8", save_fp8)):
        values = save(floats, folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(as_directory("smollm2") / file, folder / name)
        logits, tokens = parity.hone_logits(text, folder, folder / name)
        model = parity.load_base(floats)
        model.load_state_dict({**model.state_dict(), **values})
        with torch.no_grad():
            found = model(input_ids=tokens[None]).logits[0]
        worst = ((found - logits).abs().max() / (logits.max() - logits.min())).item()
        say(f"quantised: {name}: {len(values)} matrices, logits off by {worst:.1e} of their range")
        passed &= worst <= parity.MAX_LOGIT_DEVIATION
    return passed


# -- embeddings -----------------------------------------------------------------------------------


def compare_embeddings():
    from sentence_transformers import SentenceTransformer

    folder = WORK / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    with open(parity.SHARED / "data" / "classify" / "banking77" / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:NUM_TEXTS]
    texts = [" ".join(row["text"].split()) for row in rows]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    out = folder / "embeddings.npy"
    command = [parity.HONE, "embed", MODELS / MINILM, folder / "texts.txt", "--out", out]
    subprocess.run(command, check=True)
    expected = SentenceTransformer(str(MODELS / MINILM), device="cpu").encode(texts)
    worst = float(abs(numpy.load(out) - expected).max())
    say(f"minilm: {len(texts)} texts, at most {worst:.1e} off")
    return worst <= MAX_EMBEDDING_DEVIATION


# -- training --------------------------------------------------------------------------------------


def write_data(folder, tokenizer):
    files = {split: folder / f"{split}.jsonl" for split in ("train", "eval")}
    for split, source, limit in (("train", "train", 1000), ("eval", "test", EVAL_ROWS)):
        path = parity.SHARED / "data" / "sft" / "gsm8k" / f"{source}.jsonl"
        lines = parity.read_lines(path)
        kept = [line for line in lines if parity.has_target(line, tokenizer, MAX_SEQ_LEN)]
        files[split].write_text("\n".join(kept[:limit]) + "\n", encoding="utf-8")
    return files


def write_run_file(folder, model, files, num_steps):
    tables = {
        "model": model,
        "data": {
            "train": [str(files["train"])],
            "eval": [str(files["eval"])],
            "format": "prompt_completion",
            "prompt_field": "question",
            "completion_field": "answer",
            "max_seq_len": MAX_SEQ_LEN,
            "overlong": "truncate",
        },
        "adapter": {
            "kind": "lora",
            "rank": 8,
            "alpha": 16,
            "target_modules": "all-linear",
            "init_from": str(folder / "init"),
        },
        "train": {
            "max_steps": num_steps,
            "batch_tokens": MAX_SEQ_LEN,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": parity.WARMUP_STEPS,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "seed": 42,
        },
        "schedule": {"kind": "cosine"},
        "report": {"samples": 0},
        "output": {"dir": str(folder / "run")},
    }
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]"] + [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path = folder / "run.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def peft_base(name, kind):
    if kind == "lora":
        return dequantised(name)
    options = {"quantization_config": nf4_config(), "dtype": torch.float32, "device_map": "cpu"}
    return AutoModelForCausalLM.from_pretrained(as_directory(name), **options).train()


def compare_training(name, kind):
    num_steps, folder = STEPS[kind], WORK / name / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(as_directory(name))
    base = peft_base(name, kind)
    torch.manual_seed(42)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    get_peft_model(base, config).save_pretrained(folder / "init")
    del base

    files = write_data(folder, tokenizer)
    source = file_of(name) if kind == "lora" else as_directory(name)
    before = digest(source) if source.is_file() else None
    model = {"path": str(source), "compute": "f32"}
    if kind == "nf4":
        model["base_precision"] = "nf4"
    started = time.monotonic()
    parity.hone("train", write_run_file(folder, model, files, num_steps))
    say(f"{name}-{kind}: Hone took {time.monotonic() - started:.0f} s")
    if before and digest(source) != before:
        say(f"{name}-{kind}: {source} was changed")
        return False
    steps = [line["micro_batches"] for line in parity.read_jsonl(folder / "run" / "rows.jsonl")]
    metrics = parity.read_jsonl(folder / "run" / "metrics.jsonl")
    evaluation = parity.read_jsonl(folder / "run" / "eval.jsonl")[-1]
    rows, eval_rows = (
        parity.prompt_completion_rows(files[split], tokenizer, MAX_SEQ_LEN)
        for split in ("train", "eval")
    )
    parity.expect(
        evaluation["num_target_tokens"] == parity.num_targets(eval_rows),
        f"{name}: Hone evaluates {evaluation['num_target_tokens']} target tokens, "
        f"PEFT {parity.num_targets(eval_rows)}",
    )

    model = PeftModel.from_pretrained(peft_base(name, kind), folder / "init", is_trainable=True)
    # Nothing is dropped out. In `eval` bitsandbytes packs weights anew for a product in bf16, which
    # has no gradient, and says so only in a warning.
    model = model.train() if kind == "nf4" else model.eval()
    started = time.monotonic()
    untrained = parity.evaluate(model, eval_rows)
    losses, _ = parity.train(model, Run, rows, steps)
    loss = parity.evaluate(model, eval_rows)
    say(f"{name}-{kind}: PEFT took {time.monotonic() - started:.0f} s")
    of_steps = max(parity.deviations([line["loss"] for line in metrics], losses))
    deviation = parity.deviation(evaluation["loss"], loss)
    say(
        f"{name}-{kind}: evaluation loss {untrained:.4f} before {num_steps} steps, then Hone "
        f"{evaluation['loss']:.4f}, PEFT {loss:.4f}, off by {deviation:.1e}; losses of steps off "
        f"by up to {of_steps:.1e}"
    )
    worst = deviation if kind == "lora" else max(of_steps, deviation)
    return worst <= MAX_DEVIATION[kind]


def main():
    cases = {"nf4": compare_nf4, "quantised": compare_quantised, "minilm": compare_embeddings}
    for name in FILES:
        cases[f"{name}-greedy"] = lambda name=name: compare_greedy(name)
        cases[f"{name}-lora"] = lambda name=name: compare_training(name, "lora")
    cases["smollm2-nf4"] = lambda: compare_training("smollm2", "nf4")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[[], *cases])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parity.expect(parity.HONE.is_file(), "no target/release/hone: `cargo build --release` first")
    passed = True
    for case in arguments.cases or cases:
        name = case.partition("-")[0]
        name = name if name in FILES else "smollm2"
        file = MODELS / MINILM if case == "minilm" else file_of(name)
        if not file.exists():
            say(f"{case}: skipped: no {file}; `cargo xtask models [gemma3|minilm]` fetches it")
            continue
        good = cases[case]()
        say(f"{case}: {'passes' if good else 'FAILS'}")
        passed &= good
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
