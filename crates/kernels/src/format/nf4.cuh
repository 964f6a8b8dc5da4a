// NF4 with double quantisation: the 256 levels of an absmax, the mean absmax, a scale per 256
// blocks, a byte per block of 64 weights for its absmax, and the weights, two per byte.
struct Nf4 {
    const uint8* bytes;
    size_t len;
};

// The absmax of each block as it is, and the weights.
struct Nf4F32 {
    const uint8* bytes;
    size_t len;
};

DEVICE float nf4_level(uint32 i) {
    const float levels[16] = {
        -1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f,
        0.0f, 0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f,
        1.0f,
    };
    return levels[i];
}

// A vector of weights at `index`, with the magnitudes that blocks have.
template <int N, class M> DEVICE Vec<float, N> read_nf4(const uint8* pairs, size_t index, M of) {
    size_t block = ~size_t(0);
    float magnitude = 0.0f;
    Vec<float, N> y;
    for (int k = 0; k < N; k++) {
        size_t i = index + k;
        if (i / 64 != block) {
            block = i / 64;
            magnitude = of(block);
        }
        uint32 pair = pairs[i / 2];
        y.v[k] = nf4_level(i % 2 == 0 ? pair >> 4 : pair & 15) * magnitude;
    }
    return y;
}

template <int N> DEVICE bool aligned(Nf4) {
    return true;
}

template <int N> DEVICE bool aligned(Nf4F32) {
    return true;
}

template <int N> DEVICE Vec<float, N> read(Nf4 x, size_t index, size_t, Count<N>) {
    size_t blocks = (x.len + 63) / 64, groups = (blocks + 255) / 256;
    const float* words = reinterpret_cast<const float*>(x.bytes);
    const float* scales = words + 257;
    const uint8* magnitudes = x.bytes + 4 * (257 + groups);
    return read_nf4<N>(magnitudes + blocks, index, [&](size_t block) {
        // Rounded apart, as on the CPU.
        float magnitude = __fmul_rn(words[magnitudes[block]], scales[block / 256]);
        return __fadd_rn(magnitude, words[256]);
    });
}

template <int N> DEVICE Vec<float, N> read(Nf4F32 x, size_t index, size_t, Count<N>) {
    const float* magnitudes = reinterpret_cast<const float*>(x.bytes);
    const uint8* pairs = x.bytes + 4 * ((x.len + 63) / 64);
    return read_nf4<N>(pairs, index, [&](size_t block) { return magnitudes[block]; });
}
