// What every kernel starts from: element types, conversions, sums over a warp and a block, random
// numbers. Compiled by NVRTC without any header of the toolkit, and by a host compiler after
// `emulator.h`, which defines the words of CUDA in plain C++.
//
// Kernels are templates over element types and are asked for by name (`rms_norm_forward<bf16>`).
// Sizes and indices of elements are `size_t`: a gradient of a large vocabulary has more than 2^31.

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

#define DEVICE __device__ __forceinline__

#if defined(__CUDACC_RTC__)
#define INFINITY __int_as_float(0x7f800000)
// Memory of a block whose size is given at the launch.
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

// The multiplication puts the exponent right and normalises subnormals.
DEVICE float to_f32(f16 x) {
    float magnitude = __uint_as_float(uint32(x.bits & 0x7fff) << 13) * __uint_as_float(0x77800000);
    uint32 special = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return __uint_as_float(__float_as_uint(magnitude) | special | uint32(x.bits & 0x8000) << 16);
}

template <class T> DEVICE T from_f32(float x);

template <> DEVICE float from_f32<float>(float x) {
    return x;
}

// To the nearest, ties to even.
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

// To the nearest, ties to even; what is too large becomes infinite.
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
        // Subnormal, or zero: adding 0.5 leaves units of 2^-24 in the last place.
        uint32 rounded = __float_as_uint(__uint_as_float(bits) + 0.5f);
        return f16{uint16(sign | (rounded - 0x3f000000))};
    }
    uint32 rounded = bits - 0x38000000 + 0xfff + (bits >> 13 & 1);
    return f16{uint16(sign | rounded >> 13)};
#endif
}

// Two neighbours in one word, the first in the lower half.
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

// Rows of bytes with zero point 128 and a scale each: element (i, j) is
// scales[i] * (values[i, j] - 128).
struct Int8Rows {
    const uint8* values;
    const float* scales;
};

// How kernels take a weight, which may be rows of bytes.
template <class W> struct WeightOf {
    typedef const W* type;
};
template <> struct WeightOf<Int8Rows> {
    typedef Int8Rows type;
};
template <class W> using Weight = typename WeightOf<W>::type;

// `N` neighbours in an array, moved in pieces of at most 16 bytes.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Neighbours {
    T of[N];
};

// A number that is known when compiling, as an argument.
template <int N> struct Count {
    static constexpr int value = N;
};

// How many neighbours a thread takes at a time: 16 bytes of the larger type.
template <class X, class Y = X>
constexpr int RUN = 16 / (sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));

template <class T, int N> DEVICE Neighbours<float, N> read(const T* x, Count<N>) {
    Neighbours<T, N> all = *reinterpret_cast<const Neighbours<T, N>*>(x);
    Neighbours<float, N> y;
    for (int k = 0; k < N; k++) y.of[k] = to_f32(all.of[k]);
    return y;
}

template <class T, int N> DEVICE void write(T* y, Neighbours<float, N> x) {
    Neighbours<T, N> all;
    for (int k = 0; k < N; k++) all.of[k] = from_f32<T>(x.of[k]);
    *reinterpret_cast<Neighbours<T, N>*>(y) = all;
}

// Neighbours of a weight from `index` on, all in row `row`.
template <class T, int N>
DEVICE Neighbours<float, N> read(const T* x, size_t index, size_t, Count<N> count) {
    return read(x + index, count);
}

template <int N>
DEVICE Neighbours<float, N> read(Int8Rows x, size_t index, size_t row, Count<N>) {
    auto all = *reinterpret_cast<const Neighbours<uint8, N>*>(x.values + index);
    Neighbours<float, N> y;
    for (int k = 0; k < N; k++) y.of[k] = (float(all.of[k]) - 128.0f) * x.scales[row];
    return y;
}

// Whether arrays begin where `N` neighbours can be moved together.
template <int N, class T> DEVICE bool aligned(const T* x) {
    return size_t(x) % alignof(Neighbours<T, N>) == 0;
}

