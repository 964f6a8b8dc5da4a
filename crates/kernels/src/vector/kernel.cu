// Elementwise operations on flat arrays, for any grid, and on rows, one block per row.

// `y += x`.
template <class X, class Y> __global__ void vector_add_assign(const X* x, Y* y, size_t n) {
    const int N = VECTOR<X, Y>;
    over_grid<N>(n, aligned<N>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count), y_i = read(y + i, count);
        for (int k = 0; k < count.value; k++) y_i.v[k] += x_i.v[k];
        write(y + i, y_i);
    });
}

// `y = x`, rounded to nearest.
template <class X, class Y> __global__ void vector_convert(const X* x, Y* y, size_t n) {
    const int N = VECTOR<X, Y>;
    over_grid<N>(n, aligned<N>(x, y), [&](size_t i, auto count) {
        write(y + i, read(x + i, count));
    });
}

// `y = scale · x`.
template <class Y> __global__ void vector_scale(const float* x, float scale, Y* y, size_t n) {
    over_grid<4>(n, aligned<4>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count);
        for (int k = 0; k < count.value; k++) x_i.v[k] *= scale;
        write(y + i, x_i);
    });
}

// `y = scale · x` for all arrays of a table, whose extra words are `y` and the scale.
template <class Y> __global__ void vector_scale_all(const uint64* table, uint32 rows) {
    Chunk<1, 2> all(table, rows);
    const float* x = all.at[0];
    Y* y = reinterpret_cast<Y*>(all.words[0]) + all.start;
    float scale = __uint_as_float(uint32(all.words[1]));
    over_block<4>(all.len, aligned<4>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count);
        for (int k = 0; k < count.value; k++) x_i.v[k] *= scale;
        write(y + i, x_i);
    });
}

// `y += scale · x`.
__global__ void vector_add_scaled(const float* x, float scale, float* y, size_t n) {
    over_grid<4>(n, aligned<4>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count), y_i = read(y + i, count);
        for (int k = 0; k < count.value; k++) y_i.v[k] += scale * x_i.v[k];
        write(y + i, y_i);
    });
}

// `x = 0` for all arrays of a table.
__global__ void vector_zero(const uint64* table, uint32 rows) {
    Chunk<1> all(table, rows);
    float* x = all.at[0];
    over_block<4>(all.len, aligned<4>(x), [&](size_t i, auto count) {
        for (int k = 0; k < count.value; k++) x[i + k] = 0.0f;
    });
}

// `partial[i] = Σ x²` of chunk `i` of the arrays of a table.
__global__ void vector_sum_of_squares(const uint64* table, uint32 rows, float* partial) {
    Chunk<1> all(table, rows);
    float sum = 0.0f;
    over_block<4>(all.len, aligned<4>(all.at[0]), [&](size_t i, auto count) {
        auto x_i = read(all.at[0] + i, count);
        for (int k = 0; k < count.value; k++) sum += x_i.v[k] * x_i.v[k];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// `sums[n] += Σ_m x[m, col + n]` for `rows` rows of `width` columns.
template <class X>
__global__ void __launch_bounds__(1024) vector_add_column_sums(
    const X* x, size_t rows, size_t width, size_t col, size_t n, float* sums) {
    add_sums_over_rows(rows, n, sums, [&](size_t row, size_t column) {
        return to_f32(x[row * width + col + column]);
    });
}

template <class T, int N> DEVICE void copy(const T* x, T* y, Count<N>) {
    *reinterpret_cast<Vec<T, N>*>(y) = *reinterpret_cast<const Vec<T, N>*>(x);
}

// `y[i] = x[rows[i]]`, rows of `h`.
template <class T>
__global__ void vector_gather_rows(const T* x, size_t h, const uint32* rows, T* y) {
    const int N = VECTOR<T>;
    x += rows[blockIdx.x] * h, y += blockIdx.x * h;
    over_block<N>(h, h % N == 0 && aligned<N>(x, y), [&](size_t c, auto count) {
        copy(x + c, y + c, count);
    });
}

// `y[rows[i], ·] = x[i, offset + ·]`; rows of `y` have `width` elements, those of `x` have
// `stride`.
template <class T>
__global__ void vector_scatter_rows(
    const T* x, size_t stride, size_t offset, const uint32* rows, size_t width, T* y) {
    const int N = VECTOR<T>;
    x += blockIdx.x * stride + offset, y += rows[blockIdx.x] * width;
    over_block<N>(width, width % N == 0 && aligned<N>(x, y), [&](size_t c, auto count) {
        copy(x + c, y + c, count);
    });
}

// `y[m, offset + n] = x[m, offset + n]`, or zero without `x`, in rows of `stride`.
template <class Y>
__global__ void vector_init_rows(Y* y, const Y* x, size_t stride, size_t offset, size_t n) {
    offset += blockIdx.x * stride;
    y += offset, x = x ? x + offset : x;
    over_block<4>(n, aligned<4>(y) && (!x || aligned<4>(x)), [&](size_t c, auto count) {
        auto y_c = read((x ? x : y) + c, count);
        for (int k = 0; k < count.value; k++) y_c.v[k] = x ? y_c.v[k] : 0.0f;
        write(y + c, y_c);
    });
}

// `y[m, offset + n] += bias[n]` in rows of `stride`.
template <class Y>
__global__ void vector_add_bias(
    Y* y, size_t stride, size_t offset, const float* bias, size_t n) {
    y += blockIdx.x * stride + offset;
    over_block<4>(n, aligned<4>(y, bias), [&](size_t c, auto count) {
        auto y_c = read(y + c, count), bias_c = read(bias + c, count);
        for (int k = 0; k < count.value; k++) y_c.v[k] += bias_c.v[k];
        write(y + c, y_c);
    });
}
