"""Random weights that Python and Rust draw alike, so that golden files need not contain any.

A folder with `weights.json` stands for a checkpoint; `write` adds the weights that are left out.
`crates/model/tests/model/random_weights.rs` does the same for the tests. A number depends on seed,
name of the tensor and position alone, and is made of integers and three roundings to f32, so both
have the same bits; `digest` lets the tests see that they do.
"""

import json
import shutil

import numpy
import torch
from safetensors.torch import save_file


def philox4x32_10(counters, key):
    """Random words of Philox4x32-10; `counters` are four arrays of uint64 below 2^32."""
    low, high = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    for _ in range(10):
        a, b, c, d = counters
        first, second = a * numpy.uint64(0xD2511F53), c * numpy.uint64(0xCD9E8D57)
        counters = [
            second >> high ^ b ^ numpy.uint64(key[0]),
            second & low,
            first >> high ^ d ^ numpy.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counters


def fnv_1a(data, value=0xCBF29CE484222325):
    """The 64-bit hash FNV-1a of bytes, gone on with from `value`."""
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def random_words(seed, stream, count):
    """The four words at each of the first positions, as `Philox::words` in `crates/kernels`."""
    positions = numpy.arange(count, dtype=numpy.uint64)
    rest = [0, stream & 0xFFFFFFFF, stream >> 32]
    counters = [positions] + [numpy.full_like(positions, word) for word in rest]
    return philox4x32_10(counters, [seed, 0])


def uniform(seed, stream, count):
    """Numbers in [0, 1) in f32, as `Philox::uniform`."""
    words = numpy.stack(random_words(seed, stream, -(-count // 4)), axis=1).flatten()
    return (words[:count] >> numpy.uint64(8)).astype(numpy.float32) / numpy.float32(1 << 24)


def normal(seed, name, count):
    """Almost standard normal numbers in f32: sums of four uniform ones (Irwin-Hall)."""
    words = random_words(seed, fnv_1a(name.encode()), count)
    total = sum((word >> numpy.uint64(10)).astype(numpy.int64) for word in words)
    sqrt_3 = numpy.float32(1.7320508)
    return (total - (1 << 23)).astype(numpy.float32) * (sqrt_3 / numpy.float32(1 << 22))


def tensors(description):
    """The tensors of each file, by name, which `description`, a `weights.json`, describes."""
    dtype = getattr(torch, description["dtype"])

    def draw(name, shape, mean, scale):
        noise = normal(description["seed"], name, numpy.prod(shape))
        values = numpy.float32(mean) + numpy.float32(scale) * noise
        return torch.from_numpy(values.reshape(shape)).to(dtype)

    return {
        file: {name: draw(name, *entry) for name, entry in sorted(entries.items())}
        for file, entries in description["files"].items()
    }


def digest(description):
    """FNV-1a of the bytes of all tensors, file by file and name by name, as hexadecimal digits."""
    value = fnv_1a(b"")
    for named in tensors(description).values():
        for tensor in named.values():
            value = fnv_1a(tensor.view(torch.uint8).numpy().tobytes(), value)
    return f"{value:016x}"


def write(source, target):
    """Makes `target` the checkpoint that the folder `source` stands for."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        results = path.name.startswith("golden.")
        if path.is_file() and path.name != "weights.json" and not results:
            shutil.copy(path, target)
    description = json.loads((source / "weights.json").read_text())
    for file, named in tensors(description).items():
        save_file(named, target / file, metadata={"format": "pt"})
