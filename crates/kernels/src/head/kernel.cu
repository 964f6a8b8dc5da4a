// Log-probabilities of targets and their gradient, from logits computed by matmuls one panel of the
// vocabulary at a time: `[rows, width]`, with columns starting at token `first`. The target's own
// share, `1 - p`, is kept apart in f32, since it would cancel if the model is nearly certain.

// Updates the state with a panel of products, and writes `exp(logit - max)`, times the slope of a
// bounded logit, to `weights [rows, width]`, zero for the target, unless that is null; may be in
// place. One block per row.
template <class T>
__global__ void head_update_softmax(
    const float* logits, Logits shape, size_t width, size_t first, const uint32* targets,
    float* state, T* weights) {
    State all(state, gridDim.x);
    size_t row = blockIdx.x, target = targets[row] - first;
    bool wanted = weights;
    logits += row * width;
    if (wanted) weights += row * width;
    bool vectorised = width % 4 == 0 && aligned<4>(logits, weights);
    // Starts from the lowest finite number, since the difference of two infinities is NaN.
    float old_max = first > 0 ? all.max[row] : -3.402823466e38f, new_max = old_max;
    over_block<4>(width, vectorised, [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            if (c + k != target) new_max = fmaxf(new_max, shape.of(x.v[k]));
        }
    });
    new_max = block_max(new_max);
    float logit = target < width ? shape.of(logits[target]) : 0.0f;
    __syncthreads();  // Weights may overwrite it.
    float sum = 0.0f;
    over_block<4>(width, vectorised, [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            float own = shape.of(x.v[k]);
            float weight = c + k == target ? 0.0f : expf(own - new_max);
            sum += weight;
            x.v[k] = weight * shape.slope(own);
        }
        if (wanted) write(weights + c, x);
    });
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    float rescale = expf(old_max - new_max);
    all.sum[row] = (first > 0 ? all.sum[row] * rescale : 0.0f) + sum;
    all.max[row] = new_max, all.rescale[row] = rescale;
    if (target < width) all.logit[row] = logit;
}

// `mean [rows, h] *= rescale`; one block per row. Most rows do not change.
__global__ void head_rescale(float* mean, float* state, size_t h) {
    float rescale = State(state, gridDim.x).rescale[blockIdx.x];
    if (rescale == 1.0f) return;
    mean += blockIdx.x * h;
    over_block<4>(h, h % 4 == 0 && aligned<4>(mean), [&](size_t c, auto count) {
        auto x = read(mean + c, count);
        for (int k = 0; k < count.value; k++) x.v[k] *= rescale;
        write(mean + c, x);
    });
}

// `log_probs[row] = log softmax(logits)[target]` and `lse`, the logarithm of the softmax's
// denominator, after the last panel.
__global__ void head_finish(float* state, size_t rows, float* log_probs, float* lse) {
    State all(state, rows);
    over_grid<1>(rows, true, [&](size_t row, auto) {
        float logit = all.logit[row], others_max = all.max[row];
        float shift = fmaxf(others_max, logit);
        float own = expf(logit - shift), others = all.sum[row] * expf(others_max - shift);
        float log_sum = logf(own + others);
        lse[row] = shift + log_sum;
        // Accurate even if the target is nearly certain, so that `1 - p` can be computed from it.
        log_probs[row] = others < own ? -log1pf(others / own) : logit - shift - log_sum;
    });
}

// `d_logits [rows, width] = d_log_prob · (1[token = target] - p)` of a panel, for the gradient of a
// trained head. Rows along `blockIdx.y`; may be in place. The target's own `1 - p` is computed from
// its log-probability: where that is nearly zero, logit and `lse` cancel.
template <class T>
__global__ void head_d_logits(
    const float* logits, Logits shape, size_t width, size_t first, const uint32* targets,
    const float* log_probs, const float* lse, const float* d_log_probs, T* d_logits) {
    size_t row = blockIdx.y, target = targets[row] - first;
    float complement = -expm1f(log_probs[row]), lse_row = lse[row], d = d_log_probs[row];
    logits += row * width, d_logits += row * width;
    bool vectorised = width % 4 == 0 && aligned<4>(logits, d_logits);
    over_grid<4>(width, vectorised, [&](size_t c, auto count) {
        auto x = read(logits + c, count);
        for (int k = 0; k < count.value; k++) {
            float logit = shape.of(x.v[k]), slope = shape.slope(logit) * shape.scale;
            x.v[k] = d * slope * (c + k == target ? complement : -expf(logit - lse_row));
        }
        write(d_logits + c, x);
    });
}

// Copies of `bias [width]` in every row of `logits [rows, width]`. Rows along `blockIdx.y`.
__global__ void head_fill(const float* bias, size_t width, float* logits) {
    logits += size_t(blockIdx.y) * width;
    over_grid<4>(width, width % 4 == 0 && aligned<4>(bias, logits), [&](size_t c, auto count) {
        write(logits + c, read(bias + c, count));
    });
}

// Replaces products by logits.
__global__ void head_logits(float* products, Logits shape, size_t len) {
    over_grid<4>(len, len % 4 == 0 && aligned<4>(products), [&](size_t i, auto count) {
        auto x = read(products + i, count);
        for (int k = 0; k < count.value; k++) x.v[k] = shape.of(x.v[k]);
        write(products + i, x);
    });
}

// `d_x[rows[i]] = d_log_probs[i] · direction[i]`; other rows are left unchanged.
template <class T>
__global__ void head_backward(
    const T* direction, const uint32* rows, const float* d_log_probs, size_t h, T* d_x) {
    const int N = VECTOR<T>;
    float d = d_log_probs[blockIdx.x];
    direction += blockIdx.x * h, d_x += rows[blockIdx.x] * h;
    over_block<N>(h, h % N == 0 && aligned<N>(direction, d_x), [&](size_t c, auto count) {
        auto x = read(direction + c, count);
        for (int k = 0; k < count.value; k++) x.v[k] *= d;
        write(d_x + c, x);
    });
}
