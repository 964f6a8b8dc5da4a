"""Blocks as bitsandbytes packs and reads them, in the layout of `nf4.rs`: nf4.golden."""

import struct
import sys

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit


def philox(seed, stream, positions):
    """Words of Philox4x32-10 at each position, as `hone_kernels::random` has them."""
    key = [seed & 0xFFFFFFFF, seed >> 32]
    c = [positions & 0xFFFFFFFF, positions >> 32,
         np.full_like(positions, stream & 0xFFFFFFFF), np.full_like(positions, stream >> 32)]
    for _ in range(10):
        low, high = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(high >> 32) ^ c[1] ^ key[0], high & 0xFFFFFFFF,
             (low >> 32) ^ c[3] ^ key[1], low & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=1)


def numbers(stream, n):
    positions = np.arange((n + 3) // 4, dtype=np.uint64)
    words = philox(4, stream, positions).reshape(-1)[:n]
    unit = (words >> 8).astype(np.float32) * np.float32(1 / 16777216)
    block = np.arange(n) // 64
    size = np.float32(0.02) * (1 + block % 5).astype(np.float32)
    return unit * np.where(block == 1, np.float32(0), size)


torch.set_num_threads(1)  # With more, the mean of many blocks depends on their number.
with open(sys.argv[1], "wb") as out:
    for stream, n in [(0, 128), (1, 64 * 300), (2, 64 * 9 + 21), (3, 130), (4, 70)]:
        values = numbers(stream, n) if stream < 4 else np.zeros(n, np.float32)
        packed, state = quantize_4bit(
            torch.from_numpy(values), blocksize=64, compress_statistics=True, quant_type="nf4")
        out.write(state.state2.code.numpy().astype("<f4").tobytes())
        out.write(struct.pack("<f", state.offset.item()))
        out.write(state.state2.absmax.numpy().astype("<f4").tobytes())
        out.write(state.absmax.numpy().tobytes())
        out.write(packed.numpy().tobytes())
        if n < 1000:
            out.write(dequantize_4bit(packed, state).numpy().astype("<f4").tobytes())
    # The same with an absmax that is not quantised itself.
    values = torch.from_numpy(numbers(2, 64 * 9 + 21))
    packed, state = quantize_4bit(
        values, blocksize=64, compress_statistics=False, quant_type="nf4")
    out.write(state.absmax.numpy().astype("<f4").tobytes())
    out.write(packed.numpy().tobytes())
    out.write(dequantize_4bit(packed, state).numpy().astype("<f4").tobytes())
