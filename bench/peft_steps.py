"""Trains with PyTorch, transformers and PEFT, a few steps at a time, as a peer to measure against.

    target/bench-venv/bin/python bench/peft_steps.py SETTINGS.json

The settings name the model directory, the method, the element type, the number of threads, the
data and how many rows make a step; `DEFAULTS` are the rest. Prints a line of JSON when it is
ready, and after that one for every line on standard input, which holds the number of steps to run:
their seconds and tokens (padding not counted), and the peak of memory. Started by
`cargo xtask bench train`, which lets Hone and this process take turns; `gpu_peers.py` uses the
same steps on a GPU.
"""

import contextlib
import json
import os
import resource
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from torch.backends import mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
IGNORED = -100
# Linear layers of BERT's blocks.
LINEAR = r"\.(query|key|value|dense)"

DEFAULTS = {
    # `cpu`, or `cuda:0`.
    "device": "cpu",
    # Weights drawn where they are used, of the shape that `config.json` gives, or read.
    "random_weights": False,
    # `sdpa`, `cudnn` (sdpa that prefers cuDNN's kernels) or `flash_attention_2`.
    "attention": "sdpa",
    # `none`, `layers` (each decoder layer, and the loss) or `model`.
    "compile": "none",
    # Rows laid end to end in one, instead of padded to the longest.
    "packed": False,
    # Rows of a forward and backward pass; none: all of the step's.
    "rows_per_pass": None,
    "bf16_adapters": False,
    # How experts are computed (`experts_implementation`), which then have adapters too.
    "experts": None,
    "checkpointing": False,
    # Masked tokens by an encoder, as BERT learnt them, instead of each next token.
    "masked": False,
    # Threads of the CPU; none: PyTorch's choice.
    "threads": None,
    # Steps before any is reported.
    "warm_up": 1,
    # Lets oneDNN name its kernels on standard output during those.
    "names_kernels": False,
}


def load(settings):
    """The model with its adapter.

    Adapters are in f32, as PEFT has them unless told otherwise and as Hone has them;
    `bf16_adapters` puts them, and so their moments, into the model's own type.
    """
    attention = settings["attention"]
    if attention == "cudnn" and settings["device"] == "cpu":
        raise RuntimeError("cuDNN's attention wants a GPU")
    how = {"dtype": DTYPES[settings["dtype"]],
           "attn_implementation": "sdpa" if attention == "cudnn" else attention}
    if settings["experts"]:
        how["experts_implementation"] = settings["experts"]
    if settings["random_weights"]:
        shape = AutoConfig.from_pretrained(settings["model"])
        with torch.device(settings["device"]):
            model = AutoModelForCausalLM.from_config(shape, **how)
    else:
        kind = AutoModelForMaskedLM if settings["masked"] else AutoModelForCausalLM
        model = kind.from_pretrained(settings["model"], **how)
    if settings["method"] == "lora":
        # Of an encoder not the head, which Hone leaves out too.
        targets = r".*\.layer\..*" + LINEAR if settings["masked"] else "all-linear"
        task = None if settings["masked"] else "CAUSAL_LM"
        config = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type=task)
        if settings["experts"]:
            config.target_parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        in_f32 = not settings["bf16_adapters"]
        model = get_peft_model(model, config, autocast_adapter_dtype=in_f32)
    model.to(settings["device"])
    if settings["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    compile_parts(settings, model)
    return model


def compile_parts(settings, model):
    """Compiles what the settings name. One layer is like another, so that `layers` takes a tenth of
    the time that `model` takes."""
    if settings["compile"] == "model":
        model.compile()
    if settings["compile"] == "layers":
        inner = model.get_base_model()
        for layer in inner.model.layers:
            layer.compile()
        inner.loss_function = torch.compile(inner.loss_function)


def read_rows(settings):
    """Rows of `(ids, first target)`, as Hone makes them: `text`, or `question` with `answer`; or
    the ids themselves. Of masked ones, `(ids, labels)`."""
    rows, tokenizer = [], None
    with open(settings["data"], encoding="utf-8") as file:
        for record in map(json.loads, file):
            if "ids" in record:
                rows.append((record["ids"], record["first_target"]))
                continue
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(settings["model"])
            if settings["masked"]:
                rows.append(masked(tokenizer, record["text"]))
                continue
            prompt = record.get("question", "")
            encoded = tokenizer(prompt + record.get("answer", record.get("text", "")),
                                return_offsets_mapping=True)
            ids = encoded["input_ids"] + [tokenizer.eos_token_id]
            ends = [end for _, end in encoded["offset_mapping"]] + [len(prompt) + 1]
            rows.append((ids, next(i for i, end in enumerate(ends) if end > len(prompt))))
    return rows


def masked(tokenizer, text):
    """A row with tokens masked, and its labels, as `DataCollatorForLanguageModeling` draws them."""
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    batch = collate([tokenizer(text, return_special_tokens_mask=True)])
    return batch["input_ids"][0].tolist(), batch["labels"][0].tolist()


def padded(rows):
    """Rows padded to the longest, with labels where a target is."""
    longest = max(len(ids) for ids, _ in rows)
    shape = (len(rows), longest)
    ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, (row, first_target) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        if isinstance(first_target, list):
            labels[i, : len(row)] = torch.tensor(first_target)
        else:
            labels[i, first_target : len(row)] = ids[i, first_target : len(row)]
    # Without padding there is no mask to apply, which is faster.
    mask = {"attention_mask": mask} if mask.min() == 0 else {}
    return {"input_ids": ids, "labels": labels, **mask}


def packed(rows):
    """Rows end to end; that positions begin anew tells transformers where."""
    ids, labels, positions = [], [], []
    for row, first_target in rows:
        # No row predicts the first token of the next.
        first_target = max(first_target, 1)
        ids += row
        labels += [IGNORED] * first_target + row[first_target:]
        positions += range(len(row))
    parts = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.tensor([part]) for name, part in parts.items()}


