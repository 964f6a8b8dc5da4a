// One block per row, which keeps it in shared memory.

#define MAX_EXPERTS 1024
#define MAX_TOP_K 64
#define SIGMOID 1u
#define NORMALISE 2u

// Writes the softmax of `logits [n]` to `p [n]` in shared memory.
template <class T> DEVICE void softmax(const T* logits, size_t n, float* p) {
    float greatest = -INFINITY, sum = 0.0f;
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
        greatest = fmaxf(greatest, to_f32(logits[e]));
    }
    greatest = block_max(greatest);
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
        p[e] = expf(to_f32(logits[e]) - greatest);
        sum += p[e];
    }
    sum = block_sum(sum);
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) p[e] /= sum;
    __syncthreads();
}

// The weights of the chosen experts without the router's scale, by one thread. `p` is the softmax
// of all, needed only where it is not normalised.
template <class T>
DEVICE void weigh(
    const T* logits, const float* p, uint32 options, const uint32* chosen, size_t k, float* w) {
    if (options & SIGMOID) {
        float sum = 1e-20f;
        for (size_t j = 0; j < k; j++) sum += w[j] = sigmoid(to_f32(logits[chosen[j]]));
        if (options & NORMALISE) {
            for (size_t j = 0; j < k; j++) w[j] /= sum;
        }
    } else if (options & NORMALISE) {
        float greatest = -INFINITY, sum = 0.0f;
        for (size_t j = 0; j < k; j++) greatest = fmaxf(greatest, to_f32(logits[chosen[j]]));
        for (size_t j = 0; j < k; j++) sum += w[j] = expf(to_f32(logits[chosen[j]]) - greatest);
        for (size_t j = 0; j < k; j++) w[j] /= sum;
    } else {
        for (size_t j = 0; j < k; j++) w[j] = p[chosen[j]];
    }
}

// The index of the greatest key, the lowest of equals, which leaves the running as NaN.
DEVICE size_t take_best(float* keys, size_t n) {
    float greatest = -INFINITY, first = -INFINITY;
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) greatest = fmaxf(greatest, keys[e]);
    greatest = block_max(greatest);
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
        if (keys[e] == greatest) first = fmaxf(first, -float(e));
    }
    size_t best = size_t(-block_max(first));
    if (threadIdx.x == 0) keys[best] = __uint_as_float(0x7fc00000);
    __syncthreads();
    return best;
}

// `logits [t, n]` → `weights [t, k]` and `chosen [t, k]`, the latter as floats. `bias [n]`, which
// may be null, is added to scores for the choice only. Of `count` groups of experts `kept` remain.
template <class T>
__global__ void router_forward(
    const T* logits, const float* bias, size_t n, size_t k, uint32 options, float scale,
    size_t count, size_t kept, float* weights, float* chosen) {
    __shared__ float p[MAX_EXPERTS], keys[MAX_EXPERTS], groups[MAX_EXPERTS], w[MAX_TOP_K];
    __shared__ uint32 picked[MAX_TOP_K];
    size_t row = blockIdx.x, size = n / count;
    logits += row * n;
    bool sigmoids = options & SIGMOID;
    if (!sigmoids && (bias || !(options & NORMALISE))) softmax(logits, n, p);
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
        float key = to_f32(logits[e]);
        if (sigmoids) key = sigmoid(key);
        if (bias) key = (sigmoids ? key : p[e]) + bias[e];
        keys[e] = key == key ? key : -INFINITY;
    }
    __syncthreads();
    if (kept < count) {
        for (size_t g = threadIdx.x; g < count; g += blockDim.x) {
            float one = -INFINITY, two = -INFINITY;
            for (size_t e = g * size; e < (g + 1) * size; e++) {
                float key = keys[e];
                if (key > one) {
                    two = one, one = key;
                } else if (key > two) {
                    two = key;
                }
            }
            groups[g] = size > 1 ? one + two : one;
        }
        __syncthreads();
        for (size_t i = 0; i < kept; i++) take_best(groups, count);
        for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
            float group = groups[e / size];
            if (group == group) keys[e] = -INFINITY;
        }
        __syncthreads();
    }
    for (size_t j = 0; j < k; j++) {
        size_t best = take_best(keys, n);
        if (threadIdx.x == 0) picked[j] = uint32(best);
    }
    if (threadIdx.x == 0) {
        weigh(logits, p, options, picked, k, w);
        for (size_t j = 0; j < k; j++) {
            weights[row * k + j] = scale * w[j];
            chosen[row * k + j] = float(picked[j]);
        }
    }
}

// `d_logits [t, n]`, overwritten, for `d_weights [t, k]`, and for `d_p [n]`, the derivative by the
// softmax of the first `num_rows` rows.
template <class T>
__global__ void router_backward(
    const T* logits, size_t n, size_t k, uint32 options, float scale, const uint32* chosen,
    const float* d_weights, const float* d_p, size_t num_rows, T* d_logits) {
    __shared__ float p[MAX_EXPERTS], d[MAX_EXPERTS], w[MAX_TOP_K], shared_dot;
    size_t row = blockIdx.x;
    logits += row * n, d_logits += row * n, chosen += row * k, d_weights += row * k;
    bool sigmoids = options & SIGMOID, normalise = options & NORMALISE;
    bool balanced = d_p && row < num_rows, all = !sigmoids && !normalise;
    if (all || balanced) softmax(logits, n, p);
    if (threadIdx.x == 0) {
        weigh(logits, p, options, chosen, k, w);
        float dot = 0.0f;
        for (size_t j = 0; j < k; j++) dot += w[j] * d_weights[j];
        shared_dot = dot;
    }
    __syncthreads();
    float dot = shared_dot, along = 0.0f;
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
        d[e] = all ? -scale * p[e] * dot : 0.0f;
        if (balanced) along += p[e] * d_p[e];
    }
    along = block_sum(along);
    if (threadIdx.x == 0) {
        for (size_t j = 0; j < k; j++) {
            float d_w = d_weights[j], d_logit = w[j] * (normalise ? d_w - dot : d_w);
            if (sigmoids) d_logit *= 1.0f - sigmoid(to_f32(logits[chosen[j]]));
            d[chosen[j]] += scale * d_logit;
        }
    }
    __syncthreads();
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) {
        float balance = balanced ? p[e] * (d_p[e] - along) : 0.0f;
        d_logits[e] = from_f32<T>(d[e] + balance);
    }
}

// The softmax of each row.
template <class T>
__global__ void router_probabilities(const T* logits, size_t n, float* probabilities) {
    __shared__ float p[MAX_EXPERTS];
    size_t row = blockIdx.x;
    softmax(logits + row * n, n, p);
    for (size_t e = threadIdx.x; e < n; e += blockDim.x) probabilities[row * n + e] = p[e];
}
