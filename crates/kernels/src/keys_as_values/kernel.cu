// One block per row.

// `x [t, queries + keys]` → `y [t, queries + 2 keys]`.
template <class T>
__global__ void keys_as_values(uint32 queries, uint32 keys, const T* x, T* y) {
    uint32 width = queries + keys;
    x += blockIdx.x * size_t(width), y += blockIdx.x * size_t(width + keys);
    over_block<1>(width + keys, true, [&](size_t c, auto) { y[c] = x[c < width ? c : c - keys]; });
}

// `d_x` for `d_y`: gradients of keys and values are added.
template <class T>
__global__ void keys_as_values_backward(uint32 queries, uint32 keys, const T* d_y, T* d_x) {
    uint32 width = queries + keys;
    d_y += blockIdx.x * size_t(width + keys), d_x += blockIdx.x * size_t(width);
    over_block<1>(width, true, [&](size_t c, auto) {
        d_x[c] = c < queries ? d_y[c] : from_f32<T>(to_f32(d_y[c]) + to_f32(d_y[c + keys]));
    });
}
