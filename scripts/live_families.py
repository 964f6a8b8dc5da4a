"""Draws further configurations of every family, and checks what Hone writes of them.

    target/bench-venv/bin/python scripts/live_families.py draw DIR [CASE ...] [--count N] [--seed N]
    target/bench-venv/bin/python scripts/live_families.py check DIR

`draw` makes, of each case in `golden_cases.py`, N variants (20 unless given) with other sizes,
layers, windows, bases and epsilons and with adapters of other ranks, and writes goldens of them as
`goldens.py` does, but for bf16 and courses of training. `check` reads what the tests wrote beside
them, adapters, merged and unchanged models, with PEFT and transformers, and compares logits. Both
are started by `cargo xtask live families`.
"""

import argparse
import copy
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import golden_encoders
import golden_mixtures
import goldens
import random_weights
import torch
import transformers
from golden_cases import BASE_CONFIG, CASES
from peft import PeftModel
from safetensors.torch import load_file, save_file

MAX_LOGIT_DEVIATION = 1e-4
# Choices of experts that are close are drawn again so many times.
ATTEMPTS = 200


# -- draws -----------------------------------------------------------------------------------------


def variant(case, number, seed):
    """The case with other sizes, as a function of its name, the number and the seed."""
    draw = random.Random(f"{case.seed} {number} {seed}")
    own = golden_encoders.KEYS.get(case.family, {})
    case = replace(case, config=renamed(case.config, {name: key for key, name in own.items()}))
    config = case.config | sizes(case, draw)
    config |= layers(case.config, config, draw)
    config |= experts(case.config, draw)
    for key, choices in {
        "sliding_window": range(2, 7),
        "vocab_size": range(40, 70),
        "rope_theta": [1000.0, 10000.0, 500000.0, 1000000.0],
        "rms_norm_eps": [1e-6, 1e-5],
    }.items():
        if config.get(key) or (key == "rms_norm_eps" and not goldens.is_encoder(case)):
            config[key] = draw.choice(choices)
    if "vocab_size_per_layer_input" in config:
        config["vocab_size_per_layer_input"] = config["vocab_size"] + draw.randint(0, 3)
        config["hidden_size_per_layer_input"] = 2 * draw.randint(4, 9)
    if case.family == "olmo3":
        # transformers gives a base that stands beside the table to full attention alone.
        config["rope_theta"] = 500000.0
    if not case.family.startswith("gemma") and not goldens.is_encoder(case):
        config["tie_word_embeddings"] = draw.random() < 0.5
    longest = max(case.lengths)
    lengths = sorted(draw.randint(3, max(15, 2 * longest)) for _ in range(3))
    room = (BASE_CONFIG | config)["max_position_embeddings"]
    if case.family in ("roberta", "xlm-roberta"):
        room -= config.get("pad_token_id", 1) + 1
    lengths = [min(length, room) for length in lengths]
    return replace(
        case,
        seed=draw.randrange(1, 10**6),
        config=renamed(config, own),
        lengths=lengths,
        lora=adapter(case, draw),
        saved_as=torch.float32,
        full_gradients=True,
    )


def renamed(config, names):
    return {names.get(key, key): value for key, value in config.items()}


