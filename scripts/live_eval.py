"""`hone eval --task` beside lm-evaluation-harness, on the same model, task files and documents.

usage: python scripts/live_eval.py HONE MODEL DATA WORK [--limit N] [--tasks NAME,...]
                                   [--speed-limit N]

HONE is the binary of a release build, MODEL what it reads, DATA the folder with `eval`, `sft`
and `classify`, WORK a folder for what is made. Needs lm_eval[hf] 0.4.13; no network. Says for each
task the largest difference of log-likelihoods, of how many items each metric was compared, and what
differs: answers, predictions, metrics and printed values. Then items per second of both in bf16.
The exit status is 1 if anything differs by more than it may, or if nothing was compared.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = pathlib.Path(__file__).parent.parent.absolute()
TASKS = {
    "eval": [
        "arc_easy", "arc_challenge", "boolq", "copa", "lambada_openai", "openbookqa", "piqa",
        "winogrande", "mmlu_val",
    ],
    "sft": ["gsm8k"],
    "classify": ["banking77"],
}
# Fewer documents where each takes long.
LIMITS = {"mmlu_val": 2, "gsm8k": 8, "banking77": 20}
MAX_DIFFERENCE = 1e-3
# Exponentials of log-likelihoods may differ by as much as these, relatively; shares not at all.
OF_LIKELIHOODS = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}


def main():
    parser = argparse.ArgumentParser()
    for name in ["hone", "model", "data", "work"]:
        parser.add_argument(name)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tasks")
    parser.add_argument("--speed-limit", type=int, default=100)
    args = parser.parse_args()
    hone, data = str(pathlib.Path(args.hone).absolute()), pathlib.Path(args.data).absolute()
    work = pathlib.Path(args.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = str(work / "datasets")
    model = work / "model"
    if not model.exists():
        export = ["export", args.model, "--out", str(model), "--dtype", "f32"]
        subprocess.run([hone, *export], check=True, stdout=subprocess.DEVNULL)
    wanted = args.tasks.split(",") if args.tasks else None
    peer, differs = None, False
    for folder, tasks in TASKS.items():
        os.chdir(data / folder)
        for task in tasks:
            if wanted and task not in wanted:
                continue
            limit = min(args.limit, LIMITS.get(task, args.limit))
            options = ["--compute", "f32", "--limit", str(limit)]
            ours = ask_hone(hone, model, task, data / folder, work, options)
            peer = peer or harness(model, "float32", 1)
            theirs = ask_harness(peer, task, limit)
            differs |= compare(task, ours, theirs)
    speed(hone, model, data / "eval", work, args.speed_limit)
    sys.exit(differs)


def ask_hone(hone, model, task, data, work, options):
    items, output = work / "items.jsonl", work / "output.json"
    command = [hone, "eval", str(model), "--task", task, "--data", str(data), "--items", str(items)]
    subprocess.run(
        [*command, "--output", str(output), *options], check=True, stdout=subprocess.DEVNULL
    )
    return {
        "items": [json.loads(line) for line in items.read_text().splitlines()],
        **json.loads(output.read_text()),
    }


def harness(model, dtype, batch_size):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model), dtype=dtype, batch_size=batch_size, device="cpu")


def ask_harness(model, task, limit):
    import lm_eval
    import lm_eval.tasks

    folder = str(ROOT / "crates/eval/tasks")
    manager = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=[task], task_manager=manager, limit=limit, log_samples=True
    )


def compare(task, ours, theirs):
    """Whether anything is not as it must be; says what was found."""
    values = {}
    for kind, found in [("task", ours["tasks"]), ("group", ours.get("groups", []))]:
        for value in found:
            key = (value[kind], f"{value['metric']},{value['filter']}")
            values[key] = (value["value"], value["stderr"])
    wrong, printed_by_it = [], set()
    for kind in ["results", "groups"]:
        for name, found in theirs.get(kind, {}).items():
            for key, value in found.items():
                metric, _, filter_name = key.partition(",")
                if not filter_name or metric.endswith("_stderr"):
                    continue
                printed_by_it.add((name, key))
                expected = (value, found[f"{metric}_stderr,{filter_name}"])
                ours_too = values.get((name, key), ())
                if not agree(metric, ours_too, expected):
                    wrong.append(f"{name} {key}: {ours_too}, not {expected}")
    wrong += [f"{name} {key}: not of the harness" for name, key in values.keys() - printed_by_it]
    largest, num_items, num_other = 0.0, 0, 0
    counts, of_task = collections.Counter(), {}
    for item in ours["items"]:
        of_task.setdefault(item["task"], []).append(item)
    if of_task.keys() != theirs["samples"].keys():
        wrong.append(f"items of {sorted(of_task)}, not {sorted(theirs['samples'])}")
    for name, samples in theirs["samples"].items():
        items = of_task.get(name, [])
        filters = {sample["filter"] for sample in samples}
        asked = sorted((sample["filter"], sample["doc_id"]) for sample in samples)
        if asked != sorted((one, i) for one in filters for i in range(len(items))):
            wrong.append(f"{name}: {len(items)} items, not those of {len(samples)} samples")
            continue
        for sample in samples:
            item = items[sample["doc_id"]]
            num_items += 1
            responses = [response[0] for response in sample["resps"]]
            if isinstance(responses[0], str):
                same = item["answer"] == responses[0]
                same &= item["prediction"][sample["filter"]] == sample["filtered_resps"][0]
            else:
                found = [float(r[0] if isinstance(r, (tuple, list)) else r) for r in responses]
                pairs = zip(found, item["log_likelihoods"], strict=True)
                largest = max([largest, *[abs(a - b) for a, b in pairs]])
                same = True
            metrics = metrics_of(item, sample["filter"], len(filters))
            counts.update(metrics.keys())
            num_other += not (same and are_same(metrics, sample))
    if not num_items or not counts or not values:
        wrong.append("nothing was compared")
    bad = bool(wrong) or largest > MAX_DIFFERENCE or num_other > 0
    each = ", ".join(f"{metric} of {count}" for metric, count in sorted(counts.items()))
    print(
        f"{task}: {num_items} items ({each}), log-likelihoods within {largest:.1e}, {num_other} "
        f"items differ, {len(wrong)} values differ{': wrong' if bad else ''}",
        flush=True,
    )
    for line in wrong[:10]:
        print(f"  {line}", flush=True)
    return bad


def metrics_of(item, filter_name, num_filters):
    """An item's metrics after one of its filters, by their bare names."""
    if num_filters == 1:
        return item["metrics"]
    end = f",{filter_name}"
    found = item["metrics"].items()
    return {key.removesuffix(end): value for key, value in found if key.endswith(end)}


