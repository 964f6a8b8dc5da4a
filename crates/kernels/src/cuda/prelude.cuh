// Prepended to every kernel source: element types, conversions, warp and block reductions, random
// numbers. Compiled by NVRTC without any header of the toolkit, and by a host compiler after
// `emulator.h`, which defines CUDA's built-ins in plain C++.
//
// Kernels are templates over element types and are looked up by name (`rms_norm_forward<bf16>`).
// Sizes and indices of elements are `size_t`: a large vocabulary's gradient exceeds 2^31 elements.

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

#define DEVICE __device__ __forceinline__

#if defined(__CUDACC_RTC__)
#define INFINITY __int_as_float(0x7f800000)
// Dynamic shared memory.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

// bfloat16: the upper half of a binary32.
struct bf16 {
    uint16 bits;
};

// IEEE 754 binary16.
struct f16 {
    uint16 bits;
};

DEVICE float to_f32(float x) {
    return x;
}

DEVICE float to_f32(bf16 x) {
    return __uint_as_float(uint32(x.bits) << 16);
}

// The multiplication rebiases the exponent and normalises subnormals.
DEVICE float to_f32(f16 x) {
    float magnitude = __uint_as_float(uint32(x.bits & 0x7fff) << 13) * __uint_as_float(0x77800000);
    uint32 special = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return __uint_as_float(__float_as_uint(magnitude) | special | uint32(x.bits & 0x8000) << 16);
}

template <class T> DEVICE T from_f32(float x);

template <> DEVICE float from_f32<float>(float x) {
    return x;
}

// Rounds to nearest even.
template <> DEVICE bf16 from_f32<bf16>(float x) {
#if __CUDA_ARCH__ >= 800
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    uint32 bits = __float_as_uint(x);
    uint32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return bf16{uint16(x != x ? bits >> 16 | 0x40 : rounded)};
#endif
}

// Rounds to nearest even; overflows to infinity.
template <> DEVICE f16 from_f32<f16>(float x) {
#if defined(__CUDA_ARCH__)
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    uint32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return f16{uint16(sign | 0x7e00)};
    if (bits >= 0x477ff000) return f16{uint16(sign | 0x7c00)};
    if (bits < 0x38800000) {
        // Subnormal, or zero: adding 0.5 aligns 2^-24 with the last place.
        uint32 rounded = __float_as_uint(__uint_as_float(bits) + 0.5f);
        return f16{uint16(sign | (rounded - 0x3f000000))};
    }
    uint32 rounded = bits - 0x38000000 + 0xfff + (bits >> 13 & 1);
    return f16{uint16(sign | rounded >> 13)};
#endif
}

// Two elements in one word, the first in the lower half.
template <class T> DEVICE uint32 pack(float low, float high) {
    return uint32(from_f32<T>(low).bits) | uint32(from_f32<T>(high).bits) << 16;
}

#if __CUDA_ARCH__ >= 800
template <> DEVICE uint32 pack<bf16>(float low, float high) {
    uint32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

template <> DEVICE uint32 pack<f16>(float low, float high) {
    uint32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
#endif

// Int8 rows with zero point 128 and a scale each: element (i, j) is
// scales[i] * (values[i, j] - 128).
struct Int8Rows {
    const uint8* values;
    const float* scales;
};

// The parameter type of a weight, which may be packed (`format/unpack.cuh`).
template <class W> struct WeightOf {
    typedef const W* type;
};
template <class W> using Weight = typename WeightOf<W>::type;

// A vector of `N` consecutive elements, loaded and stored in pieces of at most 16 bytes.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vec {
    T v[N];
};

// A compile-time constant as a function argument.
template <int N> struct Count {
    static constexpr int value = N;
};

// Elements per vector: 16 bytes of the larger type.
template <class X, class Y = X>
constexpr int VECTOR = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));

template <class T, int N> DEVICE Vec<float, N> read(const T* x, Count<N>) {
    Vec<T, N> all = *reinterpret_cast<const Vec<T, N>*>(x);
    Vec<float, N> y;
    for (int k = 0; k < N; k++) y.v[k] = to_f32(all.v[k]);
    return y;
}

template <class T, int N> DEVICE void write(T* y, Vec<float, N> x) {
    Vec<T, N> all;
    for (int k = 0; k < N; k++) all.v[k] = from_f32<T>(x.v[k]);
    *reinterpret_cast<Vec<T, N>*>(y) = all;
}

// A vector of a weight starting at `index`, within row `row`.
template <class T, int N>
DEVICE Vec<float, N> read(const T* x, size_t index, size_t, Count<N> count) {
    return read(x + index, count);
}

template <int N>
DEVICE Vec<float, N> read(Int8Rows x, size_t index, size_t row, Count<N>) {
    auto all = *reinterpret_cast<const Vec<uint8, N>*>(x.values + index);
    Vec<float, N> y;
    for (int k = 0; k < N; k++) y.v[k] = (float(all.v[k]) - 128.0f) * x.scales[row];
    return y;
}

