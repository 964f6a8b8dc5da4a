// One block per row.

// `count` columns of `x [t, width]`, beginning with `from`, into those of `y [t, y_width]` that
// begin with `to`: added if `adds`, otherwise copied.
template <class T>
__global__ void copy_columns(
    size_t count, size_t width, size_t from, size_t y_width, size_t to, uint32 adds, const T* x,
    T* y) {
    x += blockIdx.x * width + from, y += blockIdx.x * y_width + to;
    over_block<1>(count, true, [&](size_t c, auto) {
        y[c] = adds ? from_f32<T>(to_f32(y[c]) + to_f32(x[c])) : x[c];
    });
}
