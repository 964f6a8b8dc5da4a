// How products become logits: their factor, and the bound of what is scaled; 0: none.
struct Logits {
    float scale, softcap;

    DEVICE float of(float product) const {
        float x = product * scale;
        return softcap > 0.0f ? softcap * tanhf(x / softcap) : x;
    }

    // The derivative of a bounded logit; without the factor.
    DEVICE float slope(float logit) const {
        float share = softcap > 0.0f ? logit / softcap : 0.0f;
        return 1.0f - share * share;
    }
};

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
    const float* mean, Logits shape, Weight<W> weight, const uint32* targets, float* state,
    const float* log_probs, const float* lse, size_t h, T* direction) {
    size_t row = blockIdx.x, target = targets[row];
    State all(state, gridDim.x);
    float slope = shape.slope(all.logit[row]) * shape.scale;
    float complement = -expm1f(log_probs[row]) * slope;
    float share = expf(all.max[row] - lse[row]) * shape.scale;
    mean += row * h, direction += row * h;
    bool vectorised = h % 4 == 0 && aligned<4>(mean, weight, direction);
    over_block<4>(h, vectorised, [&](size_t c, auto count) {
        auto x = read(weight, target * h + c, target, count), mean_c = read(mean + c, count);
        for (int k = 0; k < count.value; k++) x.v[k] = complement * x.v[k] - share * mean_c.v[k];
        write(direction + c, x);
    });
}
