// One block per row; its later reads of the row hit the cache. `statistics` are mean and `rstd` of
// each row.

// `x`, `w [h]`, `bias [h]` if it `adds` → `y`.
template <class X, class Y>
__global__ void layer_norm_forward(
    const X* x, const float* w, const float* bias, uint32 adds, float eps, size_t h, Y* y,
    float* statistics) {
    size_t row = blockIdx.x;
    x += row * h, y += row * h;
    bool vectorised = h % 4 == 0 && aligned<4>(x, w, bias, y);
    float sum = 0.0f, squares = 0.0f;
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n);
        for (int k = 0; k < n.value; k++) sum += x_c.v[k];
    });
    float mean = block_sum(sum) / float(h);
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n);
        for (int k = 0; k < n.value; k++) squares += (x_c.v[k] - mean) * (x_c.v[k] - mean);
    });
    float rstd = 1.0f / sqrtf(block_sum(squares) / float(h) + eps);
    if (threadIdx.x == 0) statistics[2 * row] = mean, statistics[2 * row + 1] = rstd;
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n), w_c = read(w + c, n);
        for (int k = 0; k < n.value; k++) x_c.v[k] = (x_c.v[k] - mean) * rstd * w_c.v[k];
        if (adds) {
            auto b_c = read(bias + c, n);
            for (int k = 0; k < n.value; k++) x_c.v[k] += b_c.v[k];
        }
        write(y + c, x_c);
    });
}

// `d_x` for `d_y`, overwritten or accumulated.
template <class X, class Y>
__global__ void layer_norm_backward(
    const X* x, const float* w, const float* statistics, const Y* d_y, size_t h, uint32 adds,
    X* d_x) {
    size_t row = blockIdx.x;
    x += row * h, d_y += row * h, d_x += row * h;
    bool vectorised = h % 4 == 0 && aligned<4>(x, w, d_y, d_x);
    float mean = statistics[2 * row], rstd = statistics[2 * row + 1];
    float sum = 0.0f, along = 0.0f;
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n), w_c = read(w + c, n), d_c = read(d_y + c, n);
        for (int k = 0; k < n.value; k++) {
            float d = d_c.v[k] * w_c.v[k];
            sum += d;
            along += d * (x_c.v[k] - mean) * rstd;
        }
    });
    float d_mean = block_sum(sum) / float(h), d_along = block_sum(along) / float(h);
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n), w_c = read(w + c, n), d_c = read(d_y + c, n);
        for (int k = 0; k < n.value; k++) {
            float normed = (x_c.v[k] - mean) * rstd;
            d_c.v[k] = rstd * (d_c.v[k] * w_c.v[k] - d_mean - normed * d_along);
        }
        if (adds) {
            auto old_c = read(d_x + c, n);
            for (int k = 0; k < n.value; k++) d_c.v[k] += old_c.v[k];
        }
        write(d_x + c, d_c);
    });
}

// `d_w [h] += Σ d_y · (x - mean) · rstd` over all rows.
template <class X, class Y>
__global__ void __launch_bounds__(1024) layer_norm_backward_weight(
    const X* x, const float* statistics, const Y* d_y, size_t rows, size_t h, float* d_w) {
    add_sums_over_rows(rows, h, d_w, [&](size_t row, size_t column) {
        size_t i = row * h + column;
        float mean = statistics[2 * row], rstd = statistics[2 * row + 1];
        return to_f32(d_y[i]) * ((to_f32(x[i]) - mean) * rstd);
    });
}
