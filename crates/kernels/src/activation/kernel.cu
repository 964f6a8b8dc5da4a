// All elements, by all threads of the grid.

template <class T, class Curve> __global__ void activate(const T* x, size_t n, T* y) {
    const int N = VECTOR<T>;
    over_grid<N>(n, aligned<N>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count);
        for (int k = 0; k < count.value; k++) x_i.v[k] *= Curve::share(x_i.v[k]);
        write(y + i, x_i);
    });
}

template <class T, class Curve>
__global__ void activate_backward(const T* x, const T* d_y, size_t n, T* d_x) {
    const int N = VECTOR<T>;
    over_grid<N>(n, aligned<N>(x, d_y, d_x), [&](size_t i, auto count) {
        auto x_i = read(x + i, count), d_i = read(d_y + i, count);
        for (int k = 0; k < count.value; k++) {
            d_i.v[k] = Curve::back(d_i.v[k], x_i.v[k], Curve::share(x_i.v[k]));
        }
        write(d_x + i, d_i);
    });
}
