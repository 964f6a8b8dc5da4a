// One block per row; its second read of the row hits the cache. Each row of a matrix, of length
// `stride`, contains `count` consecutive rows of `h` elements, beginning at `offset`.

DEVICE size_t row_start(size_t row, size_t h, size_t stride, size_t offset, size_t count) {
    return row / count * stride + offset + row % count * h;
}

// `x`, `w [h]` → `y`, `rstd [rows]`; rows are multiplied by `w + w_offset`, and `residual` is
// added.
template <class X, class Y>
__global__ void rms_norm_forward(
    const X* x, const float* w, float w_offset, float eps, size_t h, size_t stride, size_t offset,
    size_t count, const float* residual, uint32 adds, Y* y, float* rstd) {
    size_t row = blockIdx.x, start = row_start(row, h, stride, offset, count);
    x += start, y += start, residual += adds ? start : 0;
    bool vectorised = h % 4 == 0 && aligned<4>(x, w, y, residual);
    float sum = 0.0f;
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n);
        for (int k = 0; k < n.value; k++) sum += x_c.v[k] * x_c.v[k];
    });
    float factor = 1.0f / sqrtf(block_sum(sum) / float(h) + eps);
    if (threadIdx.x == 0) rstd[row] = factor;
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n), w_c = read(w + c, n);
        for (int k = 0; k < n.value; k++) x_c.v[k] = x_c.v[k] * factor * (w_c.v[k] + w_offset);
        if (adds) {
            auto r_c = read(residual + c, n);
            for (int k = 0; k < n.value; k++) x_c.v[k] += r_c.v[k];
        }
        write(y + c, x_c);
    });
}

// `d_x` for `d_y`, overwritten or accumulated.
template <class X, class Y>
__global__ void rms_norm_backward(
    const X* x, const float* w, float w_offset, const float* rstd, const Y* d_y, size_t h,
    size_t stride, size_t offset, size_t count, uint32 adds, X* d_x) {
    size_t row = blockIdx.x, start = row_start(row, h, stride, offset, count);
    x += start, d_y += start, d_x += start;
    bool vectorised = h % 4 == 0 && aligned<4>(x, w, d_y, d_x);
    float sum = 0.0f;
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n), w_c = read(w + c, n), d_c = read(d_y + c, n);
        for (int k = 0; k < n.value; k++) sum += d_c.v[k] * (w_c.v[k] + w_offset) * x_c.v[k];
    });
    float factor = rstd[row];
    float along_x = factor * factor * factor * block_sum(sum) / float(h);
    over_block<4>(h, vectorised, [&](size_t c, auto n) {
        auto x_c = read(x + c, n), w_c = read(w + c, n), d_c = read(d_y + c, n);
        for (int k = 0; k < n.value; k++) {
            d_c.v[k] = d_c.v[k] * (w_c.v[k] + w_offset) * factor - x_c.v[k] * along_x;
        }
        if (adds) {
            auto old_c = read(d_x + c, n);
            for (int k = 0; k < n.value; k++) d_c.v[k] += old_c.v[k];
        }
        write(d_x + c, d_c);
    });
}

// `d_w [h] += Σ d_y · x · rstd` over all rows.
template <class X, class Y>
__global__ void __launch_bounds__(1024) rms_norm_backward_weight(
    const X* x, const float* rstd, const Y* d_y, size_t rows, size_t h, size_t stride,
    size_t offset, size_t count, float* d_w) {
    add_sums_over_rows(rows, h, d_w, [&](size_t row, size_t column) {
        size_t i = row_start(row, h, stride, offset, count) + column;
        return to_f32(d_y[i]) * to_f32(x[i]) * rstd[row];
    });
}
