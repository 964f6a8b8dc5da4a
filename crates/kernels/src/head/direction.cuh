// The online softmax of each row: the maximum logit and the sum of exp(logit - max) over all tokens
// but the target, and the target's logit. `rescale` is the factor by which the last panel changed
// earlier sums.
struct State {
    float *max, *sum, *logit, *rescale;

    DEVICE State(float* memory, size_t rows)
        : max(memory), sum(memory + rows), logit(memory + 2 * rows),
          rescale(memory + 3 * rows) {}
};

// `direction [rows, h] = (1 - p[target]) W[target] - Σ p W` over all tokens but the target, the
// gradient of the log-probability with respect to the hidden state; `mean [rows, h]` is the sum of
// W weighted by `weights`.
template <class T, class W>
__global__ void head_direction(
    const float* mean, Weight<W> weight, const uint32* targets, float* state,
    const float* log_probs, const float* lse, size_t h, T* direction) {
    size_t row = blockIdx.x, target = targets[row];
    float complement = -expm1f(log_probs[row]);
    float share = expf(State(state, gridDim.x).max[row] - lse[row]);
    mean += row * h, direction += row * h;
    bool vectorised = h % 4 == 0 && aligned<4>(mean, weight, direction);
    over_block<4>(h, vectorised, [&](size_t c, auto count) {
        auto x = read(weight, target * h + c, target, count), mean_c = read(mean + c, count);
        for (int k = 0; k < count.value; k++) x.v[k] = complement * x.v[k] - share * mean_c.v[k];
        write(direction + c, x);
    });
}
