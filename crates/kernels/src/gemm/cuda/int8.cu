// Operands of products in 8-bit integers: signed bytes, with a scale for each row of activations or
// gradients and for each row of a weight.

// `y [rows, cols] = x · factors` in signed bytes, the greatest of a row ±127, and its scale, which
// is not a number if an element is not finite. A block takes a row of `x`, which are `stride`
// apart; without `factors` these are ones. The same bytes as on the CPU.
template <class T>
__global__ void int8_quantise(
    const T* x, size_t cols, size_t stride, const float* factors, uint8* y, float* scales) {
    const int N = RUN<T>;
    const T* from = x + blockIdx.x * stride;
    uint8* to = y + blockIdx.x * cols;
    bool together = aligned<N>(from, to) && aligned<N>(factors);
    auto product = [&](size_t c, auto count) {
        auto x_c = read(from + c, count);
        if (factors) {
            auto factors_c = read(factors + c, count);
            for (int k = 0; k < count.value; k++) x_c.of[k] *= factors_c.of[k];
        }
        return x_c;
    };
    float greatest = 0.0f;
    over_block<N>(cols, together, [&](size_t c, auto count) {
        auto x_c = product(c, count);
        for (int k = 0; k < count.value; k++) {
            // By its bits: a product less itself may be fused, and is then not zero.
            bool finite = (__float_as_uint(x_c.of[k]) & 0x7f800000u) != 0x7f800000u;
            greatest = fmaxf(greatest, finite ? fabsf(x_c.of[k]) : INFINITY);
        }
    });
    greatest = block_max(greatest);
    // The inverse of what is smaller would be infinite: such rows are zero.
    float inverse = greatest > 1e-35f ? 127.0f / greatest : 0.0f;
    over_block<N>(cols, together, [&](size_t c, auto count) {
        auto x_c = product(c, count);
        Neighbours<uint8, count.value> y_c;
        for (int k = 0; k < count.value; k++) {
            // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits.
            y_c.of[k] = uint8(__float_as_uint(fmaf(x_c.of[k], inverse, 12582912.0f)));
        }
        *reinterpret_cast<Neighbours<uint8, count.value>*>(to + c) = y_c;
    });
    float scale = greatest == INFINITY ? __uint_as_float(0x7fc00000u) : greatest / 127.0f;
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

// `y` = the bytes of a weight without their zero point; sixteen at a time.
__global__ void int8_panel(Int8Rows w, size_t n, uint8* y) {
    typedef Neighbours<uint32, 4> Words;
    over_grid<16>(n, aligned<16>(w, y), [&](size_t i, auto count) {
        if (count.value == 1) {
            y[i] = w.values[i] ^ 0x80;
        } else {
            Words words = *reinterpret_cast<const Words*>(w.values + i);
            for (int k = 0; k < 4; k++) words.of[k] ^= 0x80808080u;
            *reinterpret_cast<Words*>(y + i) = words;
        }
    });
}

// `y [cols, rows]`, turned.
__global__ void int8_panel_turned(Int8Rows w, size_t rows, size_t cols, uint8* y) {
    turn(rows, cols, y, [&](size_t, size_t index) { return uint8(w.values[index] ^ 0x80); });
}

// `y = scale · of_rows[i] · of_columns[j] · sums[i, j] + add[i, j]`; without `of_columns` these are
// ones, and without `add` nothing is added. A block takes a row; those of `y` and `add` are
// `stride` apart.
template <class Y>
__global__ void int8_finish(
    const int* sums, size_t n, const float* of_rows, const float* of_columns, float scale,
    const Y* add, Y* y, size_t stride) {
    const int N = 4;
    sums += blockIdx.x * n, y += blockIdx.x * stride;
    if (add) add += blockIdx.x * stride;
    float of_row = scale * of_rows[blockIdx.x];
    bool together = aligned<N>(sums, of_columns, add, y);
    over_block<N>(n, together, [&](size_t c, auto count) {
        auto sums_c = *reinterpret_cast<const Neighbours<int, count.value>*>(sums + c);
        Neighbours<float, count.value> y_c;
        for (int k = 0; k < count.value; k++) y_c.of[k] = of_row * float(sums_c.of[k]);
        if (of_columns) {
            auto of_c = read(of_columns + c, count);
            for (int k = 0; k < count.value; k++) y_c.of[k] *= of_c.of[k];
        }
        if (add) {
            auto add_c = read(add + c, count);
            for (int k = 0; k < count.value; k++) y_c.of[k] += add_c.of[k];
        }
        write(y + c, y_c);
    });
}
