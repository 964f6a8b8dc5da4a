// Log-probabilities of targets and their gradient, from logits that products outside write, a panel
// of the vocabulary after the other: `[rows, width]`, columns from token `first` on. The target's
// own share, `1 - p`, is kept apart in f32, since little would be left of it where the model is
// nearly certain.

// What is known of a row after some panels: of all tokens but the target the greatest logit and the
// sum of exp(logit - greatest), and the target's logit. `shrink` is what the last panel made of
// what was summed before it.
struct State {
    float *greatest, *sum, *logit, *shrink;

    DEVICE State(float* memory, size_t rows)
        : greatest(memory), sum(memory + rows), logit(memory + 2 * rows),
          shrink(memory + 3 * rows) {}
};

// Takes a panel into the state, and leaves `exp(logit - greatest)` in `weights [rows, width]`, zero
// for the target, unless that is null; it may be the logits' own place. A block takes a row.
template <class T>
__global__ void head_absorb(
    const float* logits, size_t width, size_t first, const uint32* targets, float* state,
    T* weights) {
    State all(state, gridDim.x);
    size_t row = blockIdx.x, target = targets[row] - first;
    bool wanted = weights;
    logits += row * width;
    if (wanted) weights += row * width;
    bool together = width % 4 == 0 && aligned<4>(logits, weights);
    // Begins with the least number, not with -inf, since the difference of two infinities is not a
    // number.
    float before = first > 0 ? all.greatest[row] : -3.402823466e38f, greatest = before;
    over_block<4>(width, together, [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            if (c + k != target) greatest = fmaxf(greatest, x.of[k]);
        }
    });
    greatest = block_max(greatest);
    float logit = target < width ? logits[target] : 0.0f;
    __syncthreads();  // Before weights take its place.
    float sum = 0.0f;
    over_block<4>(width, together, [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            x.of[k] = c + k == target ? 0.0f : expf(x.of[k] - greatest);
            sum += x.of[k];
        }
        if (wanted) write(weights + c, x);
    });
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    float shrink = expf(before - greatest);
    all.sum[row] = (first > 0 ? all.sum[row] * shrink : 0.0f) + sum;
    all.greatest[row] = greatest, all.shrink[row] = shrink;
    if (target < width) all.logit[row] = logit;
}

// `mean [rows, h] *= shrink`; a block takes a row, and most rows stay as they are.
__global__ void head_shrink(float* mean, float* state, size_t h) {
    float shrink = State(state, gridDim.x).shrink[blockIdx.x];
    if (shrink == 1.0f) return;
    mean += blockIdx.x * h;
    over_block<4>(h, h % 4 == 0 && aligned<4>(mean), [&](size_t c, auto count) {
        auto x = read(mean + c, count);
        for (int k = 0; k < count.value; k++) x.of[k] *= shrink;
        write(mean + c, x);
    });
}

// `log_probs[row] = log softmax(logits)[target]` and `lse`, the logarithm of the softmax's
// denominator, after the last panel.
__global__ void head_finish(float* state, size_t rows, float* log_probs, float* lse) {
    State all(state, rows);
    over_grid<1>(rows, true, [&](size_t row, auto) {
        float logit = all.logit[row], greatest = all.greatest[row];
        float shift = fmaxf(greatest, logit);
        float own = expf(logit - shift), others = all.sum[row] * expf(greatest - shift);
        float log_sum = logf(own + others);
        lse[row] = shift + log_sum;
        // Exact where the target is nearly certain, so that `1 - p` can be had from it.
        log_probs[row] = others < own ? -log1pf(others / own) : logit - shift - log_sum;
    });
}

// `direction [rows, h] = (1 - p[target]) W[target] - Σ p W` over all tokens but the target, the
// gradient of the log-probability with respect to the hidden state, where `mean [rows, h]` has the
// sum over the weights above.
template <class T, class W>
__global__ void head_direction(
    const float* mean, Weight<W> weight, const uint32* targets, float* state,
    const float* log_probs, const float* lse, size_t h, T* direction) {
    size_t row = blockIdx.x, target = targets[row];
    float lacks = -expm1f(log_probs[row]);
    float share = expf(State(state, gridDim.x).greatest[row] - lse[row]);
    mean += row * h, direction += row * h;
    bool together = h % 4 == 0 && aligned<4>(mean, weight, direction);
    over_block<4>(h, together, [&](size_t c, auto count) {
        auto x = read(weight, target * h + c, target, count), mean_c = read(mean + c, count);
        for (int k = 0; k < count.value; k++) x.of[k] = lacks * x.of[k] - share * mean_c.of[k];
        write(direction + c, x);
    });
}

// `d_logits [rows, width] = d_log_prob · (1[token = target] - p)` of a panel, for the gradient of a
// trained head. Row by `blockIdx.y`; may be in place. The target's own `1 - p` is from its
// log-probability: where that is nearly zero, nothing is left of the difference of logit and `lse`.
template <class T>
__global__ void head_d_logits(
    const float* logits, size_t width, size_t first, const uint32* targets,
    const float* log_probs, const float* lse, const float* d_log_probs, T* d_logits) {
    size_t row = blockIdx.y, target = targets[row] - first;
    float lacks = -expm1f(log_probs[row]), lse_row = lse[row], d = d_log_probs[row];
    logits += row * width, d_logits += row * width;
    bool together = width % 4 == 0 && aligned<4>(logits, d_logits);
    over_grid<4>(width, together, [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            x.of[k] = d * (c + k == target ? lacks : -expf(x.of[k] - lse_row));
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
