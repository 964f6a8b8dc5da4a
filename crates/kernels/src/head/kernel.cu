// Log-probabilities of targets and their gradient, from the logits `[rows, v]` of some rows, which
// a product outside wrote. The target's own share, `1 - p`, is kept apart in f32, since little
// would be left of it where the model is nearly certain.

// `log_probs[row] = log softmax(logits)[target]` and `lse`, the logarithm of the softmax's
// denominator. One pass: a block takes a row, a thread has a maximum and a sum of its own.
__global__ void head_softmax_stats(
    const float* logits, size_t v, const uint32* targets, float* log_probs, float* lse) {
    size_t row = blockIdx.x, target = targets[row];
    logits += row * v;
    // Of all columns but the target's. Begins with the least number, not with -inf, since the
    // difference of two infinities is not a number.
    float greatest = -3.402823466e38f, sum = 0.0f;
    over_block<4>(v, v % 4 == 0 && aligned<4>(logits), [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        float next = greatest;
        for (int k = 0; k < count.value; k++) {
            if (c + k == target) x.of[k] = -INFINITY;
            next = fmaxf(next, x.of[k]);
        }
        if (next > greatest) sum *= expf(greatest - next);
        greatest = next;
        for (int k = 0; k < count.value; k++) sum += expf(x.of[k] - greatest);
    });
    float logit = logits[target], shift = fmaxf(block_max(greatest), logit);
    float own = expf(logit - shift), others = block_sum(sum * expf(greatest - shift));
    if (threadIdx.x > 0) return;
    float log_sum = logf(own + others);
    lse[row] = shift + log_sum;
    // Exact where the target is nearly certain, so that `1 - p` can be had from it.
    log_probs[row] = others < own ? -log1pf(others / own) : logit - shift - log_sum;
}

// `p [rows, v]`: the softmax, with zero for the target. Row by `blockIdx.y`; may be in place.
template <class T>
__global__ void head_probabilities(
    const float* logits, const float* lse, const uint32* targets, size_t v, T* p) {
    size_t row = blockIdx.y, target = targets[row];
    float lse_row = lse[row];
    logits += row * v, p += row * v;
    over_grid<4>(v, v % 4 == 0 && aligned<4>(logits, p), [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            x.of[k] = c + k == target ? 0.0f : expf(x.of[k] - lse_row);
        }
        write(p + c, x);
    });
}

// `direction [rows, h] = (1 - p[target]) W[target] - mean`, the gradient of the log-probability
// with respect to the hidden state, where `mean [rows, h] = p W` with the `p` above.
template <class T, class W>
__global__ void head_direction(
    const float* mean, Weight<W> weight, const uint32* targets, const float* log_probs, size_t h,
    T* direction) {
    size_t row = blockIdx.x, target = targets[row];
    float lacks = -expm1f(log_probs[row]);
    mean += row * h, direction += row * h;
    bool together = h % 4 == 0 && aligned<4>(mean, weight, direction);
    over_block<4>(h, together, [&](size_t c, auto count) {
        auto x = read(weight, target * h + c, target, count), mean_c = read(mean + c, count);
        for (int k = 0; k < count.value; k++) x.of[k] = lacks * x.of[k] - mean_c.of[k];
        write(direction + c, x);
    });
}

// `d_logits [rows, v] = d_log_prob · (1[column = target] - p)`, for the gradient of a trained
// head. Row by `blockIdx.y`; may be in place.
template <class T>
__global__ void head_d_logits(
    const float* logits, const float* lse, const uint32* targets, const float* d_log_probs,
    size_t v, T* d_logits) {
    size_t row = blockIdx.y, target = targets[row];
    float lse_row = lse[row], d = d_log_probs[row];
    logits += row * v, d_logits += row * v;
    over_grid<4>(v, v % 4 == 0 && aligned<4>(logits, d_logits), [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            float log_p = x.of[k] - lse_row;
            x.of[k] = -d * (c + k == target ? expm1f(log_p) : expf(log_p));
        }
        write(d_logits + c, x);
    });
}

// `d_x[rows[i]] = d_log_probs[i] · direction[i]`; other rows are left as they are.
template <class T>
__global__ void head_backward(
    const T* direction, const uint32* rows, const float* d_log_probs, size_t h, T* d_x) {
    const int N = RUN<T>;
    float d = d_log_probs[blockIdx.x];
    direction += blockIdx.x * h, d_x += rows[blockIdx.x] * h;
    over_block<N>(h, h % N == 0 && aligned<N>(direction, d_x), [&](size_t c, auto count) {
        auto x = read(direction + c, count);
        for (int k = 0; k < count.value; k++) x.of[k] *= d;
        write(d_x + c, x);
    });
}
