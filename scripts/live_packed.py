"""Directories that `hone compress` writes for other engines, in transformers.

    python scripts/live_packed.py HONE FOLDER [TYPE ...]

`cargo xtask live packed` calls it with the release build. Writes stories260k (../shared) and
SmolLM2 (target/models, in f32) into FOLDER as each TYPE, all without any, lets transformers load
them with compressed-tensors or bitsandbytes, and compares the logits of one text in f32 with
Hone's: they must be within 1e-3 of their range, and so much closer than the unquantised model's
that they are those of the same weights. Of fp8_dynamic activations are rounded by
compressed-tensors too, unless it dequantises weights first; how far that is from Hone's is only
noted. Needs torch, transformers, compressed-tensors, bitsandbytes and accelerate. Exits with 1 if
a type fails.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "target" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
STORIES = ROOT.parent / "shared" / "models" / "stories260k"
TEXT = (
    "Once upon a time there was a little girl who lived in a village near the forest. One day she "
    "found a small bird with a broken wing, and she took it home with her."
)
LIMIT = 1e-3
# Rows that are no whole groups are only noted.
CASES = {
    "w4a16": [[], ["--group-size", "64"], ["--group-size", "32"], ["--group-size", "channel"]],
    "w8a16": [[], ["--group-size", "64"]],
    "fp8_dynamic": [[]],
    "nf4": [[]],
}


def hone(program, *arguments):
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def logits_of_hone(program, folder, model):
    (folder / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    out = folder / "logits.safetensors"
    out.unlink(missing_ok=True)
    hone(program, "eval", model, "--data", folder / "text.jsonl", "--format", "text", "--compute",
         "f32", "--device", "cpu", "--logits", out)
    found = load_file(out)
    return found["tokens"].flatten().long(), found["logits"].float()


def logits_of_transformers(model, tokens, dequantize):
    config = {}
    if dequantize:
        config["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **config).eval()
    with torch.no_grad():
        return loaded(tokens[None]).logits[0].float()


def off(found, expected):
    return ((found - expected).abs().max() / (expected.max() - expected.min())).item()


def compare(program, folder, model, base, kind, more):
    name = "-".join([model.name, kind, *more[1:]])
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    try:
        report = json.loads(hone(
            program, "compress", model, "--type", kind, *more, "--out", out, "--device", "cpu",
            "--json"))
    except RuntimeError as error:
        if "no whole groups" in str(error):
            print(f"{name}: rows are no whole groups")
            return True
        raise
    tokens, expected = logits_of_hone(program, folder, out)
    error = off(logits_of_transformers(out, tokens, kind == "fp8_dynamic"), expected)
    lost = off(base, expected)
    is_good = error < LIMIT and error < lost / 10
    line = (
        f"{name}: {report['bits_per_weight']:.2f} bits per weight, KL {report['kl']:.5f}; logits "
        f"within {error:.1e} of Hone's, the model's own within {lost:.1e}"
    )
    if kind == "fp8_dynamic":
        rounded = off(logits_of_transformers(out, tokens, False), expected)
        line += f", with activations in FP8 within {rounded:.1e}"
    print(line + ("" if is_good else ": FAILED"), flush=True)
    shutil.rmtree(out)
    return is_good


def main(program, folder, *kinds):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    smollm2 = folder / "SmolLM2"
    if SMOLLM2.exists() and not smollm2.exists():
        hone(program, "export", SMOLLM2, "--dtype", "f32", "--out", smollm2)
    models = [model for model in [STORIES, smollm2] if model.exists()]
    if not models:
        sys.exit("neither ../shared/models/stories260k nor SmolLM2 (cargo xtask models) is there")
    passed = True
    for model in models:
        _, base = logits_of_hone(program, folder, model)
        for kind, variants in CASES.items():
            if kinds and kind not in kinds:
                continue
            for more in variants:
                passed &= compare(program, folder, model, base, kind, more)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