// Whether all pointers are aligned for vectors of `N` elements.
template <int N, class T> DEVICE bool aligned(const T* x) {
    return size_t(x) % alignof(Vec<T, N>) == 0;
}

template <int N> DEVICE bool aligned(Int8Rows x) {
    return aligned<N>(x.values);
}

template <int N, class X, class Y, class... More> DEVICE bool aligned(X x, Y y, More... more) {
    return aligned<N>(x) && aligned<N>(y, more...);
}

// Calls `body(i, Count<N>())` for vectors of `N` of the `n` elements and `body(i, Count<1>())` for
// the rest, or for all elements unless `vectorised`; `thread` is one of `threads`.
template <int N, class Body>
DEVICE void over(size_t n, bool vectorised, size_t thread, size_t threads, Body body) {
    size_t vectors = vectorised ? n / N : 0;
    for (size_t vector = thread; vector < vectors; vector += threads) body(vector * N, Count<N>());
    for (size_t i = vectors * N + thread; i < n; i += threads) body(i, Count<1>());
}

// The elements of a row, by the threads of a block.
template <int N, class Body> DEVICE void over_block(size_t n, bool vectorised, Body body) {
    over<N>(n, vectorised, threadIdx.x, blockDim.x, body);
}

// The elements of an array, by all threads of the grid along `x`.
template <int N, class Body> DEVICE void over_grid(size_t n, bool vectorised, Body body) {
    size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    over<N>(n, vectorised, thread, size_t(gridDim.x) * blockDim.x, body);
}

// A block's chunk in a launch over many arrays: up to 8192 elements of one of them, beginning at
// `start`. The table has a row per array: its first chunk, its length, `P` pointers, and `E` extra
// words.
template <int P, int E = 0> struct Chunk {
    size_t start, len;
    float* at[P];
    const uint64* words;

    DEVICE Chunk(const uint64* table, uint32 rows) {
        const size_t max_len = 8192;
        const int width = 2 + P + E;
        uint32 low = 0, high = rows;
        // Binary search for the last row whose first chunk is not beyond this one.
        while (high - low > 1) {
            uint32 middle = (low + high) / 2;
            (table[middle * width] <= blockIdx.x ? low : high) = middle;
        }
        const uint64* row = table + low * width;
        start = (blockIdx.x - row[0]) * max_len;
        size_t left = row[1] - start;
        len = left < max_len ? left : max_len;
        for (int i = 0; i < P; i++) at[i] = reinterpret_cast<float*>(row[2 + i]) + start;
        words = row + 2 + P;
    }
};

#define WARP 32
#define ALL_LANES 0xffffffffu

DEVICE float warp_sum(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

DEVICE float warp_max(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    }
    return x;
}

// The sum over all threads of a block, a multiple of 32, broadcast to every thread; always in the
// same order.
DEVICE float block_sum(float x) {
    __shared__ float warp_values[WARP];
    x = warp_sum(x);
    __syncthreads();  // Threads may still be reading an earlier sum.
    if (threadIdx.x % WARP == 0) warp_values[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? warp_values[threadIdx.x % WARP] : 0.0f;
    return warp_sum(x);
}

// The maximum over all threads of a block, broadcast to every thread.
DEVICE float block_max(float x) {
    __shared__ float warp_values[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) warp_values[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? warp_values[threadIdx.x % WARP] : -INFINITY;
    return warp_max(x);
}

// `sums[column] += Σ_row value(row, column)` for the 32 columns of a block, with rows distributed
// over its warps in a fixed order.
template <class Value>
DEVICE void add_sums_over_rows(size_t rows, size_t columns, float* sums, Value value) {
    __shared__ float warp_values[WARP][WARP];
    size_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    size_t column = size_t(blockIdx.x) * WARP + lane;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (size_t row = warp; row < rows; row += warps) sum += value(row, column);
    }
    warp_values[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    sum = 0.0f;
    for (size_t w = 0; w < warps; w++) sum += warp_values[w][lane];
    sums[column] += sum;
}

DEVICE float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// Philox4x32-10 (Salmon et al., 2011), the same numbers as on the CPU.
struct Philox {
    uint32 key[2];
    uint64 stream;
    // Offset added to positions.
    uint64 first;
};

DEVICE void philox_words(Philox random, uint64 position, uint32 words[4]) {
    position += random.first;
    uint32 a = uint32(position), b = uint32(position >> 32);
    uint32 c = uint32(random.stream), d = uint32(random.stream >> 32);
    uint32 key0 = random.key[0], key1 = random.key[1];
    for (int round = 0; round < 10; round++) {
        uint64 low = uint64(a) * 0xD2511F53u, high = uint64(c) * 0xCD9E8D57u;
        a = uint32(high >> 32) ^ b ^ key0;
        b = uint32(high);
        c = uint32(low >> 32) ^ d ^ key1;
        d = uint32(low);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

// Maps a word to [0, 1), in multiples of 2^-24.
DEVICE float unit(uint32 word) {
    return float(word >> 8) * (1.0f / 16777216.0f);
}
