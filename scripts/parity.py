"""Trains the same thing with Hone and with PEFT, and compares what comes out.

Four runs of stories260k, {full, LoRA} x {tinyshakespeare, GSM8K}, in f32 with the same settings,
the same initial adapter and the same rows in every step, which Hone tells in `rows.jsonl`.
Tokenising, batching, loss, optimizer and evaluation here are PyTorch's and PEFT's own. Passes when
the evaluation losses at the end and all training losses are within 1 %, and when transformers and
PEFT, reading the weights that Hone wrote, find Hone's own evaluation loss. The figures go to
`docs/benchmarks`.

    target/bench-venv/bin/python scripts/parity.py [RUN ...]
    target/bench-venv/bin/python scripts/parity.py --check-export RUN_DIR

The second form checks that PEFT, reading a run's adapter, and transformers, reading the merged
export, give Hone's logits within 1e-4 of their range.

Left out: speed. Small goldens for ordinary tests come from `goldens.py`.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports below, which read it

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BASE = SHARED / "models" / "stories260k"
HONE = ROOT / "target" / "release" / "hone"
WORK = ROOT / "target" / "parity"

MAX_LOSS_DEVIATION = 0.01  # in every step too: AdamW would hide a wrong denominator at the end
MAX_REREAD_DEVIATION = 1e-5  # same weights, both in f32: only the order of sums differs
MAX_LOGIT_DEVIATION = 1e-4
GSM8K_EVAL_ROWS = 200
WARMUP_STEPS, MAX_STEPS = 20, 200
EVAL_BATCH = 16


@dataclass
class Run:
    """One configuration, trained by both."""

    data: str
    method: str
    max_seq_len: int
    batch_tokens: int

    @property
    def name(self):
        return f"{self.data}-{self.method}"

    @property
    def folder(self):
        return WORK / self.name

    @property
    def learning_rate(self):
        return 2e-3 if self.method == "lora" else 1e-3

    @property
    def data_files(self):
        suffix = "txt" if self.data == "shakespeare" else "jsonl"
        return {split: WORK / f"{self.data}-{split}.{suffix}" for split in ("train", "eval")}


RUNS = [
    Run(data, method, max_seq_len, batch_tokens)
    for data, max_seq_len, batch_tokens in (("shakespeare", 256, 4096), ("gsm8k", 512, 2048))
    for method in ("full", "lora")
]


# -- data: the record definitions of the run file, written a second time ---------------------------


def write_shakespeare(files):
    """First 90 % for training, the rest for evaluation, cut at a line's end."""
    text = (SHARED / "data" / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = text.rindex("\n", 0, len(text) * 9 // 10) + 1
    files["train"].write_text(text[:cut], encoding="utf-8")
    files["eval"].write_text(text[cut:], encoding="utf-8")


def write_gsm8k(files, tokenizer, max_seq_len):
    """Rows whose prompt alone fills `max_seq_len` are left out: Hone refuses them by design."""
    for split, source, limit in (("train", "train", None), ("eval", "test", GSM8K_EVAL_ROWS)):
        path = SHARED / "data" / "sft" / "gsm8k" / f"{source}.jsonl"
        lines = read_lines(path)
        kept = [line for line in lines if has_target(line, tokenizer, max_seq_len)][:limit]
        files[split].write_text("\n".join(kept) + "\n", encoding="utf-8")


def read_lines(path):
    """Only a newline ends a line: JSON may hold the other separators that `splitlines` knows."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def has_target(line, tokenizer, max_seq_len):
    return any(prompt_completion_row(json.loads(line), tokenizer, max_seq_len)[1])


def text_rows(path, tokenizer, max_seq_len):
    """Disjoint windows of the document and its end-of-text token, each without its first target."""
    text = path.read_text(encoding="utf-8")
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    windows = [ids[start : start + max_seq_len] for start in range(0, len(ids), max_seq_len)]
    return [(window, [0] + [1] * (len(window) - 1)) for window in windows]


def prompt_completion_row(record, tokenizer, max_seq_len):
    """One string tokenised once; targets: tokens with a character of the completion, and EOS."""
    prompt_chars = len(record["question"])
    encoded = tokenizer(record["question"] + record["answer"], return_offsets_mapping=True)
    ids = encoded["input_ids"] + [tokenizer.eos_token_id]
    mask = [int(end > prompt_chars) for _, end in encoded["offset_mapping"]] + [1]
    return ids[:max_seq_len], mask[:max_seq_len]


def prompt_completion_rows(path, tokenizer, max_seq_len):
    records = map(json.loads, read_lines(path))
    return [prompt_completion_row(record, tokenizer, max_seq_len) for record in records]


def read_rows(run, split, tokenizer):
    """Rows as (ids, target flags), in dataset order: the row ids of `rows.jsonl`."""
    read = text_rows if run.data == "shakespeare" else prompt_completion_rows
    return read(run.data_files[split], tokenizer, run.max_seq_len)


# -- Hone's half -----------------------------------------------------------------------------------


def write_run_file(run):
    """The run file, as a user would write it; JSON strings, numbers and lists are TOML's too."""
    data = {
        "train": [str(run.data_files["train"])],
        "eval": [str(run.data_files["eval"])],
        "format": "text" if run.data == "shakespeare" else "prompt_completion",
        "max_seq_len": run.max_seq_len,
    }
    if run.data == "gsm8k":
        data |= {"prompt_field": "question", "completion_field": "answer", "overlong": "truncate"}
    tables = {"model": {"path": str(BASE), "compute": "f32"}, "data": data}
    if run.method == "lora":
        tables["adapter"] = {
            "kind": "lora",
            "rank": 8,
            "alpha": 16,
            "target_modules": "all-linear",
            "init_from": str(run.folder / "init"),
        }
    tables["train"] = {
        "max_steps": MAX_STEPS,
        "batch_tokens": run.batch_tokens,
        "learning_rate": run.learning_rate,
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
    }
    tables["schedule"] = {"kind": "cosine"}
    tables["output"] = {"dir": str(run.folder / "run")}
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]"] + [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path = run.folder / "run.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def hone(*arguments):
    command = [str(HONE), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"exit status {done.returncode} from: {' '.join(command)}")


def read_jsonl(path):
    return list(map(json.loads, read_lines(path)))


def read_hone_run(run):
    """Batches, metrics and the last evaluation of the finished run."""
    folder = run.folder / "run"
    samples = read_jsonl(folder / "rows.jsonl")
    metrics = read_jsonl(folder / "metrics.jsonl")
    evaluation = read_jsonl(folder / "eval.jsonl")[-1]
    steps = [line["step"] for line in metrics]
    expect(len(samples) == MAX_STEPS, f"rows.jsonl has {len(samples)} lines, not {MAX_STEPS}")
    expect(steps == [line["step"] for line in samples], "steps of samples and metrics differ")
    expect(evaluation["step"] >= steps[-1], f"last evaluation is of step {evaluation['step']}")
    return [line["micro_batches"] for line in samples], metrics, evaluation


def expect(condition, message):
    if not condition:
        sys.exit(f"parity: {message}")


# -- PEFT's half -----------------------------------------------------------------------------------


def load_base(path=BASE):
    """Base or merged model in f32, ready for evaluation."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def write_initial_adapter(run):
    """PEFT's own initialisation, for both; all-linear means every linear layer but the head."""
    torch.manual_seed(42)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    get_peft_model(load_base(), config).save_pretrained(run.folder / "init")


def load_trainable(run):
    if run.method == "full":
        return load_base()
    return PeftModel.from_pretrained(load_base(), run.folder / "init", is_trainable=True).eval()


def sum_of_loss(model, rows):
    """Sum of -log p in nats over the rows' target tokens.

    Rows are padded on the right without a mask: causal attention never looks there.
    """
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    targets = torch.tensor([mask + [0] * (length - len(mask)) for _, mask in rows]).bool()
    chosen = targets[:, 1:]
    # Logits where a row has a target: a vocabulary may be large.
    keep = chosen.any(0).nonzero()[:, 0]
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
    chosen, expected = chosen[:, keep], ids[:, 1:][:, keep]
    return torch.nn.functional.cross_entropy(logits[chosen], expected[chosen], reduction="sum")


def num_targets(rows):
    return sum(sum(mask[1:]) for _, mask in rows)


def train(model, run, rows, steps):
    """Trains in place on the given row ids; returns every step's loss and learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, len(steps))
    losses, rates = [], []
    for micro_batches in steps:
        batches = [[rows[row] for row in micro_batch] for micro_batch in micro_batches]
        denominator = sum(map(num_targets, batches))
        optimizer.zero_grad()
        step_loss = 0.0
        for batch in batches:
            loss = sum_of_loss(model, batch) / denominator
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        losses.append(step_loss)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return losses, rates


def evaluate(model, rows):
    """Mean nats per target token."""
    with torch.no_grad():
        batches = [rows[i : i + EVAL_BATCH] for i in range(0, len(rows), EVAL_BATCH)]
        total = sum(sum_of_loss(model, batch).item() for batch in batches)
    return total / num_targets(rows)


def load_written(folder):
    """What Hone wrote, read by PEFT or transformers."""
    if (folder / "adapter").is_dir():
        return PeftModel.from_pretrained(load_base(), folder / "adapter").eval()
    return load_base(folder / "model")


# -- comparison ------------------------------------------------------------------------------------


def compare(run, tokenizer):
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    if run.method == "lora":
        write_initial_adapter(run)
    hone("train", write_run_file(run))
    steps, metrics, hone_eval = read_hone_run(run)
    rows, eval_rows = (read_rows(run, split, tokenizer) for split in ("train", "eval"))
    expect(
        hone_eval["num_target_tokens"] == num_targets(eval_rows),
        f"{run.name}: Hone evaluates {hone_eval['num_target_tokens']} target tokens, "
        f"PEFT {num_targets(eval_rows)}",
    )
    model = load_trainable(run)
    before = evaluate(model, eval_rows)
    losses, rates = train(model, run, rows, steps)
    peft_loss = evaluate(model, eval_rows)
    reread = evaluate(load_written(run.folder / "run"), eval_rows)
    step_deviations = deviations([line["loss"] for line in metrics], losses)
    return {
        "run": run.name,
        "num_eval_target_tokens": num_targets(eval_rows),
        "eval_loss_before": before,
        "eval_loss_hone": hone_eval["loss"],
        "eval_loss_peft": peft_loss,
        "eval_loss_deviation": deviation(hone_eval["loss"], peft_loss),
        "eval_loss_of_hone_weights_by_peft": reread,
        "reread_deviation": deviation(hone_eval["loss"], reread),
        "max_step_loss_deviation": max(step_deviations),
        "max_learning_rate_deviation": max(
            deviations([line["learning_rate"] for line in metrics], rates)
        ),
        "step_losses_hone": [line["loss"] for line in metrics],
        "step_losses_peft": losses,
    }


def deviation(found, expected):
    """Relative; NaN counts as infinitely far, so that it cannot pass."""
    if found == expected:
        return 0.0
    value = abs(found - expected) / max(abs(expected), 1e-12)
    return value if math.isfinite(value) else math.inf


def deviations(found, expected):
    return [deviation(a, b) for a, b in zip(found, expected, strict=True)]


def passes(result):
    return (
        result["eval_loss_deviation"] <= MAX_LOSS_DEVIATION
        and result["max_step_loss_deviation"] <= MAX_LOSS_DEVIATION
        and result["reread_deviation"] <= MAX_REREAD_DEVIATION
    )


def markdown(results):
    lines = [
        "# Parity with PEFT",
        "",
        "Written by `scripts/parity.py`; do not edit. stories260k in f32, "
        f"{MAX_STEPS} optimizer steps (AdamW, cosine with {WARMUP_STEPS} warm-up steps, gradients "
        "clipped to norm 1), the same rows in every step, for LoRA (rank 8, alpha 16, all linear "
        "layers) the same initial adapter. Losses are mean nats per target token on the same "
        "evaluation rows. *Hone's weights, read by PEFT*: the adapter or model that Hone wrote, "
        "evaluated by PyTorch. Required: evaluation and every step's training loss within "
        f"{MAX_LOSS_DEVIATION}, re-reading at most {MAX_REREAD_DEVIATION}, both relative.",
        "",
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}.",
        "",
        "| run | untrained | Hone | PEFT | deviation | Hone's weights, read by PEFT | re-reading |"
        " largest deviation of a step's training loss | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        lines.append(
            f"| {r['run']} | {r['eval_loss_before']:.4f} | {r['eval_loss_hone']:.4f} "
            f"| {r['eval_loss_peft']:.4f} | {r['eval_loss_deviation']:.1e} "
            f"| {r['eval_loss_of_hone_weights_by_peft']:.4f} | {r['reread_deviation']:.1e} "
            f"| {r['max_step_loss_deviation']:.1e} | {'passes' if passes(r) else '**fails**'} |"
        )
    return "\n".join(lines) + "\n"


def write_results(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parity.md").write_text(markdown(results))
    (folder / "parity.json").write_text(json.dumps(results, indent=1) + "\n")


def compare_all(names, out):
    started = time.monotonic()
    unknown = set(names) - {run.name for run in RUNS}
    expect(not unknown, f"no such run: {unknown}; there are {[run.name for run in RUNS]}")
    WORK.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    runs = [run for run in RUNS if run.name in names or not names]
    for run in runs:
        if run.data == "shakespeare":
            write_shakespeare(run.data_files)
        else:
            write_gsm8k(run.data_files, tokenizer, run.max_seq_len)
    results = []
    for run in runs:
        results.append(compare(run, tokenizer))
        print(f"{run.name} done after {time.monotonic() - started:.0f} s", file=sys.stderr)
    text = markdown(results)
    print(text)
    if len(runs) == len(RUNS):
        write_results(results, out)
    return all(map(passes, results))


# -- export ----------------------------------------------------------------------------------------


def hone_logits(text, folder, model, *adapter):
    """Hone's logits [T, V] and the tokens [T] of the text's first window."""
    out = folder / "logits.safetensors"
    common = ["--data", text, "--format", "text", "--compute", "f32", "--logits", out]
    hone("eval", model, *adapter, *common)
    tensors = load_file(out)
    return tensors["logits"], tensors["tokens"].long()


def check_export(run_dir):
    """Largest logit difference, relative to the range of Hone's logits, for both readers."""
    base = tomllib.loads((run_dir / "run.toml").read_text())["model"]["path"]
    has_adapter = (run_dir / "adapter").is_dir()
    model = base if has_adapter else run_dir / "model"
    adapter = ["--adapter", run_dir / "adapter"] if has_adapter else []
    folder = WORK / "check-export"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("Once upon a time there was a little girl who liked to read. " * 6)
    logits, tokens = hone_logits(text, folder, model, *adapter)
    hone("export", model, *adapter, "--format", "hf", "--out", folder / "merged")
    written = load_base(model)
    if has_adapter:
        written = PeftModel.from_pretrained(written, run_dir / "adapter").eval()
    readers = {
        "what the run wrote, read by PEFT or transformers": written,
        "merged export, read by transformers": load_base(folder / "merged"),
    }
    passed = True
    for name, reader in readers.items():
        with torch.no_grad():
            found = reader(input_ids=tokens[None]).logits[0]
        worst = ((found - logits).abs().max() / (logits.max() - logits.min())).item()
        print(f"{name}: max |difference| / range = {worst:.2e} over {len(tokens)} tokens")
        passed &= worst <= MAX_LOGIT_DEVIATION
    return passed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="only these; writes no figures")
    parser.add_argument("--check-export", type=Path, metavar="RUN_DIR")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    expect(HONE.is_file(), "no target/release/hone: run `cargo build --release` first")
    if arguments.check_export:
        passed = check_export(arguments.check_export.resolve())
    elif not SHARED.is_dir():
        print("skipped: ../shared is absent")
        return
    else:
        passed = compare_all(arguments.runs, arguments.out.resolve())
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
