"""A GGUF file by AutoRound, for `cargo xtask bench compress`.

    PYTHON bench/compress_autoround.py MODEL CALIBRATION SCHEME ITERATIONS OUT

MODEL is a folder in Hugging Face layout, CALIBRATION a text of which windows of 512 tokens are
taken, SCHEME one of its mixes such as Q4_K_M; with 0 iterations it only searches scales. PYTHON is
that of target/autoround-venv, in which `pip install auto-round gguf sentencepiece` was done; the
benchmark leaves AutoRound out where there is none.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512


def name_split():
    """Lets the converter take a tokenizer that it does not know by its hash: it splits as GPT-2's."""
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

    get_conversion()
    model = sys.modules["conversion.base"].TextModel
    known = model.get_vocab_base_pre

    def found(self, tokenizer):
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    model.get_vocab_base_pre = found


def main(folder, calibration, scheme, iterations, out):
    name_split()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = calibration.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    windows = [ids[at : at + WINDOW][None] for at in range(0, len(ids) - WINDOW + 1, WINDOW)]
    rounding = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=f"GGUF:{scheme}",
        dataset=windows,
        iters=iterations,
        seqlen=WINDOW,
        nsamples=len(windows),
        device_map="cpu",
        enable_torch_compile=False,
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as written:
        rounding.quantize_and_save(written, format=f"gguf:{scheme.lower()}")
        [file] = Path(written).rglob("*.gguf")
        shutil.move(file, out)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    folder, calibration, scheme, iterations, out = sys.argv[1:]
    main(Path(folder), Path(calibration), scheme, int(iterations), Path(out))
