// Gates of the delta rule: `β = σ(b)` and `g = -exp(a_log) · softplus(a + dt_bias)`. Row t of the
// input, `b` of all heads and then `a`, begins at `b_a + t * stride`. A thread per number.

DEVICE float softplus(float x) {
    return x > 20.0f ? x : log1pf(expf(x));
}

// `gates [t, 2 heads]`.
template <class T>
__global__ void delta_gates_forward(
    const T* b_a, size_t stride, const float* a_log, const float* dt_bias, size_t heads, size_t t,
    float* gates) {
    over_grid<1>(t * 2 * heads, false, [&](size_t i, auto) {
        size_t row = i / (2 * heads), h = i % (2 * heads);
        float x = to_f32(b_a[row * stride + h]);
        if (h < heads) {
            gates[i] = sigmoid(x);
        } else {
            h -= heads;
            gates[i] = -expf(a_log[h]) * softplus(x + dt_bias[h]);
        }
    });
}

// `d_b_a`, laid out as `b_a` and added to.
template <class T>
__global__ void delta_gates_backward(
    const T* b_a, size_t stride, const float* a_log, const float* dt_bias, size_t heads, size_t t,
    const float* d_gates, T* d_b_a) {
    over_grid<1>(t * 2 * heads, false, [&](size_t i, auto) {
        size_t row = i / (2 * heads), h = i % (2 * heads), at = row * stride + h;
        float x = to_f32(b_a[at]), d;
        if (h < heads) {
            d = d_gates[i] * sigmoid(x) * (1.0f - sigmoid(x));
        } else {
            h -= heads;
            d = -d_gates[i] * expf(a_log[h]) * sigmoid(x + dt_bias[h]);
        }
        d_b_a[at] = from_f32<T>(to_f32(d_b_a[at]) + d);
    });
}

// `d [heads] +=` the sums over all rows, of `a_log`'s gradient or of `dt_bias`'s.
template <class T>
__global__ void __launch_bounds__(1024) delta_gates_backward_weight(
    const T* b_a, size_t stride, const float* a_log, const float* dt_bias, size_t heads, size_t t,
    const float* d_gates, uint32 of_a_log, float* d) {
    add_sums_over_rows(t, heads, d, [&](size_t row, size_t h) {
        float x = to_f32(b_a[row * stride + heads + h]) + dt_bias[h];
        float d_g = -d_gates[(2 * row + 1) * heads + h] * expf(a_log[h]);
        return d_g * (of_a_log ? softplus(x) : sigmoid(x));
    });
}
