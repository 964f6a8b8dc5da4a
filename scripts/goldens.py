"""Writes the golden files of `crates/model/tests/goldens` with transformers and PEFT.

Each case is a tiny random model in Hugging Face layout, a LoRA adapter in PEFT layout, and what
PyTorch makes of them: logits, loss, gradients, twenty training steps. Of the weights only
descriptions are kept, which `random_weights.py` and the tests follow alike. `rope.json` holds
inverse frequencies alone, for RoPE settings too many to deserve a model each. Everything runs in
f32 with eager attention unless its name says bf16. Rerunning on one machine gives identical files;
the `*_err` figures of bf16 depend on the instruction set that PyTorch finds.

Left out: data, tokenising and the training loop as a whole, which `parity.py` compares.

    target/bench-venv/bin/python scripts/goldens.py [CASE ...]
"""

import copy
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports below, which read it

import golden_encoders
import golden_mixtures
import numpy
import peft
import random_weights
import torch
import transformers
from golden_cases import BASE_CONFIG, CASES, FAMILIES, OPTIMIZER
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from rope_settings import rope_goldens
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    get_cosine_schedule_with_warmup,
)

GOLDENS = Path(__file__).resolve().parent.parent / "crates" / "model" / "tests" / "goldens"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_STEPS, WARMUP_STEPS, MAX_GRAD_NORM = 20, 4, 1.0
NUM_MORE_BATCHES = 23
FUSED = "adapter_fused"


# -- models and adapters ---------------------------------------------------------------------------


def config_json(case):
    """The `config.json` written by hand, so that its spelling is the one chosen for the case."""
    name = str(case.saved_as).removeprefix("torch.")
    dtype_key = "dtype" if "rope_parameters" in case.config else "torch_dtype"
    base = {} if is_encoder(case) else BASE_CONFIG
    return FAMILIES[case.family] | base | case.config | {dtype_key: name}


def is_encoder(case):
    return case.family in golden_encoders.FAMILIES


def empty_model(case):
    config = copy.deepcopy(config_json(case))  # nested tables are completed in place
    kind = AutoModelForMaskedLM if is_encoder(case) else AutoModelForCausalLM
    return kind.from_config(AutoConfig.for_model(**config))


def distribution(case, name, shape):
    """Mean and scale, which keep every parameter from its neutral value: norm 1, bias 0."""
    if "router." in name and case.family == "gemma4":
        return (0.0, 1.5) if name.endswith("proj.weight") else (1.0, 0.2)
    if name.endswith("layer_scalar"):
        return 0.75, 0.1
    if case.family == "gemma4" and name.endswith(("q_norm.weight", "k_norm.weight")):
        return 0.5, 0.1  # or scores, which are not divided, saturate softmaxes
    if "norm" in name.lower() and not name.endswith("bias"):
        # Norms of Gemma and Qwen3.5 multiply by one plus the weight.
        families = ("gemma2", "gemma3", "qwen3_5", "qwen3_5_moe", "qwen3_next")
        adds_one = case.family in families and "linear_attn" not in name
        return (0.0 if adds_one else 1.0), 0.2
    if name.endswith("bias"):
        return 0.0, 0.05 if "e_score" in name else 0.3  # or some experts are never chosen
    if "embed" in name or "lm_head" in name:
        return 0.0, 0.5
    if name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight", "mlp.router.weight")):
        return 0.0, 0.5  # so that few choices are close
    return 0.0, rounded(1.2 / math.sqrt(shape[-1]))


def write_description(folder, seed, dtype, files):
    """`weights.json`: of each tensor its shape and its numbers' mean and scale."""
    description = {"seed": seed, "dtype": str(dtype).removeprefix("torch."), "files": files}
    description["digest"] = random_weights.digest(description)
    text = json.dumps(description, indent=1)
    (folder / "weights.json").write_text(one_line_lists(text) + "\n")


def one_line_lists(text):
    def joined(match):
        return re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]")

    return re.sub(r"\[\s+\[[^]]*\][^]]*\]", joined, text)


