// `y = w · x · rstd · silu(z)` for each head of `h` elements. A block per head; `heads` of them are
// a row of `x`, and the gates of that row begin at its row of `z`, of `stride` elements.

DEVICE float silu(float z) {
    return z * sigmoid(z);
}

// The reciprocal of the root of the mean square, by all threads of a block.
template <class T> DEVICE float rstd_of(const T* x, uint32 h, float eps) {
    float sum = 0.0f;
    for (uint32 c = threadIdx.x; c < h; c += blockDim.x) sum += to_f32(x[c]) * to_f32(x[c]);
    return 1.0f / sqrtf(block_sum(sum) / float(h) + eps);
}

template <class T>
__global__ void gated_rms_norm_forward(
    const T* x, const T* z, uint32 stride, const float* w, float eps, uint32 h, uint32 heads,
    T* y) {
    size_t at = size_t(blockIdx.x) * h;
    x += at, y += at, z += size_t(blockIdx.x / heads) * stride + blockIdx.x % heads * h;
    float rstd = rstd_of(x, h, eps);
    for (uint32 c = threadIdx.x; c < h; c += blockDim.x) {
        y[c] = from_f32<T>(to_f32(x[c]) * rstd * w[c] * silu(to_f32(z[c])));
    }
}

// `d_x`, overwritten, `d_z`, added to, unless null, and `rstds`, one per head.
template <class T>
__global__ void gated_rms_norm_backward(
    const T* x, const T* z, uint32 stride, const float* w, float eps, uint32 h, uint32 heads,
    const T* d_y, T* d_x, T* d_z, float* rstds) {
    size_t at = size_t(blockIdx.x) * h;
    size_t gate = size_t(blockIdx.x / heads) * stride + blockIdx.x % heads * h;
    x += at, d_x += at, d_y += at, z += gate, d_z += d_z == nullptr ? 0 : gate;
    float rstd = rstd_of(x, h, eps), sum = 0.0f;
    for (uint32 c = threadIdx.x; c < h; c += blockDim.x) {
        sum += to_f32(d_y[c]) * silu(to_f32(z[c])) * w[c] * to_f32(x[c]);
    }
    float along_x = rstd * rstd * rstd * block_sum(sum) / float(h);
    if (threadIdx.x == 0) rstds[blockIdx.x] = rstd;
    for (uint32 c = threadIdx.x; c < h; c += blockDim.x) {
        float x_c = to_f32(x[c]), z_c = to_f32(z[c]), d = to_f32(d_y[c]) * w[c], s = sigmoid(z_c);
        d_x[c] = from_f32<T>(d * silu(z_c) * rstd - x_c * along_x);
        if (d_z == nullptr) continue;
        float d_z_c = d * x_c * rstd * s * (1.0f + z_c * (1.0f - s));
        d_z[c] = from_f32<T>(to_f32(d_z[c]) + d_z_c);
    }
}

// `d_w [h] +=` the sums over all heads of all rows.
template <class T>
__global__ void __launch_bounds__(1024) gated_rms_norm_backward_weight(
    const T* x, const T* z, uint32 stride, uint32 heads, const float* rstds, const T* d_y,
    size_t num_heads, size_t h, float* d_w) {
    add_sums_over_rows(num_heads, h, d_w, [&](size_t head, size_t c) {
        size_t at = head * h + c, gate = head / heads * stride + head % heads * h + c;
        return to_f32(d_y[at]) * silu(to_f32(z[gate])) * (to_f32(x[at]) * rstds[head]);
    });
}
