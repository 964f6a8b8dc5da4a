// Short causal convolution: `y = silu(bias + Σ_lag weight[width - 1 - lag] · x[t - lag])`. A thread
// computes one channel of one row; it reads what its neighbours read, so almost all of it comes
// from the cache.

// Where a row is in its sequence: rows before it in this pass, in earlier passes, and its state.
struct Row {
    uint32 index, done, slot;
};

#define NO_ROW 0xffffffffu

// Columns of `x`, whose rows have `stride` elements; `weight [channels, width]`, `bias [channels]`
// or null, and earlier inputs `kept [slots, width - 1, channels]`, a ring.
template <class T> struct Conv {
    const T* x;
    const float *weight, *bias;
    const T* kept;
    const Row* rows;
    uint32 stride, channels, width;

    DEVICE float input(size_t t, uint32 c, uint32 lag) const {
        Row row = rows[t];
        if (lag <= row.index) return to_f32(x[(t - lag) * stride + c]);
        uint32 before = row.index + row.done;
        if (lag > before) return 0.0f;
        size_t at = size_t(row.slot) * (width - 1) + (before - lag) % (width - 1);
        return to_f32(kept[at * channels + c]);
    }

    // The sum before the activation.
    DEVICE float sum(size_t t, uint32 c) const {
        float sum = bias == nullptr ? 0.0f : bias[c];
        for (uint32 lag = width; lag-- > 0;) {
            sum += weight[size_t(c) * width + width - 1 - lag] * input(t, c, lag);
        }
        return sum;
    }

    // The gradient of that sum.
    DEVICE float d_sum(const T* d_y, size_t t, uint32 c) const {
        float x = sum(t, c), s = sigmoid(x);
        return to_f32(d_y[t * channels + c]) * s * (1.0f + x * (1.0f - s));
    }
};

// Grid: rows, blocks of channels.
template <class T>
__global__ void short_conv_forward(
    const T* x, uint32 stride, const float* weight, const float* bias, uint32 channels,
    uint32 width, const Row* rows, const T* kept, T* y) {
    Conv<T> conv{x, weight, bias, kept, rows, stride, channels, width};
    uint32 c = blockIdx.y * blockDim.x + threadIdx.x;
    size_t t = blockIdx.x;
    if (c >= channels) return;
    float sum = rows[t].index == NO_ROW ? 0.0f : conv.sum(t, c);
    y[t * channels + c] = from_f32<T>(sum * sigmoid(sum));
}

// Keeps the last inputs of each sequence: `last` are its last rows. Grid: rows of `last`,
// blocks of channels.
template <class T>
__global__ void short_conv_keep(
    const T* x, uint32 stride, uint32 channels, uint32 width, const Row* rows, const uint32* last,
    T* kept) {
    uint32 c = blockIdx.y * blockDim.x + threadIdx.x, t = last[blockIdx.x];
    if (c >= channels || t == NO_ROW) return;
    Row row = rows[t];
    size_t at = size_t(row.slot) * (width - 1) + (row.index + row.done) % (width - 1);
    kept[at * channels + c] = x[size_t(t) * stride + c];
}

// Adds to columns of `d_x`. Grid: rows, blocks of channels.
template <class T>
__global__ void short_conv_backward(
    const T* x, uint32 stride, const float* weight, const float* bias, uint32 channels,
    uint32 width, const Row* rows, uint32 num_rows, const T* d_y, T* d_x) {
    Conv<T> conv{x, weight, bias, nullptr, rows, stride, channels, width};
    uint32 c = blockIdx.y * blockDim.x + threadIdx.x;
    size_t t = blockIdx.x;
    if (c >= channels || rows[t].index == NO_ROW) return;
    float sum = 0.0f;
    for (uint32 lag = 0; lag < width && t + lag < num_rows; lag++) {
        if (rows[t + lag].index != rows[t].index + lag) break;
        sum += weight[size_t(c) * width + width - 1 - lag] * conv.d_sum(d_y, t + lag, c);
    }
    T* d = d_x + t * stride + c;
    *d = from_f32<T>(to_f32(*d) + sum);
}

// `d_weight [channels, width] +=` the sums over all rows.
template <class T>
__global__ void __launch_bounds__(1024) short_conv_backward_weight(
    const T* x, uint32 stride, const float* weight, const float* bias, uint32 channels,
    uint32 width, const Row* rows, size_t num_rows, const T* d_y, float* d_weight) {
    Conv<T> conv{x, weight, bias, nullptr, rows, stride, channels, width};
    add_sums_over_rows(num_rows, size_t(channels) * width, d_weight, [&](size_t t, size_t i) {
        uint32 c = i / width, lag = width - 1 - i % width;
        if (rows[t].index == NO_ROW || lag > rows[t].index) return 0.0f;
        return conv.d_sum(d_y, t, c) * conv.input(t, c, lag);
    });
}

// `d_bias [channels] +=` the sums over all rows.
template <class T>
__global__ void __launch_bounds__(1024) short_conv_backward_bias(
    const T* x, uint32 stride, const float* weight, const float* bias, uint32 channels,
    uint32 width, const Row* rows, size_t num_rows, const T* d_y, float* d_bias) {
    Conv<T> conv{x, weight, bias, nullptr, rows, stride, channels, width};
    add_sums_over_rows(num_rows, channels, d_bias, [&](size_t t, size_t c) {
        return rows[t].index == NO_ROW ? 0.0f : conv.d_sum(d_y, t, c);
    });
}