def describe_model(case, folder):
    model = empty_model(case)
    shapes = {stored_name(model, name): list(p.shape) for name, p in model.named_parameters()}
    if golden_mixtures.has_experts(model) and not case.fused_on_disk:
        shapes = golden_mixtures.shapes_on_disk(model)
    if case.family == "gemma4":  # with its numbers that are no parameters
        shapes = golden_mixtures.shapes_on_disk(model)
    names = sorted(shapes)
    write_json(folder / "config.json", config_json(case))
    shards = {"model.safetensors": names}
    if case.num_shards > 1:
        shards = {
            f"model-{shard + 1:05}-of-{case.num_shards:05}.safetensors": names[
                shard :: case.num_shards
            ]
            for shard in range(case.num_shards)
        }
        weight_map = {name: file for file, part in shards.items() for name in part}
        total = sum(math.prod(shape) for shape in shapes.values()) * case.saved_as.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    files = {
        file: {name: [shapes[name], *distribution(case, name, shapes[name])] for name in part}
        for file, part in shards.items()
    }
    write_description(folder, case.seed, case.saved_as, files)


def stored_name(model, name):
    """Of two names of one weight that which files have."""
    tied = model._tied_weights_keys if model.config.tie_word_embeddings else {}
    return (tied or {}).get(name, name)


def load_base(folder, dtype=torch.float32):
    """Loaded as users load it: RoPE's inverse frequencies stay f32 whatever the dtype."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    is_masked = family in golden_encoders.FAMILIES
    kind = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
    return kind.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        local_files_only=True,
    ).eval()


def load_rounded(folder):
    """The base with its weights rounded to bf16 and run in f32: compute error set apart."""
    model = load_base(folder)
    with torch.no_grad():
        numbers = [buffer for name, buffer in model.named_buffers() if "layer_scalar" in name]
        for parameter in [*model.parameters(), *numbers]:
            parameter.copy_(parameter.bfloat16())
    return model


def describe_adapter(case, adapter, lora):
    """A PEFT adapter with A and B both random, so that no gradient vanishes."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR} | lora
    task = None if is_encoder(case) else "CAUSAL_LM"
    model = get_peft_model(empty_model(case), LoraConfig(task_type=task, **settings))
    model.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink()
    (adapter / "adapter_model.safetensors").unlink()
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = adapter.parent.name  # not a path of this machine
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set's order
    state = adapter_state(model)
    if "target_parameters" in settings:
        config["target_parameters"] = sorted(config["target_parameters"])
    elif golden_mixtures.has_experts(model):
        config |= golden_mixtures.of_modules(settings)
        state = golden_mixtures.per_expert(state, model)
    write_json(path, dict(sorted(config.items())))
    tensors = {name: [list(state[name].shape), 0.0, 0.15] for name in sorted(state)}
    files = {"adapter_model.safetensors": tensors}
    write_description(adapter, case.seed, torch.float32, files)


def with_adapter(base, folder, name="adapter"):
    return PeftModel.from_pretrained(base, folder / name, is_trainable=True).eval()


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapter_state(model):
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def peft_key(name):
    return name.replace(".default.weight", ".weight")


# -- what PyTorch makes of them --------------------------------------------------------------------


def sequences(case):
    """Token ids and target flags; flag i: token i is to be predicted (never the first)."""
    generator = torch.Generator().manual_seed(2000 + case.seed)
    ids, masks = [], []
    for length in case.lengths:
        tokens = torch.randint(0, case.config["vocab_size"], (length,), generator=generator)
        if case.family in ("roberta", "xlm-roberta"):
            # No text has padding, to which transformers gives no position of its own.
            padding = case.config.get("pad_token_id", 1)
            tokens[tokens == padding] = padding + 1
        ids.append(tokens)
        mask = (torch.rand(length, generator=generator) < 0.6).to(torch.uint8)
        mask[0], mask[-1] = 0, 1
        masks.append(mask)
    return ids, masks


def random_batch(case, seed):
    """More sequences of the case's lengths, which `bf16.rs` draws alike."""
    uniform = iter(random_weights.uniform(seed, 0, 2 * sum(case.lengths) + 1)[1:])
    vocab_size, target_share = numpy.float32(case.config["vocab_size"]), numpy.float32(0.6)
    ids, masks = [], []
    for length in case.lengths:
        ids.append(torch.tensor([int(next(uniform) * vocab_size) for _ in range(length)]))
        mask = [int(next(uniform) < target_share) for _ in range(length)]
        mask[0], mask[-1] = 0, 1
        masks.append(torch.tensor(mask, dtype=torch.uint8))
    return ids, masks


def logits_of(model, ids):
    """Sequences run one by one, short to long: a dynamic RoPE then holds no longer one's table."""
    with torch.no_grad():
        return [model(input_ids=one[None]).logits[0].float() for one in ids]


