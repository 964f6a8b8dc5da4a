// FP8 (e4m3) with one scale, one for each row, or one for each 128 × 128 weights: the scales, then
// the bytes.
struct Fp8 {
    const uint8* bytes;
    size_t cols;
};
struct Fp8Rows {
    const uint8* bytes;
    size_t rows;
};
struct Fp8Blocks {
    const uint8* bytes;
    uint32 cols, rows;
};

DEVICE float e4m3(uint8 byte) {
    uint32 sign = uint32(byte & 0x80) << 24, magnitude = byte & 0x7f;
    if (magnitude == 0x7f) return __uint_as_float(sign | 0x7fc00000);
    // The multiplication rebiases the exponent and normalises subnormals.
    float value = __uint_as_float(magnitude << 20) * __uint_as_float(0x7b800000);
    return __uint_as_float(__float_as_uint(value) | sign);
}

template <int N> DEVICE bool aligned(Fp8) {
    return true;
}

template <int N> DEVICE bool aligned(Fp8Rows) {
    return true;
}

template <int N> DEVICE bool aligned(Fp8Blocks) {
    return true;
}

// A vector with one scale: no block ends in it, since it begins at a multiple of its length.
template <int N> DEVICE Vec<float, N> read_fp8(const uint8* values, float scale, Count<N>) {
    Vec<float, N> y;
    for (int k = 0; k < N; k++) y.v[k] = __fmul_rn(e4m3(values[k]), scale);
    return y;
}

template <int N> DEVICE Vec<float, N> read(Fp8 x, size_t index, size_t, Count<N> count) {
    return read_fp8(x.bytes + 4 + index, *reinterpret_cast<const float*>(x.bytes), count);
}

template <int N> DEVICE Vec<float, N> read(Fp8Rows x, size_t index, size_t row, Count<N> count) {
    float scale = reinterpret_cast<const float*>(x.bytes)[row];
    return read_fp8(x.bytes + 4 * x.rows + index, scale, count);
}

template <int N> DEVICE Vec<float, N> read(Fp8Blocks x, size_t index, size_t row, Count<N> count) {
    size_t across = (x.cols + 127) / 128, down = (x.rows + 127) / 128, col = index - row * x.cols;
    const float* scales = reinterpret_cast<const float*>(x.bytes);
    float scale = scales[row / 128 * across + col / 128];
    return read_fp8(x.bytes + 4 * across * down + index, scale, count);
}
