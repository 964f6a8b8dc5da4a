// One block per row. An activation is `x · sigmoid(z(x))`.

struct Silu {
    static DEVICE float argument(float x) {
        return x;
    }
    // `x · z'(x)`.
    static DEVICE float slope(float x) {
        return x;
    }
};

// `z = 2 √(2/π) (x + 0.044715 x³)`, with `x` clamped so that its cube stays finite; the sigmoid is
// already saturated there.
struct GeluTanh {
    static constexpr float linear = 1.5957691f, cubic = linear * 0.044715f, saturated = 16.0f;
    static DEVICE float clamped(float x) {
        return x > saturated ? saturated : x < -saturated ? -saturated : x;
    }
    static DEVICE float argument(float x) {
        x = clamped(x);
        return x * (linear + cubic * x * x);
    }
    static DEVICE float slope(float x) {
        x = clamped(x);
        return x * (linear + 3.0f * cubic * x * x);
    }
};

// `gate_up [t, 2 i]` → `y [t, i]`.
template <class T, class Gate>
__global__ void glu_forward(const T* gate_up, size_t i, T* y) {
    const int N = VECTOR<T>;
    size_t row = blockIdx.x;
    const T *gate = gate_up + row * 2 * i, *up = gate + i;
    y += row * i;
    over_block<N>(i, i % N == 0 && aligned<N>(gate, y), [&](size_t c, auto count) {
        auto gate_c = read(gate + c, count), up_c = read(up + c, count);
        for (int k = 0; k < count.value; k++) {
            float g = gate_c.v[k];
            up_c.v[k] = g * sigmoid(Gate::argument(g)) * up_c.v[k];
        }
        write(y + c, up_c);
    });
}

// `d_gate_up [t, 2 i]`, overwritten, for `d_y [t, i]`.
template <class T, class Gate>
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
            float g = gate_c.v[k], d = d_c.v[k], s = sigmoid(Gate::argument(g));
            gate_c.v[k] = d * up_c.v[k] * s * (1.0f + Gate::slope(g) * (1.0f - s));
            up_c.v[k] = d * g * s;
        }
        write(d_gate + c, gate_c);
        write(d_up + c, up_c);
    });
}