def sizes(case, draw):
    """Heads and widths. Rotated parts that the configuration lists keep their size."""
    config = case.config
    kv_heads, group = draw.randint(1, 3), draw.randint(1, 3)
    heads = kv_heads * group
    found = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    if goldens.is_encoder(case):
        del found["num_key_value_heads"]
    if "head_dim" in config:
        found["hidden_size"] = config["hidden_size"] + 2 * draw.randint(-2, 6)
        if case.family in ("llama", "gemma2", "gemma3"):  # as transformers insists
            found["hidden_size"] = -(-found["hidden_size"] // heads) * heads
    else:
        lists_factors = "short_factor" in json.dumps(config)
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        found["hidden_size"] = heads * (head_dim if lists_factors else 2 * draw.randint(3, 6))
    for key in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"):
        if key in config:
            found[key] = config[key] + draw.randint(0, 8)
    if "linear_num_key_heads" in config:
        keys = draw.randint(1, 3)
        found["linear_num_key_heads"] = keys
        found["linear_num_value_heads"] = keys * draw.randint(1, 3)
        found["linear_key_head_dim"] = 2 * draw.randint(2, 6)
        found["linear_value_head_dim"] = 2 * draw.randint(2, 6)
        found["linear_conv_kernel_dim"] = draw.randint(2, 5)
    return found


def layers(before, config, draw):
    """As many blocks as before or one more or less, of the kinds that there were."""
    count = (BASE_CONFIG | before)["num_hidden_layers"]
    lists = [key for key in ("layer_types", "no_rope_layers") if key in before]
    fixed = "num_kv_shared_layers" in before or "mlp_only_layers" in before
    if not fixed:
        count = max(2, count + draw.randint(-1, 1))
    found = {"num_hidden_layers": count}
    for key in lists:
        kinds = sorted(set(before[key]))
        drawn = [*kinds, *(draw.choice(kinds) for _ in range(count))][:count]
        draw.shuffle(drawn)
        found[key] = before[key] if fixed else drawn
    if before.get("max_window_layers") is not None:
        found["max_window_layers"] = draw.randint(0, count)
    if "first_k_dense_replace" in before:
        found["first_k_dense_replace"] = draw.randint(0, count - 1)
    return found


def experts(before, draw):
    key = next((key for key in ("num_experts", "num_local_experts") if before.get(key)), None)
    if key is None:
        return {}
    count = draw.randint(3, 8)
    # With one expert chosen and renormalised, routers have no gradient.
    chosen = next(key for key in ("num_experts_per_tok", "top_k_experts") if before.get(key))
    return {key: count, chosen: draw.randint(2, count - 1)}


def adapter(case, draw):
    """An adapter of some of the case's targets, with ranks and scales of its own for some."""
    rank = draw.randint(1, 5)
    settings = {"r": rank, "lora_alpha": draw.randint(1, 12), "use_rslora": draw.random() < 0.3}
    targets = sorted(case.lora.get("target_modules", goldens.ALL_LINEAR))
    chosen = set(draw.sample(targets, draw.randint(1, len(targets))))
    if any(key in case.config for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        # `per_expert` takes apart adapters of all parts of experts, and those that PEFT fused have
        # another scale under rank stabilisation than their parts had; see `fused_adapter`.
        settings["use_rslora"] = False
        for parts in ({"gate_proj", "up_proj", "down_proj"}, {"w1", "w2", "w3"}):
            chosen |= parts if chosen & parts else set()
    chosen = sorted(chosen)
    if case.lora.get("target_parameters"):
        settings["target_parameters"] = case.lora["target_parameters"]
    attention = [name for name in chosen if name in ("q_proj", "v_proj", "qkv_proj", "o_proj")]
    if attention:
        settings["rank_pattern"] = {attention[0]: draw.randint(1, 6)}
        settings["alpha_pattern"] = {attention[-1]: draw.randint(1, 12)}
    return case.lora | settings | {"target_modules": chosen}


def fused_adapter(case, draw):
    """An adapter of parameters of experts, one or both."""
    parameters = golden_mixtures.fused(case)["target_parameters"]
    return golden_mixtures.FUSED | {
        "r": draw.randint(1, 4),
        "lora_alpha": draw.randint(1, 12),
        "use_rslora": draw.random() < 0.5,
        "target_parameters": draw.sample(parameters, draw.randint(1, len(parameters))),
    }


# -- goldens ---------------------------------------------------------------------------------------


def write_variant(case, number, seed, folder):
    for attempt in range(ATTEMPTS):
        try:
            drawn = f"{seed} {attempt}"
            fused = fused_adapter(case, random.Random(f"{case.seed} {number} {drawn} fused"))
            return write_golden(variant(case, number, drawn), fused, folder)
        except AssertionError as error:
            if "a choice is close" not in str(error):
                raise
    sys.exit(f"{folder}: choices are close in all of {ATTEMPTS} draws")


def write_golden(case, fused, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    goldens.describe_model(case, folder)
    has_experts = golden_mixtures.has_experts(goldens.empty_model(case))
    adapters = {"adapter": case.lora} | ({goldens.FUSED: fused} if has_experts else {})
    for name, lora in adapters.items():
        goldens.describe_adapter(case, folder / name, lora)
    checkpoint = checkpoint_of(folder, adapters)
    ids, masks = goldens.sequences(case)
    base = goldens.load_base(checkpoint)
    for model in (base, goldens.with_adapter(copy.deepcopy(base), checkpoint)):
        golden_mixtures.check_margins(model, ids)
    tensors = goldens.numbered("ids", ids) | goldens.numbered("mask", masks)
    tensors |= goldens.numbered("logits", goldens.logits_of(base, ids))
    targets = sum(int(mask.sum()) for mask in masks)
    facts = {"num_sequences": len(ids), "num_target_tokens": targets}
    for results in (goldens.lora_gradients, goldens.full_gradients):
        more_tensors, more_facts = results(checkpoint, ids, masks)
        tensors |= more_tensors
        facts |= more_facts
    if has_experts:
        fused = goldens.with_adapter(goldens.load_base(checkpoint), checkpoint, goldens.FUSED)
        tensors |= goldens.numbered("logits_fused", goldens.logits_of(fused, ids))
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "golden.safetensors")
    goldens.write_json(folder / "golden.json", facts)
    shutil.rmtree(checkpoint)


def checkpoint_of(folder, adapters):
    """The weights that the folder describes, in a folder in it."""
    checkpoint = folder / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    random_weights.write(folder, checkpoint)
    for name in adapters:
        random_weights.write(folder / name, checkpoint / name)
    return checkpoint


def draw(arguments):
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    shutil.rmtree(arguments.dir, ignore_errors=True)
    for name in arguments.cases or CASES:
        for number in range(arguments.count):
            folder = arguments.dir / f"{name}-{number}"
            write_variant(CASES[name], number, arguments.seed, folder)
        print(f"{name}: {arguments.count} configurations drawn", flush=True)


# -- what Hone wrote -------------------------------------------------------------------------------


def check(arguments):
    worst = 0.0
    folders = sorted(path.parent for path in arguments.dir.glob("*/golden.json"))
    for folder in folders:
        tensors = load_file(folder / "golden.safetensors")
        count = json.loads((folder / "golden.json").read_text())["num_sequences"]
        ids = [tensors[f"ids_{i}"] for i in range(count)]
        written = folder / "written"
        read = {
            "full": (goldens.load_base(written / "full"), "logits"),
            "merged": (goldens.load_base(written / "merged"), "logits_lora"),
        }
        for name, golden in {"adapter": "logits_lora", goldens.FUSED: "logits_fused"}.items():
            if (written / name).is_dir():
                base = goldens.load_base(written / "full")
                read[name] = PeftModel.from_pretrained(base, written / name).eval(), golden
        for what, (model, golden) in read.items():
            expected = torch.cat([tensors[f"{golden}_{i}"] for i in range(count)])
            found = torch.cat(goldens.logits_of(model, ids))
            error = ((found - expected).abs().max() / (expected.max() - expected.min())).item()
            if not error <= MAX_LOGIT_DEVIATION:
                sys.exit(f"{folder.name}: {what} as Hone wrote it: logits deviate by {error:.1e}")
            worst = max(worst, error)
    print(f"{len(folders)} adapters, merged and full models read back: at most {worst:.1e} off")


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (draw, check):
        of = commands.add_parser(command.__name__)
        of.set_defaults(run=command)
        of.add_argument("dir", type=Path)
    commands.choices["draw"].add_argument("cases", nargs="*")
    commands.choices["draw"].add_argument("--count", type=int, default=20)
    commands.choices["draw"].add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
