// One block per row. A row is, for each head, its query and a gate, and then keys and values.

struct GatedRows {
    uint32 heads, d, rest;

    DEVICE uint32 queries() const {
        return heads * d;
    }
    DEVICE uint32 width() const {
        return 2 * heads * d + rest;
    }
    // Where element `c` of the queries is, or that of keys and values if `c` is beyond them.
    DEVICE uint32 at(uint32 c) const {
        return c < queries() ? c / d * 2 * d + c % d : c + queries();
    }
    // Where the gate of element `c` of the output is.
    DEVICE uint32 gate_at(uint32 c) const {
        return c / d * 2 * d + d + c % d;
    }
};

// `x [t, width]` → `y [t, queries + rest]`.
template <class T> __global__ void without_gates(GatedRows rows, const T* x, T* y) {
    uint32 width = rows.queries() + rows.rest;
    x += blockIdx.x * size_t(rows.width()), y += blockIdx.x * size_t(width);
    over_block<1>(width, true, [&](size_t c, auto) { y[c] = x[rows.at(uint32(c))]; });
}

// Elements of `d_x` that are no gates.
template <class T> __global__ void without_gates_backward(GatedRows rows, const T* d_y, T* d_x) {
    uint32 width = rows.queries() + rows.rest;
    d_x += blockIdx.x * size_t(rows.width()), d_y += blockIdx.x * size_t(width);
    over_block<1>(width, true, [&](size_t c, auto) { d_x[rows.at(uint32(c))] = d_y[c]; });
}

// `y [t, queries] = attended · sigmoid(gate)`.
template <class T>
__global__ void gate_output(GatedRows rows, const T* attended, const T* x, T* y) {
    size_t row = blockIdx.x;
    attended += row * rows.queries(), y += row * rows.queries(), x += row * rows.width();
    over_block<1>(rows.queries(), true, [&](size_t c, auto) {
        float gate = to_f32(x[rows.gate_at(uint32(c))]);
        y[c] = from_f32<T>(to_f32(attended[c]) * sigmoid(gate));
    });
}

// `d_attended`, and the gates' elements of `d_x`.
template <class T>
__global__ void gate_output_backward(
    GatedRows rows, const T* attended, const T* x, const T* d_y, T* d_attended, T* d_x) {
    size_t row = blockIdx.x;
    attended += row * rows.queries(), d_y += row * rows.queries(), x += row * rows.width();
    d_attended += row * rows.queries(), d_x += row * rows.width();
    over_block<1>(rows.queries(), true, [&](size_t c, auto) {
        uint32 at = rows.gate_at(uint32(c));
        float s = sigmoid(to_f32(x[at])), d = to_f32(d_y[c]), a = to_f32(attended[c]);
        d_attended[c] = from_f32<T>(d * s);
        d_x[at] = from_f32<T>(d * a * s * (1.0f - s));
    });
}
