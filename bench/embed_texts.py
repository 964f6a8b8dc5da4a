"""Embeds texts with sentence-transformers, as a peer to measure against.

    target/bench-venv/bin/python bench/embed_texts.py SETTINGS.json

The settings name the model directory, the data (`text` in JSON lines), the element type and the
number of threads. Tries several sizes of batches first and keeps the fastest; sentence-transformers
itself puts texts of like lengths together. Prints a line of JSON when it is ready, and after that
one for every line on standard input: seconds and tokens (padding not counted) of all texts, and the
peak of memory. Started by `cargo xtask bench families`.
"""

import json
import os
import resource
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from sentence_transformers import SentenceTransformer
from torch.backends import mkldnn

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
BATCHES = [8, 16, 32, 64, 128]


class Embedder:
    def __init__(self, settings):
        torch.set_num_threads(settings["threads"])
        model = {"dtype": DTYPES[settings["dtype"]], "attn_implementation": "sdpa"}
        self.model = SentenceTransformer(settings["model"], device="cpu", model_kwargs=model)
        with open(settings["data"], encoding="utf-8") as file:
            self.texts = [json.loads(line)["text"] for line in file]
        self.tokens = sum(map(len, self.model.tokenizer(self.texts)["input_ids"]))
        # Lets oneDNN name its kernels on standard output, as under `ONEDNN_VERBOSE=1`.
        with mkldnn.verbose(mkldnn.VERBOSE_ON):
            self.seconds(BATCHES[0])
        self.batch = min(BATCHES, key=self.seconds)

    def seconds(self, batch):
        start = time.perf_counter()
        self.model.encode(self.texts, batch_size=batch)
        return time.perf_counter() - start

    def figures(self):
        seconds = self.seconds(self.batch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": seconds, "tokens": self.tokens, "peak_bytes": peak, "batch": self.batch}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        embedder = Embedder(json.load(file))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(embedder.figures()), flush=True)


if __name__ == "__main__":
    main()
