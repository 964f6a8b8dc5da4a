"""Blocks and what the `gguf` package makes of them: blocks.golden, for the types below in order.

For each the bytes of 2 rows, then their weights as f32. And packed.golden, see below.
"""

import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

# Where a block has an f16, by type; MXFP4 has the power of two in its first byte.
SCALES = {
    Type.Q8_0: [0], Type.Q6_K: [208], Type.Q5_K: [0, 2], Type.Q5_0: [0], Type.Q4_K: [0, 2],
    Type.Q4_1: [0, 2], Type.Q4_0: [0], Type.MXFP4: [], Type.Q5_1: [0, 2], Type.Q3_K: [108],
    Type.Q2_K: [80, 82], Type.IQ4_XS: [0], Type.IQ4_NL: [0],
}
# Usual, zero, the least and greatest subnormals, the least normal, the greatest.
HALVES = [0.0031, -0.7, 0.0, -0.0, 2**-24, 1023 * 2**-24, 2**-14, 65504.0]
POWERS = [119, 126, 0, 1, 2, 127, 254, 255]

random = np.random.Generator(np.random.PCG64(1))
with open(sys.argv[1], "wb") as out:
    for type, scales in SCALES.items():
        weights, size = GGML_QUANT_SIZES[type]
        blocks = random.integers(0, 256, (8 if weights == 32 else 4, size), dtype=np.uint8)
        for field, at in enumerate(scales):
            halves = np.array([HALVES[(i + 3 * field) % 8] for i in range(len(blocks))], "<f2")
            blocks[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)
        if type == Type.MXFP4:
            blocks[:, 0] = POWERS
        rows = blocks.reshape(2, -1)
        with np.errstate(over="ignore"):
            values = dequantize(rows, type)
        out.write(rows.tobytes())
        out.write(values.astype("<f4").tobytes())

# What the package packs of floats: 2 rows of 8 blocks as f32, then, for its types in this order,
# the bytes.
PACKED = [Type.Q8_0, Type.Q5_1, Type.Q5_0, Type.Q4_1, Type.Q4_0, Type.MXFP4]
x = random.standard_normal((16, 32)).astype("f4")
x[0] = 0
x[1] = 0.7
x[2] = -1.5
x[3] *= 1e-6
x[4] *= 1e4
# Both extremes, and ties between integers and between levels.
x[5, :2] = [-2, 2]
x[6, :2] = [2, -2]
x[7] = (np.arange(32) - 16) / 4
x[8] = np.arange(32) / 8 + 1
x[9, :6] = [2**-120, 0, 0, 0, 0, 0]
x[9, 6:] = 0
# Just below a power of two.
x[10, 0] = np.nextafter(np.float32(8), np.float32(0))
x[11, 0] = np.nextafter(np.float32(2**100), np.float32(0))
x[11, 1:] = 0
x = x.reshape(2, -1)
with open(sys.argv[2], "wb") as out:
    out.write(x.astype("<f4").tobytes())
    for type in PACKED:
        with np.errstate(over="ignore"):
            out.write(quantize(x, type).tobytes())
