// A block takes a row; the row's second reading comes from the cache.

// `x [t, h]`, `w [h]` → `y [t, h]`, `rstd [t]`.
template <class Y>
__global__ void rms_norm_forward(
    const float* x, const float* w, float eps, size_t h, Y* y, float* rstd) {
    size_t row = blockIdx.x;
    x += row * h, y += row * h;
    bool together = h % 4 == 0 && aligned<4>(x, w, y);
    float sum = 0.0f;
    over_block<4>(h, together, [&](size_t c, auto count) {
        auto x_c = read(x + c, count);
        for (int k = 0; k < count.value; k++) sum += x_c.of[k] * x_c.of[k];
    });
    float factor = 1.0f / sqrtf(block_sum(sum) / float(h) + eps);
    if (threadIdx.x == 0) rstd[row] = factor;
    over_block<4>(h, together, [&](size_t c, auto count) {
        auto x_c = read(x + c, count), w_c = read(w + c, count);
        for (int k = 0; k < count.value; k++) x_c.of[k] = x_c.of[k] * factor * w_c.of[k];
        write(y + c, x_c);
    });
}

// `d_x [t, h]`, overwritten or added to, for `d_y [t, h]`.
template <class Y>
__global__ void rms_norm_backward(
    const float* x, const float* w, const float* rstd, const Y* d_y, size_t h, uint32 adds,
    float* d_x) {
    size_t row = blockIdx.x;
    x += row * h, d_y += row * h, d_x += row * h;
    bool together = h % 4 == 0 && aligned<4>(x, w, d_y, d_x);
    float sum = 0.0f;
    over_block<4>(h, together, [&](size_t c, auto count) {
        auto x_c = read(x + c, count), w_c = read(w + c, count), d_c = read(d_y + c, count);
        for (int k = 0; k < count.value; k++) sum += d_c.of[k] * w_c.of[k] * x_c.of[k];
    });
    float factor = rstd[row];
    float along_x = factor * factor * factor * block_sum(sum) / float(h);
    over_block<4>(h, together, [&](size_t c, auto count) {
        auto x_c = read(x + c, count), w_c = read(w + c, count), d_c = read(d_y + c, count);
        for (int k = 0; k < count.value; k++) {
            d_c.of[k] = d_c.of[k] * w_c.of[k] * factor - x_c.of[k] * along_x;
        }
        if (adds) {
            auto old_c = read(d_x + c, count);
            for (int k = 0; k < count.value; k++) d_c.of[k] += old_c.of[k];
        }
        write(d_x + c, d_c);
    });
}

// `d_w [h] += Σ_t d_y · x · rstd`.
template <class Y>
__global__ void __launch_bounds__(1024) rms_norm_backward_weight(
    const float* x, const float* rstd, const Y* d_y, size_t t, size_t h, float* d_w) {
    add_sums_over_rows(t, h, d_w, [&](size_t row, size_t column) {
        size_t i = row * h + column;
        return to_f32(d_y[i]) * x[i] * rstd[row];
    });
}
