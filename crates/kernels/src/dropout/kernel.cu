// Element `i` uses word `i % 4` of position `i / 4`; a thread handles four, so that words are drawn
// once. The key of the random numbers changes from step to step, so all but the stream's low bits
// are read from memory: launches with equal parameters can be replayed as a graph.

// Multipliers of the elements starting at `i`.
template <int N>
DEVICE Vec<float, N> dropout_factors(Philox random, float probability, size_t i, Count<N>) {
    uint32 words[4];
    philox_words(random, i / 4, words);
    float kept = 1.0f / (1.0f - probability);
    Vec<float, N> factors;
    for (int k = 0; k < N; k++) {
        uint32 word = words[N == 4 ? k : (i + k) % 4];
        factors.v[k] = unit(word) >= probability ? kept : 0.0f;
    }
    return factors;
}

// `y = mask · x`, elementwise.
template <class X, class Y>
__global__ void dropout_apply(
    const Philox* pass_key, uint32 stream_bits, float probability, const X* x, Y* y, size_t n) {
    Philox random = *pass_key;
    random.stream |= stream_bits;
    over_grid<4>(n, aligned<4>(x, y), [&](size_t i, auto count) {
        auto x_i = read(x + i, count), factors = dropout_factors(random, probability, i, count);
        for (int k = 0; k < count.value; k++) x_i.v[k] *= factors.v[k];
        write(y + i, x_i);
    });
}

// `d_x += mask · d_y`, elementwise.
template <class Y>
__global__ void dropout_add_masked(
    const Philox* pass_key, uint32 stream_bits, float probability, const float* d_y, Y* d_x,
    size_t n) {
    Philox random = *pass_key;
    random.stream |= stream_bits;
    over_grid<4>(n, aligned<4>(d_y, d_x), [&](size_t i, auto count) {
        auto d_i = read(d_y + i, count), factors = dropout_factors(random, probability, i, count);
        auto x_i = read(d_x + i, count);
        for (int k = 0; k < count.value; k++) x_i.v[k] += d_i.v[k] * factors.v[k];
        write(d_x + i, x_i);
    });
}