def are_same(metrics, sample):
    """Whether there are the sample's metrics, all of them and no others, and are as large."""
    if not metrics or metrics.keys() != set(sample["metrics"]):
        return False
    # Of whole texts the harness has log-likelihood and length.
    values = {key: sample[key] for key in metrics}
    numbers = {key: v[0] if isinstance(v, (tuple, list)) else v for key, v in values.items()}
    return all(abs(metrics[key] - float(v)) < MAX_DIFFERENCE for key, v in numbers.items())


def agree(metric, ours, theirs):
    """Whether a value and its standard error are the harness's."""
    if len(ours) != len(theirs):
        return False
    for found, expected in zip(ours, theirs):
        if printed(found) == printed(expected):
            continue
        if metric not in OF_LIKELIHOODS or None in [printed(found), printed(expected)]:
            return False
        if abs(found - expected) > MAX_DIFFERENCE * abs(expected):
            return False
    return True


def printed(value):
    return None if value in [None, "N/A"] else f"{value:.4f}"


def speed(hone, model, data, work, limit):
    """Items per second in bf16: the harness at the batch that is fastest for it."""
    os.chdir(data)
    for task in ["arc_easy", "lambada_openai"]:
        ours = 0.0
        for _ in range(2):
            options = ["--compute", "bf16", "--base-precision", "bf16", "--limit", str(limit)]
            found = ask_hone(hone, model, task, data, work, options)
            ours = max(ours, found["items_per_second"])
        best = 0.0
        for batch_size in [1, 8, 32]:
            peer = harness(model, "bfloat16", batch_size)
            # Once to warm up: what it reads and caches is no part of it.
            ask_harness(peer, task, 4)
            took = time_of(peer, task, limit)
            best = max(best, limit / took)
        ratio = ours / best
        print(
            f"{task} in bf16: {ours:.2f} items/s, the harness {best:.2f}: {ratio:.2f} times",
            flush=True,
        )


def time_of(peer, task, limit):
    """Seconds that the model takes for the requests, without reading files and bootstraps."""
    seconds = 0.0
    inner = peer.loglikelihood

    def timed(*args, **kwargs):
        nonlocal seconds
        begun = time.perf_counter()
        found = inner(*args, **kwargs)
        seconds += time.perf_counter() - begun
        return found

    peer.loglikelihood = timed
    ask_harness(peer, task, limit)
    return seconds


if __name__ == "__main__":
    main()
