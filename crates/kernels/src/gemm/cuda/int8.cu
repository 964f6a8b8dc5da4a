// Int8 operands: signed bytes, with a scale for each row of activations or gradients and for each
// row of a weight.

// Quantises `x · factors` to `y [rows, cols]`, with a scale per row that maps its largest magnitude
// to 127; the scale is NaN if an element is not finite. Rows of `x` are `stride` apart, a block per
// row; without `factors` they are ones. The same bytes as on the CPU.
template <class T>
__global__ void int8_quantise(
    const T* x, size_t cols, size_t stride, const float* factors, uint8* y, float* scales) {
    const int N = VECTOR<T>;
    const T* from = x + blockIdx.x * stride;
    uint8* to = y + blockIdx.x * cols;
    bool vectorised = aligned<N>(from, to) && aligned<N>(factors);
    auto scaled = [&](size_t c, auto count) {
        auto x_c = read(from + c, count);
        if (factors) {
            auto factors_c = read(factors + c, count);
            for (int k = 0; k < count.value; k++) x_c.v[k] *= factors_c.v[k];
        }
        return x_c;
    };
    float amax = 0.0f;
    over_block<N>(cols, vectorised, [&](size_t c, auto count) {
        auto x_c = scaled(c, count);
        for (int k = 0; k < count.value; k++) {
            // Tested by its bits: `x - x` may become a fused multiply-add, which need not be zero.
            bool finite = (__float_as_uint(x_c.v[k]) & 0x7f800000u) != 0x7f800000u;
            amax = fmaxf(amax, finite ? fabsf(x_c.v[k]) : INFINITY);
        }
    });
    amax = block_max(amax);
    // The inverse of anything smaller would be infinite: such rows become zero.
    float inverse = amax > 1e-35f ? 127.0f / amax : 0.0f;
    over_block<N>(cols, vectorised, [&](size_t c, auto count) {
        auto x_c = scaled(c, count);
        Vec<uint8, count.value> y_c;
        for (int k = 0; k < count.value; k++) {
            // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits.
            y_c.v[k] = uint8(__float_as_uint(fmaf(x_c.v[k], inverse, 12582912.0f)));
        }
        *reinterpret_cast<Vec<uint8, count.value>*>(to + c) = y_c;
    });
    float scale = amax == INFINITY ? __uint_as_float(0x7fc00000u) : amax / 127.0f;
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

// Removes the zero point from the bytes of a weight, sixteen at a time.
__global__ void int8_weight(Int8Rows w, size_t n, uint8* y) {
    typedef Vec<uint32, 4> Words;
    over_grid<16>(n, aligned<16>(w, y), [&](size_t i, auto count) {
        if (count.value == 1) {
            y[i] = w.values[i] ^ 0x80;
        } else {
            Words words = *reinterpret_cast<const Words*>(w.values + i);
            for (int k = 0; k < 4; k++) words.v[k] ^= 0x80808080u;
            *reinterpret_cast<Words*>(y + i) = words;
        }
    });
}

// The transpose `y [cols, rows]`.
__global__ void int8_weight_transposed(Int8Rows w, size_t rows, size_t cols, uint8* y) {
    transpose(rows, cols, y, [&](size_t, size_t index) { return uint8(w.values[index] ^ 0x80); });
}

// `y = scale · row_scales[i] · col_scales[j] · sums[i, j] + add[i, j]`; without `col_scales` they
// are ones, and without `add` nothing is added. A block per row; rows of `y` and `add` are `stride`
// apart.
template <class Y>
__global__ void int8_dequantise(
    const int* sums, size_t n, const float* row_scales, const float* col_scales, float scale,
    const Y* add, Y* y, size_t stride) {
    const int N = 4;
    sums += blockIdx.x * n, y += blockIdx.x * stride;
    if (add) add += blockIdx.x * stride;
    float row_scale = scale * row_scales[blockIdx.x];
    bool vectorised = aligned<N>(sums, col_scales, add, y);
    over_block<N>(n, vectorised, [&](size_t c, auto count) {
        auto sums_c = *reinterpret_cast<const Vec<int, count.value>*>(sums + c);
        Vec<float, count.value> y_c;
        for (int k = 0; k < count.value; k++) y_c.v[k] = row_scale * float(sums_c.v[k]);
        if (col_scales) {
            auto scales_c = read(col_scales + c, count);
            for (int k = 0; k < count.value; k++) y_c.v[k] *= scales_c.v[k];
        }
        if (add) {
            auto add_c = read(add + c, count);
            for (int k = 0; k < count.value; k++) y_c.v[k] += add_c.v[k];
        }
        write(y + c, y_c);
    });
}
