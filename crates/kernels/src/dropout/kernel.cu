// Element `i` takes word `i % 4` of position `i / 4`; a thread takes four, so that words are drawn
// once. Which random numbers they are comes by memory but for the last bits of the stream: it
// differs from step to step, and kernels' parameters are to be the same.

// What neighbours from element `i` on are multiplied by.
template <int N>
DEVICE Neighbours<float, N> dropout_factors(Philox random, float probability, size_t i, Count<N>) {
    uint32 words[4];
    philox_words(random, i / 4, words);
    float kept = 1.0f / (1.0f - probability);
    Neighbours<float, N> factors;
    for (int k = 0; k < N; k++) {
        uint32 word = words[N == 4 ? k : (i + k) % 4];
        factors.of[k] = unit(word) >= probability ? kept : 0.0f;
    }
    return factors;
}

// `y = mask · x`, elementwise.
template <class X, class Y>
__global__ void dropout_apply(
    const Philox* of_pass, uint32 own, float probability, const X* x, Y* y, size_t n) {
    Philox random = *of_pass;
    random.stream |= own;
    over_grid<4>(n, aligned<4>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count), factors = dropout_factors(random, probability, i, count);
        for (int k = 0; k < count.value; k++) x_i.of[k] *= factors.of[k];
        write(y + i, x_i);
    });
}

// `d_x += mask · d_y`, elementwise.
template <class Y>
__global__ void dropout_add_masked(
    const Philox* of_pass, uint32 own, float probability, const float* d_y, Y* d_x, size_t n) {
    Philox random = *of_pass;
    random.stream |= own;
    over_grid<4>(n, aligned<4>(d_y, d_x), [&](size_t i, auto count) {
        auto d_i = read(d_y + i, count), factors = dropout_factors(random, probability, i, count);
        auto x_i = read(d_x + i, count);
        for (int k = 0; k < count.value; k++) x_i.of[k] += d_i.of[k] * factors.of[k];
        write(d_x + i, x_i);
    });
}