template <int N> DEVICE bool aligned(Int8Rows x) {
    return aligned<N>(x.values);
}

template <int N, class X, class Y, class... More> DEVICE bool aligned(X x, Y y, More... more) {
    return aligned<N>(x) && aligned<N>(y, more...);
}

// `body(i, Count<N>())` for runs of `N` of `n` elements and `body(i, Count<1>())` for the rest, or
// for all elements where runs cannot be moved together; `thread` is one of `threads`.
template <int N, class Body>
DEVICE void over(size_t n, bool together, size_t thread, size_t threads, Body body) {
    size_t runs = together ? n / N : 0;
    for (size_t run = thread; run < runs; run += threads) body(run * N, Count<N>());
    for (size_t i = runs * N + thread; i < n; i += threads) body(i, Count<1>());
}

// The elements of a row, by the threads of a block.
template <int N, class Body> DEVICE void over_block(size_t n, bool together, Body body) {
    over<N>(n, together, threadIdx.x, blockDim.x, body);
}

// The elements of an array, by all threads that differ in `x`.
template <int N, class Body> DEVICE void over_grid(size_t n, bool together, Body body) {
    size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    over<N>(n, together, thread, size_t(gridDim.x) * blockDim.x, body);
}

// Elements of arrays that one launch does together: a block takes a chunk of 8192 of one of them,
// from `start` on. The table has a row for each array: its first chunk, its length, `P` addresses
// of numbers, and `E` words more.
template <int P, int E = 0> struct Chunk {
    size_t start, len;
    float* at[P];
    const uint64* more;

    DEVICE Chunk(const uint64* table, uint32 rows) {
        const size_t most = 8192;
        const int width = 2 + P + E;
        uint32 low = 0, high = rows;
        // The last row whose first chunk is not beyond this one.
        while (high - low > 1) {
            uint32 middle = (low + high) / 2;
            (table[middle * width] <= blockIdx.x ? low : high) = middle;
        }
        const uint64* row = table + low * width;
        start = (blockIdx.x - row[0]) * most;
        size_t left = row[1] - start;
        len = left < most ? left : most;
        for (int i = 0; i < P; i++) at[i] = reinterpret_cast<float*>(row[2 + i]) + start;
        more = row + 2 + P;
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

// The sum over all threads of a block, of which there are a multiple of 32; every thread gets it,
// and the order of the sum is always the same.
DEVICE float block_sum(float x) {
    __shared__ float of_warps[WARP];
    x = warp_sum(x);
    __syncthreads();  // An earlier sum may still be read.
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? of_warps[threadIdx.x % WARP] : 0.0f;
    return warp_sum(x);
}

// The greatest value over all threads of a block, likewise.
DEVICE float block_max(float x) {
    __shared__ float of_warps[WARP];
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? of_warps[threadIdx.x % WARP] : -INFINITY;
    return warp_max(x);
}

// `sums[column] += Σ_row value(row, column)` for the 32 columns of a block: a warp takes every row
// of as many as there are warps, so that the order is always the same.
template <class Value>
DEVICE void add_sums_over_rows(size_t rows, size_t columns, float* sums, Value value) {
    __shared__ float of_warps[WARP][WARP];
    size_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    size_t column = size_t(blockIdx.x) * WARP + lane;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 4
        for (size_t row = warp; row < rows; row += warps) sum += value(row, column);
    }
    of_warps[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    sum = 0.0f;
    for (size_t w = 0; w < warps; w++) sum += of_warps[w][lane];
    sums[column] += sum;
}

DEVICE float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// Philox4x32-10 (Salmon et al., 2011), the same numbers as on the CPU.
struct Philox {
    uint32 key[2];
    uint64 stream;
    // What positions are counted from.
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

// A word as a number in [0, 1), a multiple of 2^-24.
DEVICE float unit(uint32 word) {
    return float(word >> 8) * (1.0f / 16777216.0f);
}
