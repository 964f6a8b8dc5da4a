// One block per row.

// `gate_up [t, 2 i]` → `y [t, i]`.
template <class T, class Curve>
__global__ void glu_forward(const T* gate_up, size_t i, T* y) {
    const int N = VECTOR<T>;
    size_t row = blockIdx.x;
    const T *gate = gate_up + row * 2 * i, *up = gate + i;
    y += row * i;
    over_block<N>(i, i % N == 0 && aligned<N>(gate, y), [&](size_t c, auto count) {
        auto gate_c = read(gate + c, count), up_c = read(up + c, count);
        for (int k = 0; k < count.value; k++) {
            float g = gate_c.v[k];
            up_c.v[k] = g * Curve::share(g) * Curve::factor(up_c.v[k]);
        }
        write(y + c, up_c);
    });
}

// `d_gate_up [t, 2 i]`, overwritten, for `d_y [t, i]`.
template <class T, class Curve>
__global__ void glu_backward(const T* gate_up, size_t i, const T* d_y, T* d_gate_up) {
    const int N = VECTOR<T>;
    size_t row = blockIdx.x;
    const T *gate = gate_up + row * 2 * i, *up = gate + i;
    T *d_gate = d_gate_up + row * 2 * i, *d_up = d_gate + i;
    d_y += row * i;
    bool vectorised = i % N == 0 && aligned<N>(gate, d_y, d_gate);
    over_block<N>(i, vectorised, [&](size_t c, auto count) {
        auto gate_c = read(gate + c, count), up_c = read(up + c, count), d_c = read(d_y + c, count);
        for (int k = 0; k < count.value; k++) {
            float g = gate_c.v[k], d = d_c.v[k], s = Curve::share(g);
            gate_c.v[k] = Curve::back(d * Curve::factor(up_c.v[k]), g, s);
            up_c.v[k] = Curve::factor_back(d * g * s, up_c.v[k]);
        }
        write(d_gate + c, gate_c);
        write(d_up + c, up_c);
    });
}
