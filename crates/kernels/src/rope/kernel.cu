// Rotates in place the first `2 half` dimensions of the first `heads` heads of `d` in each row of
// `width` elements by `sign` times the angles whose `cos` and `sin` are `[t, half]`: pairs are
// dimensions `i` and `i + half`, or neighbours if `interleaved`. One block per row.
template <class T>
__global__ void rope_rotate(
    T* x, size_t width, uint32 heads, uint32 d, uint32 half, uint32 interleaved, const float* cos,
    const float* sin, float sign) {
    const int N = VECTOR<T>;
    size_t row = blockIdx.x;
    x += row * width, cos += row * half, sin += row * half;
    if (interleaved) {
        over_block<1>(heads * half, true, [&](size_t pair, auto) {
            uint32 head = uint32(pair) / half, i = uint32(pair) % half;
            T* at = x + head * d + 2 * i;
            float x_i = to_f32(at[0]), y_i = to_f32(at[1]), c = cos[i], s = sin[i] * sign;
            at[0] = from_f32<T>(x_i * c - y_i * s);
            at[1] = from_f32<T>(y_i * c + x_i * s);
        });
        return;
    }
    // Vectors do not straddle heads.
    bool vectorised = half % N == 0 && d % N == 0 && aligned<N>(x, cos, sin);
    over_block<N>(heads * half, vectorised, [&](size_t pair, auto count) {
        uint32 head = uint32(pair) / half, i = uint32(pair) % half;
        T *low = x + head * d + i, *high = low + half;
        auto x_c = read(low, count), y_c = read(high, count);
        auto cos_c = read(cos + i, count), sin_c = read(sin + i, count);
        for (int k = 0; k < count.value; k++) {
            float x_k = x_c.v[k], y_k = y_c.v[k], c = cos_c.v[k], s = sin_c.v[k] * sign;
            x_c.v[k] = x_k * c - y_k * s;
            y_c.v[k] = y_k * c + x_k * s;
        }
        write(low, x_c);
        write(high, y_c);
    });
}