def passes(settings, rows):
    """The inputs of one step, and its tokens: an entry for each forward and backward pass."""
    of_pass = settings["rows_per_pass"] or len(rows)
    batch = packed if settings["packed"] else padded
    inputs = [batch(rows[i : i + of_pass]) for i in range(0, len(rows), of_pass)]
    inputs = [{name: x.to(settings["device"]) for name, x in of.items()} for of in inputs]
    return inputs, sum(len(ids) for ids, _ in rows)


def kernels_named(wanted):
    """Lets oneDNN say, as under `ONEDNN_VERBOSE=1`, what it runs."""
    return mkldnn.verbose(mkldnn.VERBOSE_ON) if wanted else contextlib.nullcontext()


class Trainer:
    """A model, its optimizer, and the batches that it goes through again and again."""

    def __init__(self, settings):
        self.settings = DEFAULTS | settings
        if self.settings["threads"]:
            torch.set_num_threads(self.settings["threads"])
        torch.manual_seed(1)
        self.on_gpu = self.settings["device"] != "cpu"
        if self.on_gpu:
            torch.cuda.set_device(self.settings["device"])
            # Products in f32 (of adapters) on tensor cores.
            torch.set_float32_matmul_precision("high")
        self.model = load(self.settings)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        rows, per_step = read_rows(self.settings), self.settings["rows_per_step"]
        starts = range(0, len(rows), per_step)
        self.batches = [passes(self.settings, rows[i : i + per_step]) for i in starts]
        self.done = 0
        with kernels_named(self.settings["names_kernels"]):
            self.steps(self.settings["warm_up"])

    def kernels(self):
        """Which kernels attention may take."""
        if self.settings["attention"] != "cudnn":
            return contextlib.nullcontext()
        others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others], set_priority=True)

    def now(self):
        """The time when all that was asked of the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self):
        """Seconds and tokens of a step."""
        inputs, tokens = self.batches[self.done % len(self.batches)]
        start = self.now()
        with self.kernels():
            for of_pass in inputs:
                loss = self.model(**of_pass).loss
                (loss / len(inputs)).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return self.now() - start, tokens

    def steps(self, num_steps):
        """Figures of so many steps. On a GPU the peak is what is taken of its memory, by whomever,
        since PyTorch keeps what it once took; beside it what PyTorch's allocator counts."""
        seconds, tokens = zip(*(self.step() for _ in range(num_steps)))
        figures = {"step_seconds": seconds, "step_tokens": tokens,
                   "seconds": sum(seconds), "tokens": sum(tokens)}
        if self.on_gpu:
            free, all_there_is = torch.cuda.mem_get_info()
            return figures | {
                "peak_bytes": all_there_is - free,
                "allocated_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
            }
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return figures | {"peak_bytes": peak}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        trainer = Trainer(json.load(file))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(trainer.steps(int(line))), flush=True)


if __name__ == "__main__":
    main()