def loss_of(model, ids, masks):
    """Sum of -log p over the target tokens of all sequences, over their number."""
    total = 0.0
    for one, mask in zip(ids, masks, strict=True):
        log_p = model(input_ids=one[None]).logits[0].float().log_softmax(-1)
        token_log_p = log_p[:-1].gather(-1, one[1:, None])[:, 0]
        total = total - (token_log_p * mask[1:]).sum()
    return total / sum(int(mask.sum()) for mask in masks)


def gradients(model, ids, masks):
    model.zero_grad()
    loss = loss_of(model, ids, masks)
    loss.backward()
    found = {stored_name(model, name): p.grad.clone() for name, p in trainable(model).items()}
    return loss.item(), golden_mixtures.per_expert(found, model)


def train(model, settings, ids, masks):
    """Loss, gradient norm and learning rate of twenty steps on the same batch.

    Where the course magnifies rounding, it is no yardstick: f64 must agree far within the tests'
    tolerances.
    """
    exact = curves(copy.deepcopy(model).double(), settings, ids, masks)
    found = curves(model, settings, ids, masks)
    for curve, exact_curve, limit in zip(found, exact, (2e-5, 2e-4, 0.0), strict=True):
        error = ((curve - exact_curve).abs() / exact_curve.abs().clamp(min=1e-9)).max()
        assert error <= limit, f"{error:.1e} from f64: choose a smaller learning rate"
    return found


