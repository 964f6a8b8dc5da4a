// Operands of products in FP8: numbers of eight bits and one factor for all of them, so that the
// greatest becomes the greatest that there is.

// Bits of the mantissa, the exponent's bias, and the greatest number.
struct E4m3 {
    static constexpr int MANTISSA = 3, BIAS = 7;
    static constexpr float GREATEST = 448.0f;
};
struct E5m2 {
    static constexpr int MANTISSA = 2, BIAS = 15;
    static constexpr float GREATEST = 57344.0f;
};

// To the nearest, ties to even; what is too large becomes the greatest.
template <class F> DEVICE uint8 to_fp8(float x) {
    uint32 sign = __float_as_uint(x) >> 24 & 0x80;
    if (x != x) return uint8(sign | 0x7f);
    float magnitude = fminf(fabsf(x), F::GREATEST);
    // Adding this leaves units of the least number in the last place.
    float shift = float(1 << (24 - F::BIAS - F::MANTISSA));
    if (magnitude * float(1 << (F::BIAS - 1)) < 1.0f) {
        return uint8(sign | (__float_as_uint(magnitude + shift) - __float_as_uint(shift)));
    }
    const int drop = 23 - F::MANTISSA;
    uint32 bits = __float_as_uint(magnitude) - (uint32(127 - F::BIAS) << 23);
    return uint8(sign | (bits + (1u << (drop - 1)) - 1 + (bits >> drop & 1)) >> drop);
}

#if __CUDA_ARCH__ >= 890
template <> DEVICE uint8 to_fp8<E4m3>(float x) {
    uint16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return uint8(pair);
}

template <> DEVICE uint8 to_fp8<E5m2>(float x) {
    uint16 pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return uint8(pair);
}
#endif

// What numbers are divided by whose greatest magnitude is `greatest`.
template <class F> DEVICE float factor(float greatest) {
    return fmaxf(greatest / F::GREATEST, 1e-30f);
}

// `greatest = max |x|` of `rows` rows of `cols`, `stride` apart; it is zero before. The order does
// not matter to a maximum, and numbers that are not negative are ordered as their bits are.
template <class T>
__global__ void fp8_greatest(
    const T* x, size_t rows, size_t cols, size_t stride, float* greatest) {
    const int N = RUN<T>;
    float most = 0.0f;
    for (size_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = x + row * stride;
        over_block<N>(cols, aligned<N>(from), [&](size_t c, auto count) {
            auto x_c = read(from + c, count);
            for (int k = 0; k < count.value; k++) most = fmaxf(most, fabsf(x_c.of[k]));
        });
    }
    most = block_max(most);
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<uint32*>(greatest), __float_as_uint(most));
}

// The same of rows of bytes: no more than each row's scale allows. One block.
__global__ void fp8_greatest_of_bytes(const float* scales, size_t rows, float* greatest) {
    float most = 0.0f;
    over_block<1>(rows, true, [&](size_t row, auto) { most = fmaxf(most, scales[row]); });
    most = block_max(most);
    if (threadIdx.x == 0) *greatest = 127.0f * most;
}

// `y [rows, cols]` and its factor, from rows of `x` that are `stride` apart; a block a row.
template <class T, class F>
__global__ void fp8_quantise(
    const T* x, size_t cols, size_t stride, const float* greatest, uint8* y, float* scale) {
    float own = factor<F>(*greatest), inverse = 1.0f / own;
    const T* from = x + blockIdx.x * stride;
    uint8* to = y + blockIdx.x * cols;
    const int N = RUN<T>;
    over_block<N>(cols, aligned<N>(from, to), [&](size_t c, auto count) {
        auto x_c = read(from + c, count);
        Neighbours<uint8, count.value> y_c;
        for (int k = 0; k < count.value; k++) y_c.of[k] = to_fp8<F>(x_c.of[k] * inverse);
        *reinterpret_cast<Neighbours<uint8, count.value>*>(to + c) = y_c;
    });
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale = own;
}

// `y [rows, cols]` and its factor, from rows of bytes; a block a row.
__global__ void fp8_panel(
    Int8Rows w, size_t cols, const float* greatest, uint8* y, float* scale) {
    const int N = 16;
    float own = factor<E4m3>(*greatest), inverse = 1.0f / own;
    size_t row = blockIdx.x;
    w.values += row * cols, y += row * cols;
    over_block<N>(cols, aligned<N>(w, y), [&](size_t c, auto count) {
        auto w_c = read(w, c, row, count);
        Neighbours<uint8, count.value> y_c;
        for (int k = 0; k < count.value; k++) y_c.of[k] = to_fp8<E4m3>(w_c.of[k] * inverse);
        *reinterpret_cast<Neighbours<uint8, count.value>*>(y + c) = y_c;
    });
    if (row == 0 && threadIdx.x == 0) *scale = own;
}

// `y [cols, rows]`, turned, and its factor.
__global__ void fp8_panel_turned(
    Int8Rows w, size_t rows, size_t cols, const float* greatest, uint8* y, float* scale) {
    float own = factor<E4m3>(*greatest), inverse = 1.0f / own;
    turn(rows, cols, y, [&](size_t row, size_t index) {
        return to_fp8<E4m3>(read(w, index, row, Count<1>()).of[0] * inverse);
    });
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *scale = own;
}
