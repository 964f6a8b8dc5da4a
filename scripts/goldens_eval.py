"""What lm-evaluation-harness finds for the tasks in crates/eval/tests/goldens/tasks.

usage: python scripts/goldens_eval.py

Needs lm_eval[hf] 0.4.13. The model is the golden model `tied_gqa` of crates/model, with the
tokenizer beside the tasks, in f32. Writes crates/eval/tests/goldens/golden.json: of each run and
task every document's requests, log-probabilities, answers and metrics, and the values with standard
errors.
"""

import json
import os
import pathlib
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()

import lm_eval
import lm_eval.tasks
import torch
from lm_eval.models.huggingface import HFLM

import random_weights

ROOT = pathlib.Path(__file__).parent.parent / "crates"
GOLDENS = ROOT / "eval/tests/goldens"
# What the functions do that two well-known tasks call, which Hone has built in.
FUNCTIONS = {
    "preprocess_winogrande.py": """
def doc_to_text(doc):
    return int(doc["answer"]) - 1

def doc_to_target(doc):
    return doc["sentence"].split("_", 1)[1].strip()

def doc_to_choice(doc):
    before = doc["sentence"].split("_", 1)[0]
    return [before + doc["option1"], before + doc["option2"]]
""",
    "utils.py": """
def begun_small(text):
    return " " + text[:1].lower() + text[1:]

def doc_to_text(doc):
    word = "because" if doc["question"] == "cause" else "therefore"
    return doc["premise"].strip()[:-1] + " " + word

def doc_to_target(doc):
    return begun_small(doc["choice2"] if doc["label"] else doc["choice1"])

def doc_to_choice(doc):
    return [begun_small(doc["choice1"]), begun_small(doc["choice2"])]
""",
}
ALL = ["choice", "drawn", "numbers", "blank", "copa", "words", "empty", "pages", "sums", "several"]
ALL += ["prefixed"]
RUNS = {
    "plain": {"tasks": ALL},
    "group": {"tasks": ["both"]},
    "limited": {"tasks": ["choice", "drawn"], "limit": 5, "num_fewshot": 3},
    "chat": {
        "tasks": ["choice", "drawn", "sums", "prefixed"],
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
    },
}


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(tempfile.mkdtemp())
    random_weights.write(ROOT / "model/tests/goldens/tied_gqa", folder / "model")
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(GOLDENS / name, folder / "model" / name)
    shutil.copytree(GOLDENS / "tasks", folder / "tasks")
    for name, text in FUNCTIONS.items():
        (folder / "tasks" / name).write_text(text)
    # Names of data files are relative to the present folder.
    os.chdir(folder / "tasks")
    model = HFLM(pretrained=str(folder / "model"), dtype="float32", batch_size=1, device="cpu")
    golden = {"lm_eval": lm_eval.__version__}
    for name, options in RUNS.items():
        manager = lm_eval.tasks.TaskManager(
            include_path=str(folder / "tasks"), include_defaults=False
        )
        found = lm_eval.simple_evaluate(
            model=model, task_manager=manager, log_samples=True, **options
        )
        golden[name] = {"tasks": {task: of_task(found, task) for task in found["samples"]}}
        if "groups" in found:
            golden[name]["groups"] = {group: values(of) for group, of in found["groups"].items()}
    (GOLDENS / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


def values(found):
    """Numbers by metric and filter; a standard error that there is none of is null."""
    numbers = {key: value for key, value in found.items() if "," in key}
    return {key: None if value == "N/A" else float(value) for key, value in numbers.items()}


def of_task(found, task):
    order = lambda sample: (sample["doc_id"], sample["filter"])
    items = [of_item(sample) for sample in sorted(found["samples"][task], key=order)]
    return {"values": values(found["results"][task]), "items": items}


def of_item(sample):
    requests = [list(of) for of in sample["arguments"]]
    item = {"filter": sample["filter"], "requests": [of[:2] for of in requests]}
    responses = [response[0] for response in sample["resps"]]
    if isinstance(responses[0], str):
        # Of a generation, its prompt and answer; the second argument is its settings.
        item["requests"] = [of[:1] for of in requests]
        item["answer"], item["prediction"] = responses[0], sample["filtered_resps"][0]
    elif isinstance(responses[0], (tuple, list)):
        item["log_likelihoods"] = [round(float(of[0]), 6) for of in responses]
        item["greedy"] = [str(of[1]) == "True" for of in responses]
    else:
        item["log_likelihoods"] = [round(float(of), 6) for of in responses]
    numbers = {key: sample[key] for key in sample["metrics"]}
    is_number = lambda key: isinstance(numbers[key], (int, float))
    item["metrics"] = {key: float(numbers[key]) for key in filter(is_number, numbers)}
    return item


if __name__ == "__main__":
    main()
