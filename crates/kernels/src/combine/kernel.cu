// `Σ_j weights[t, j] · x[slots[t, j]]` → `y [t, h]`, plus `add [t, h]`; `weights` and `add` may be
// null. One block per token.
template <class X, class Y>
__global__ void combine_forward(
    const X* x, const uint32* slots, size_t k, const float* weights, const float* add, size_t h,
    Y* y) {
    const int N = VECTOR<X, Y>;
    size_t token = blockIdx.x;
    slots += token * k, y += token * h;
    if (add) add += token * h;
    bool vectorised = h % N == 0 && aligned<N>(x, y) && (!add || aligned<N>(add));
    over_block<N>(h, vectorised, [&](size_t c, auto count) {
        Vec<float, decltype(count)::value> sum = {};
        for (size_t j = 0; j < k; j++) {
            float weight = weights ? weights[token * k + j] : 1.0f;
            auto x_c = read(x + size_t(slots[j]) * h + c, count);
            for (int i = 0; i < count.value; i++) sum.v[i] += weight * x_c.v[i];
        }
        if (add) {
            auto add_c = read(add + c, count);
            for (int i = 0; i < count.value; i++) sum.v[i] += add_c.v[i];
        }
        write(y + c, sum);
    });
}

// `d_x [t k, h]`, overwritten, and `d_weights [t, k]` for `d_y [t, h]`. One block per row of `x`.
template <class X, class Y>
__global__ void combine_backward(
    const X* x, const uint32* slots, size_t k, const float* weights, const Y* d_y, size_t h,
    X* d_x, float* d_weights) {
    const int N = VECTOR<X, Y>;
    size_t choice = blockIdx.x, slot = slots[choice];
    x += slot * h, d_x += slot * h, d_y += choice / k * h;
    float weight = weights[choice], sum = 0.0f;
    over_block<N>(h, h % N == 0 && aligned<N>(x, d_x, d_y), [&](size_t c, auto count) {
        auto x_c = read(x + c, count), d_c = read(d_y + c, count);
        for (int i = 0; i < count.value; i++) {
            sum += x_c.v[i] * d_c.v[i];
            d_c.v[i] *= weight;
        }
        write(d_x + c, d_c);
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) d_weights[choice] = sum;
}