def curves(model, settings, ids, masks):
    """A step's loss and norm are those before its update."""
    golden_mixtures.keep_apart(model)
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, **settings)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, NUM_STEPS)
    losses, norms, rates = [], [], []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, ids, masks)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        losses.append(loss.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(norms) > MAX_GRAD_NORM, f"no step was clipped: {norms}"
    return [torch.tensor(curve, dtype=torch.float32) for curve in (losses, norms, rates)]


def lora_goldens(folder, ids, masks, settings):
    tensors, facts = lora_gradients(folder, ids, masks)
    trained = train(with_adapter(load_base(folder), folder), settings, ids, masks)
    tensors |= dict(zip(["loss_curve", "grad_norm_curve", "lr_curve"], trained, strict=True))
    return tensors, facts


def lora_gradients(folder, ids, masks):
    model = with_adapter(load_base(folder), folder)
    tensors = numbered("logits_lora", logits_of(model, ids))
    loss, grads = gradients(model, ids, masks)
    state = golden_mixtures.per_expert(adapter_state(model), model)
    assert set(map(peft_key, grads)) == set(state)
    tensors |= {f"grad.{peft_key(name)}": grad for name, grad in grads.items()}
    return tensors, {"loss": loss}


def full_goldens(folder, ids, masks, settings):
    tensors, facts = full_gradients(folder, ids, masks)
    losses, norms, _ = train(load_base(folder), settings, ids, masks)
    tensors |= {"full_loss_curve": losses, "full_grad_norm_curve": norms}
    return tensors, facts


def full_gradients(folder, ids, masks):
    loss, grads = gradients(load_base(folder), ids, masks)
    return {f"full_grad.{name}": grad for name, grad in grads.items()}, {"full_loss": loss}


def bf16_goldens(case, folder, ids, masks):
    """PyTorch's own bf16 error; the yardstick that Hone's bf16 must not exceed.

    Some batches magnify errors fivefold, so means over batches are geometric: no such batch rules.
    """
    batches = [(ids, masks)] + [random_batch(case, seed) for seed in range(NUM_MORE_BATCHES)]
    exact_model, bf16_model = load_rounded(folder), load_base(folder, torch.bfloat16)
    largest, root_mean_squares = [], []
    for ids, _ in batches:
        exact, found = torch.cat(logits_of(exact_model, ids)), torch.cat(logits_of(bf16_model, ids))
        largest.append((found - exact).abs().max().item())
        root_mean_squares.append((found - exact).square().mean().sqrt().item())
    facts = {
        "bf16_max_abs_err": rounded(geometric_mean(largest)),
        "bf16_rms_err": rounded(geometric_mean(root_mean_squares)),
        "bf16_lora_grad_rel_err": gradient_errors(folder, batches),
    }
    return numbered("logits_bf16w", logits_of(exact_model, batches[0][0])), facts


def gradient_errors(folder, batches):
    """Relative L2 error of every parameter's gradient, under its PEFT key."""
    exact_model = with_adapter(load_rounded(folder), folder)
    bf16_model = with_adapter(load_base(folder, torch.bfloat16), folder)
    assert all(p.dtype == torch.float32 for p in trainable(bf16_model).values())
    errors = defaultdict(list)
    for ids, masks in batches:
        _, exact = gradients(exact_model, ids, masks)
        with torch.autocast("cpu", torch.bfloat16):
            _, found = gradients(bf16_model, ids, masks)
        for name, gradient in exact.items():
            if gradient.norm() > 0.0:  # an expert may have no rows
                error = (found[name] - gradient).norm() / gradient.norm()
                errors[peft_key(name)].append(error.item())
    return {key: rounded(geometric_mean(of_batches)) for key, of_batches in errors.items()}


# -- files -----------------------------------------------------------------------------------------


def rounded(value):
    return float(f"{float(value):.4g}")


def numbered(prefix, tensors):
    return {f"{prefix}_{i}": tensor for i, tensor in enumerate(tensors)}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


NOTES = {
    "loss": "sum of -log p over target tokens of all sequences / number of target tokens",
    "ids_i, mask_i": "one unpadded sequence; mask 1: this token is predicted from those before",
    "logits_i, logits_lora_i": "f32, base alone and with the adapter; [T, V]",
    "logits_bf16w_i": "f32 run of the base with weights rounded to bf16",
    "bf16_*_err": "base loaded with dtype=bfloat16 (RoPE frequencies stay f32), no adapter, eager "
    "attention, absolute, against an f32 run with weights rounded to bf16; geometric mean over the "
    "case's batch and 23 random ones",
    "bf16_lora_grad_rel_err": "base loaded with dtype=bfloat16, f32 adapters, forward and backward "
    "under torch.autocast('cpu', bfloat16), loss from f32 logits; relative L2 against the f32 "
    "gradient on the bf16-rounded base; geometric mean over the same batches",
    "curves": "loss and gradient norm before each step's update and clip; lr used by that update",
    "rope dynamic": "each sequence by its own length",
}


def write_case(name, case):
    folder = GOLDENS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    describe_model(case, folder)
    adapters = {"adapter": case.lora} | ({FUSED: golden_mixtures.fused(case)} if case.fused else {})
    for adapter, lora in adapters.items():
        describe_adapter(case, folder / adapter, lora)
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / name
        random_weights.write(folder, checkpoint)
        for adapter in adapters:
            random_weights.write(folder / adapter, checkpoint / adapter)
        tensors, facts = results(name, case, checkpoint)
    save_file(tensors, folder / "golden.safetensors")
    write_json(folder / "golden.json", facts)


def results(name, case, folder):
    """What PyTorch makes of the checkpoint in `folder`: tensors and other facts."""
    ids, masks = sequences(case)
    settings = OPTIMIZER | case.optimizer
    tensors = numbered("ids", ids) | numbered("mask", masks)
    base = load_base(folder)
    tensors |= numbered("logits", logits_of(base, ids))
    for model in (base, with_adapter(load_base(folder), folder)):
        golden_mixtures.check_margins(model, ids)
    parts = [lora_goldens(folder, ids, masks, settings), bf16_goldens(case, folder, ids, masks)]
    if case.full_gradients:
        parts.append(full_goldens(folder, ids, masks, settings))
    if golden_mixtures.has_experts(base) and case.family != "gemma4":  # which has no such loss
        parts.append(golden_mixtures.balancing_goldens(load_base(folder), ids))
    if case.fused:
        fused = with_adapter(base, folder, FUSED)
        tensors |= numbered("logits_fused", logits_of(fused, ids))
    facts = {
        "case": name,
        "rope_spelling": case.rope_spelling,
        "saved_as": str(case.saved_as).removeprefix("torch."),
        "num_sequences": len(ids),
        "num_target_tokens": sum(int(mask.sum()) for mask in masks),
        "optimizer": settings | {"max_grad_norm": MAX_GRAD_NORM},
        "schedule": {"kind": "cosine", "warmup_steps": WARMUP_STEPS, "num_steps": NUM_STEPS},
    }
    for more_tensors, more_facts in parts:
        tensors |= more_tensors
        facts |= more_facts
    return {key: tensor.contiguous() for key, tensor in tensors.items()}, facts


def folder_size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(names):
    unknown = set(names) - set(CASES)
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in names or CASES:
        write_case(name, CASES[name])
        print(f"{name}: {folder_size(GOLDENS / name)} bytes")
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    write_json(GOLDENS / "about.json", {"versions": versions, "notes": NOTES})
    compact = ",\n".join(json.dumps(entry) for entry in rope_goldens())
    (GOLDENS / "rope.json").write_text(f"[\n{compact}\n]\n")
    print(f"total: {folder_size(GOLDENS)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
