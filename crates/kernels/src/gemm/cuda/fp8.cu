// FP8 operands with per-tensor scaling: one scale for the whole operand, which maps its largest
// magnitude to the largest finite FP8 value.

// Bits of the mantissa, the exponent's bias, and the largest finite value.
struct E4m3 {
    static constexpr int MANTISSA = 3, BIAS = 7;
    static constexpr float MAX = 448.0f;
};
struct E5m2 {
    static constexpr int MANTISSA = 2, BIAS = 15;
    static constexpr float MAX = 57344.0f;
};

// Rounds to nearest even, and saturates.
template <class F> DEVICE uint8 to_fp8(float x) {
    uint32 sign = __float_as_uint(x) >> 24 & 0x80;
    if (x != x) return uint8(sign | 0x7f);
    float magnitude = fminf(fabsf(x), F::MAX);
    // Adding this aligns the smallest subnormal with the last place.
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

// Scale of an operand whose largest magnitude is `amax`.
template <class F> DEVICE float scale_of(float amax) {
    return fmaxf(amax / F::MAX, 1e-30f);
}

// `amax = max |x|` of `rows` rows of `cols`, `stride` apart; the caller zeroes it. A maximum does
// not depend on the order of the atomics, and non-negative floats are ordered like their bits.
template <class T>
__global__ void fp8_amax(const T* x, size_t rows, size_t cols, size_t stride, float* amax) {
    const int N = VECTOR<T>;
    float own_max = 0.0f;
    for (size_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = x + row * stride;
        over_block<N>(cols, aligned<N>(from), [&](size_t c, auto count) {
            auto x_c = read(from + c, count);
            for (int k = 0; k < count.value; k++) own_max = fmaxf(own_max, fabsf(x_c.v[k]));
        });
    }
    own_max = block_max(own_max);
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<uint32*>(amax), __float_as_uint(own_max));
}

// An upper bound of `amax` for an int8 weight, from the scales of its rows. One block.
__global__ void fp8_amax_of_int8(const float* scales, size_t rows, float* amax) {
    float max_scale = 0.0f;
    over_block<1>(rows, true, [&](size_t row, auto) { max_scale = fmaxf(max_scale, scales[row]); });
    max_scale = block_max(max_scale);
    if (threadIdx.x == 0) *amax = 127.0f * max_scale;
}

// `y [rows, cols]` and its scale, from rows of `x` that are `stride` apart; a block per row.
template <class T, class F>
__global__ void fp8_quantise(
    const T* x, size_t cols, size_t stride, const float* amax, uint8* y, float* scale) {
    float own_scale = scale_of<F>(*amax), inverse = 1.0f / own_scale;
    const T* from = x + blockIdx.x * stride;
    uint8* to = y + blockIdx.x * cols;
    const int N = VECTOR<T>;
    over_block<N>(cols, aligned<N>(from, to), [&](size_t c, auto count) {
        auto x_c = read(from + c, count);
        Vec<uint8, count.value> y_c;
        for (int k = 0; k < count.value; k++) y_c.v[k] = to_fp8<F>(x_c.v[k] * inverse);
        *reinterpret_cast<Vec<uint8, count.value>*>(to + c) = y_c;
    });
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale = own_scale;
}

// `y [rows, cols]` and its scale, from an int8 weight; a block per row.
__global__ void fp8_weight(Int8Rows w, size_t cols, const float* amax, uint8* y, float* scale) {
    const int N = 16;
    float own_scale = scale_of<E4m3>(*amax), inverse = 1.0f / own_scale;
    size_t row = blockIdx.x;
    w.values += row * cols, y += row * cols;
    over_block<N>(cols, aligned<N>(w, y), [&](size_t c, auto count) {
        auto w_c = read(w, c, row, count);
        Vec<uint8, count.value> y_c;
        for (int k = 0; k < count.value; k++) y_c.v[k] = to_fp8<E4m3>(w_c.v[k] * inverse);
        *reinterpret_cast<Vec<uint8, count.value>*>(y + c) = y_c;
    });
    if (row == 0 && threadIdx.x == 0) *scale = own_scale;
}

// The transpose `y [cols, rows]` and its scale.
__global__ void fp8_weight_transposed(
    Int8Rows w, size_t rows, size_t cols, const float* amax, uint8* y, float* scale) {
    float own_scale = scale_of<E4m3>(*amax), inverse = 1.0f / own_scale;
    transpose(rows, cols, y, [&](size_t row, size_t index) {
        return to_fp8<E4m3>(read(w, index, row, Count<1>()).v[0] * inverse);
    });
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *scale = own_scale;
}
