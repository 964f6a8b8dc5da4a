// Attention on tensor cores, after FlashAttention-2 (Dao, 2023): heads D wide, accumulation in f32.
// The source is compiled with `Element` defined as bf16 or f16.
//
// A block of threads owns rows of one side (queries, or keys in `attention_backward_kv_mma`), 16 M
// per warp, and loops over shared-memory tiles of the rows on the other side that they attend to,
// loading while it computes: the backward passes the next tile into a second buffer, the forward
// pass values during the scores and keys after them. The accumulator layout of one product is the
// left-operand layout of the next, so scores stay in registers; the gradients of keys and values
// compute them transposed for that reason. Tiles that are masked entirely are skipped, and only
// tiles that are masked in part apply the mask. No atomics: the backward pass computes scores twice
// instead, and the order of sums depends on the sequence alone.
//
// Threads: 128. Heads and rows must be aligned to 16 bytes.

#define WARPS 4
#define THREADS (WARPS * WARP)
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// Rows of a tile of keys, and of a block in the backward passes.
#define ROWS 64
// Queries per tile in the gradients of keys and values; limited by registers.
#define QUERIES(D) ((D) > 64 ? 32 : 64)

// A tile is rows of D dimensions in 16-byte chunks. Chunk c is stored at position c ^ swizzle(row)
// of its row, so that the same chunk of 8 rows is in different banks.
template <int D> DEVICE int swizzle(int row) {
    return D % 64 == 0 ? row & 7 : row >> 1 & 3;
}

// Copies rows of a head to shared memory, tile by tile. Consecutive lanes copy consecutive chunks
// of a row, as many as the swizzle permutes.
template <int D> struct Reader {
    static constexpr int LANES = D % 64 == 0 ? 8 : 4, STEP = THREADS / LANES;

    // This thread's first chunk of the next tile.
    const Element* from;
    size_t stride;

    DEVICE Reader(Rows<const Element> x, Heads heads, uint32 row, uint32 head) : stride(x.stride) {
        from = head_rows(x, heads, row + threadIdx.x / LANES, head) + threadIdx.x % LANES * 8;
    }

    // Starts copying a tile of `NUM` rows; rows from `count` on are filled with zeros.
    template <int NUM> DEVICE void load(uint32 tile, int count) {
        int row = threadIdx.x / LANES, c = threadIdx.x % LANES;
        uint32 to = tile + row * (2 * D) + (c ^ swizzle<D>(row)) * 16;
#pragma unroll
        for (int i = 0; i < NUM; i += STEP) {
#pragma unroll
            for (int j = 0; j < D / 8; j += LANES) {
                const Element* chunk = from + i * stride + j * 8;
                copy_async<16>(to + i * (2 * D) + j * 16, chunk, row + i < count);
            }
        }
        from += NUM * stride;
    }
};

// Address of this lane's row `top + row` and its chunk `chunk` (0 or 1) of the 16 dimensions of a
// step. `top` is a multiple of 8 that is the same in all lanes.
template <int D> DEVICE uint32 chunk_at(uint32 tile, int top, int row, int step, int chunk) {
    return tile + row * (2 * D) + (2 * step ^ (chunk ^ swizzle<D>(row))) * 16 + top * (2 * D);
}

// Addresses for `read_blocks` of a 16 × 16 block whose quarters are ordered upper left, lower left,
// upper right, lower right: a left operand, or, transposed, two right operands.
template <int D> DEVICE uint32 down_first(uint32 tile, int top, int step) {
    int lane = threadIdx.x % WARP;
    return chunk_at<D>(tile, top, lane % 16, step, lane / 16);
}

// Quarters ordered upper left, upper right, lower left, lower right: two right operands.
template <int D> DEVICE uint32 across_first(uint32 tile, int top, int step) {
    int lane = threadIdx.x % WARP;
    return chunk_at<D>(tile, top, lane % 8 + lane / 16 * 8, step, lane / 8 % 2);
}

// 16 M rows as left operand, in registers or read from shared memory each time.
template <int D, int M, bool IN_REGISTERS> struct Left {
    uint32 tile;
    int row;
    uint32 registers[IN_REGISTERS ? M : 1][IN_REGISTERS ? D / 16 : 1][4];

    DEVICE Left(uint32 tile, int row) : tile(tile), row(row) {
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int step = 0; step < D / 16; step++) {
                    read_blocks(registers[m][step], down_first<D>(tile, row + 16 * m, step));
                }
            }
        }
    }

    DEVICE void get(uint32 (&a)[4], int m, int step) const {
        if constexpr (IN_REGISTERS) {
            for (int i = 0; i < 4; i++) a[i] = registers[m][step][i];
        } else {
            read_blocks(a, down_first<D>(tile, row + 16 * m, step));
        }
    }
};

// sums[16 M, 8 N] += left[16 M, D] · tile[8 N, D]ᵀ
template <int D, int M, int N, bool IN_REGISTERS>
DEVICE void add_dots(float (&sums)[M][N][4], const Left<D, M, IN_REGISTERS>& left, uint32 tile) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32 a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) left.get(a[m], m, step);
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            uint32 b[4];
            read_blocks(b, across_first<D>(tile, 16 * n, step));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(sums[m][2 * n], a[m], b[0], b[1]);
                multiply(sums[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Rounded weights as left operand: its layout is that of the accumulator they come from.
template <int M, int N> struct Weights {
    uint32 a[M][N / 2][4];

    DEVICE explicit Weights(const float (&x)[M][N][4]) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                a[m][n / 2][n % 2 * 2] = pack<Element>(x[m][n][0], x[m][n][1]);
                a[m][n / 2][n % 2 * 2 + 1] = pack<Element>(x[m][n][2], x[m][n][3]);
            }
        }
    }
};

// sums[16 M, D] += weights[16 M, 8 N] · tile[8 N, D]
template <int D, int M, int N>
DEVICE void add_rows(float (&sums)[M][D / 8][4], const Weights<M, N>& weights, uint32 tile) {
#pragma unroll
    for (int step = 0; step < N / 2; step++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32 b[4];
            read_blocks_transposed(b, down_first<D>(tile, 16 * step, n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply(sums[m][2 * n], weights.a[m][step], b[0], b[1]);
                multiply(sums[m][2 * n + 1], weights.a[m][step], b[2], b[3]);
            }
        }
    }
}

// Calls f(element, row, column) for the elements of sums[16 M, 8 N] that this lane holds.
template <int M, int N, class F> DEVICE void each(float (&sums)[M][N][4], F f) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                f(sums[m][n][i], m * 16 + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
            }
        }
    }
}

// Masks scores with -∞. Row 0 of this warp sees the columns `seen`, row i those shifted by i; the
// first column here is number `column`.
template <int M, int N>
DEVICE void mask_scores(float (&scores)[M][N][4], int column, Range seen) {
    if (seen.begin + 16 * M - 1 <= column && column + 8 * N <= seen.end) return;
    uint32 num = seen.end - seen.begin;
    each(scores, [&](float& score, int i, int j) {
        // Differences below zero wrap to more than `num`.
        if (uint32(column - seen.begin + j - i) >= num) score = -INFINITY;
    });
}

DEVICE float max_of_four_lanes(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

DEVICE float sum_of_four_lanes(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Online softmax of a lane's rows (Milakov & Gimelshein, 2018), in powers of two. Four lanes share
// a row: they agree on its maximum, but each sums its own columns.
template <int M> struct Softmax {
    float max[M][2], sum[M][2];

    // With a score, not yet multiplied by the scale, that is in the sum from the start.
    DEVICE explicit Softmax(float sink) {
        float own = sink == -INFINITY || threadIdx.x % 4 != 0 ? 0.0f : 1.0f;
        for (int m = 0; m < M; m++) {
            for (int i = 0; i < 2; i++) max[m][i] = sink, sum[m][i] = own;
        }
    }

    // Replaces scores, not yet multiplied by `scale`, by weights, and rescales earlier sums.
    template <int N, int W>
    DEVICE void update(float (&scores)[M][N][4], float (&sums)[M][W][4], float scale) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 2; i++) update_row(scores[m], sums[m], m, i, scale);
        }
    }

    template <int N, int W>
    DEVICE void update_row(
        float (&scores)[N][4], float (&sums)[W][4], int m, int i, float scale) {
        float old_max = max[m][i], new_max = old_max;
#pragma unroll
        for (int n = 0; n < N; n++) {
            new_max = fmaxf(new_max, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
        }
        new_max = max_of_four_lanes(new_max);
        // While all keys are masked, -∞ - (-∞) would be NaN.
        float base = new_max == -INFINITY ? 0.0f : new_max * scale;
        float rescale = fast_exp2(old_max * scale - base);
        max[m][i] = new_max;
        sum[m][i] *= rescale;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int j = 2 * i; j < 2 * i + 2; j++) {
                scores[n][j] = fast_exp2(scores[n][j] * scale - base);
                sum[m][i] += scores[n][j];
            }
        }
#pragma unroll
        for (int n = 0; n < W; n++) sums[n][2 * i] *= rescale, sums[n][2 * i + 1] *= rescale;
    }
};

// Stores the first `count` of a warp's rows to `x`.
template <int M, int N>
DEVICE void store_rows(Element* x, size_t stride, int count, const float (&sums)[M][N][4]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = m * 16 + lane / 4 + i * 8;
            uint32* to = reinterpret_cast<uint32*>(x + row * stride + lane % 4 * 2);
#pragma unroll
            for (int n = 0; n < N; n++) {
                float low = sums[m][n][2 * i], high = sums[m][n][2 * i + 1];
                if (row < count) to[n * 4] = pack<Element>(low, high);
            }
        }
    }
}

// out = softmax(q kᵀ scale) v and lse [num_heads, num_tokens], the logarithm of the softmax's
// denominator; with `sinks` [num_heads], each in the denominator of its head. Grid: blocks of 128
// queries, query heads. Dynamic shared memory: 512 D bytes.
template <int D>
__global__ void __launch_bounds__(THREADS, 2) attention_forward_mma(
    Rows<const Element> q, Rows<const Element> k, Rows<const Element> v, Heads heads,
    const Sequence* sequences, const Block* blocks, Rows<Element> out, float* lse,
    uint32 num_tokens, const float* sinks) {
    constexpr int M = 2, NUM = WARPS * 16 * M;
    DYNAMIC_SHARED(shared);
    uint32 q_tile = shared_address(shared), k_tile = q_tile + NUM * D * 2;
    uint32 v_tile = k_tile + ROWS * D * 2;
    Block block = blocks[blockIdx.x];
    Sequence s = sequences[block.sequence];
    uint32 head = blockIdx.y, kv_head = head / heads.group, q_row = s.q_start + block.first;
    int first = block.first, count = min(NUM, int(s.q_len) - first);
    if (count <= 0) return;
    int own_row = threadIdx.x / WARP * 16 * M;
    Range last = keys_of(s, heads, first + count - 1);
    Range all = all_of(keys_of(s, heads, first), last, s.k_len);
    Reader<D> keys(k, heads, s.k_start + all.begin, kv_head);
    Reader<D> values(v, heads, s.k_start + all.begin, kv_head);
    Reader<D>(q, heads, q_row, head).template load<NUM>(q_tile, count);
    keys.template load<ROWS>(k_tile, all.end - all.begin);
    copy_wait();
    __syncthreads();

    Left<D, M, (D <= 64)> own_q(q_tile, own_row);
    float sums[M][D / 8][4] = {};
    Softmax<M> softmax(sinks ? sinks[head] / heads.scale : -INFINITY);
    Range seen = keys_of(s, heads, first + own_row);
    for (int k0 = all.begin; k0 < all.end; k0 += ROWS) {
        // The keys have arrived and the previous values are no longer needed: load the next values
        // while scores are computed.
        copy_wait();
        __syncthreads();
        values.template load<ROWS>(v_tile, all.end - k0);
        float scores[M][ROWS / 8][4] = {};
        add_dots(scores, own_q, k_tile);
        copy_wait();
        __syncthreads();
        if (k0 + ROWS < all.end) keys.template load<ROWS>(k_tile, all.end - k0 - ROWS);
        mask_scores(scores, k0, seen);
        softmax.update(scores, sums, heads.scale * LOG2_E);
        add_rows<D>(sums, Weights<M, ROWS / 8>(scores), v_tile);
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = sum_of_four_lanes(softmax.sum[m][i]);
            int row = own_row + m * 16 + threadIdx.x % WARP / 4 + i * 8;
            if (threadIdx.x % 4 == 0 && row < count) {
                float value = softmax.max[m][i] * heads.scale + LN_2 * log2f(sum);
                lse[size_t(head) * num_tokens + q_row + row] = value;
            }
#pragma unroll
            for (int n = 0; n < 2 * (D / 8); n++) sums[m][n / 2][2 * i + n % 2] *= 1.0f / sum;
        }
    }
    Element* own_out = head_rows(out, heads, q_row + own_row, head);
    store_rows(own_out, out.stride, count - own_row, sums);
}

// A tile of queries with everything that the gradients of keys and values need: queries, output
// gradients, `lse` and `delta`.
template <int D> struct QueryTile {
    static constexpr int NUM = QUERIES(D);
    static constexpr uint32 BYTES = NUM * D * 2, ALL_BYTES = 2 * BYTES + NUM * 8;

    Rows<const Element> q, d_out;
    const float *lse, *delta;
    uint32 num_tokens;

    // Starts copying `count` queries beginning at `row`, zero-padded to `NUM`.
    DEVICE void load(uint32 to, Heads heads, uint32 row, uint32 head, int count) const {
        Reader<D>(q, heads, row, head).template load<NUM>(to, count);
        Reader<D>(d_out, heads, row, head).template load<NUM>(to + BYTES, count);
        int i = threadIdx.x % NUM;
        const float* statistics = threadIdx.x < NUM ? lse : delta;
        const float* from = statistics + size_t(head) * num_tokens + row + i;
        if (threadIdx.x < 2 * NUM) {
            copy_async<4>(to + 2 * BYTES + threadIdx.x * 4, from, i < count);
        }
    }
};

// d_k and d_v from the saved lse and delta. Grid: blocks of 64 keys, key-value heads. Dynamic
// shared memory in bytes, with tiles of n = QUERIES(D) queries: 128 D + n (8 D + 16).
template <int D>
__global__ void __launch_bounds__(THREADS, 2) attention_backward_kv_mma(
    Rows<const Element> q, Rows<const Element> k, Rows<const Element> v, Rows<const Element> d_out,
    const float* lse, const float* delta, Heads heads, const Sequence* sequences,
    const Block* blocks, Rows<Element> d_k, Rows<Element> d_v, uint32 num_tokens) {
    using Tile = QueryTile<D>;
    constexpr int NUM = Tile::NUM;
    constexpr uint32 V_BYTES = ROWS * D * 2;
    DYNAMIC_SHARED(shared);
    uint32 base = shared_address(shared);
    Block block = blocks[blockIdx.x];
    Sequence s = sequences[block.sequence];
    uint32 kv_head = blockIdx.y, k_row = s.k_start + block.first;
    int first = block.first, count = min(ROWS, int(s.k_len) - first);
    if (count <= 0) return;
    int own_row = threadIdx.x / WARP * 16, lane = threadIdx.x % WARP;
    Range last = queries_of(s, heads, first + count - 1);
    Range all = all_of(queries_of(s, heads, first), last, s.q_len);
    // Tiles of all query heads of this key-value head, one after another.
    int tiles = max(0, all.end - all.begin + NUM - 1) / NUM, all_tiles = tiles * heads.group;
    Tile tile{q, d_out, lse, delta, num_tokens};
    auto load = [&](int i) {
        int q0 = all.begin + i % tiles * NUM;
        uint32 to = base + V_BYTES + i % 2 * Tile::ALL_BYTES;
        tile.load(to, heads, s.q_start + q0, kv_head * heads.group + i / tiles, all.end - q0);
    };
    // Keys move to registers right away, so they may be loaded to where the second tile will be.
    uint32 k_tile = base + V_BYTES + Tile::ALL_BYTES;
    Reader<D>(v, heads, k_row, kv_head).template load<ROWS>(base, count);
    Reader<D>(k, heads, k_row, kv_head).template load<ROWS>(k_tile, count);
    if (all_tiles > 0) load(0);
    copy_wait();
    __syncthreads();

    Left<D, 1, true> own_k(k_tile, own_row);
    Left<D, 1, (D <= 96)> own_v(base, own_row);
    Range seen = queries_of(s, heads, first + own_row);
    float sums_k[1][D / 8][4] = {}, sums_v[1][D / 8][4] = {};
    for (int i = 0; i < all_tiles; i++) {
        // This tile has arrived and the previous one is no longer needed: load the next over it.
        copy_wait();
        __syncthreads();
        if (i + 1 < all_tiles) load(i + 1);
        int q0 = all.begin + i % tiles * NUM;
        if (seen.begin >= q0 + NUM || seen.end + 15 <= q0) continue;
        uint32 at = V_BYTES + i % 2 * Tile::ALL_BYTES;
        float weights[1][NUM / 8][4] = {}, d_scores[1][NUM / 8][4] = {};
        add_dots(weights, own_k, base + at);
        add_dots(d_scores, own_v, base + at + Tile::BYTES);
        mask_scores(weights, q0, seen);
        const float* own_lse = reinterpret_cast<const float*>(shared + at + 2 * Tile::BYTES);
        const float* own_delta = own_lse + NUM;
        float scale = heads.scale * LOG2_E;
        each(weights, [&](float& weight, int, int j) {
            weight = fast_exp2(weight * scale - own_lse[j] * LOG2_E);
        });
        add_rows<D>(sums_v, Weights<1, NUM / 8>(weights), base + at + Tile::BYTES);
#pragma unroll
        for (int n = 0; n < NUM / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float own = own_delta[n * 8 + lane % 4 * 2 + e % 2];
                d_scores[0][n][e] = weights[0][n][e] * (d_scores[0][n][e] - own);
            }
        }
        add_rows<D>(sums_k, Weights<1, NUM / 8>(d_scores), base + at);
    }
    each(sums_k, [&](float& x, int, int) { x *= heads.scale; });
    k_row += own_row;
    store_rows(head_rows(d_k, heads, k_row, kv_head), d_k.stride, count - own_row, sums_k);
    store_rows(head_rows(d_v, heads, k_row, kv_head), d_v.stride, count - own_row, sums_v);
}

// d_q from the saved lse and delta. Grid: blocks of 64 queries, query heads. Dynamic shared memory:
// 512 D bytes.
template <int D>
__global__ void __launch_bounds__(THREADS, 2) attention_backward_q_mma(
    Rows<const Element> q, Rows<const Element> k, Rows<const Element> v, Rows<const Element> d_out,
    const float* lse, const float* delta, Heads heads, const Sequence* sequences,
    const Block* blocks, Rows<Element> d_q, uint32 num_tokens) {
    constexpr uint32 BYTES = ROWS * D * 2;
    DYNAMIC_SHARED(shared);
    uint32 base = shared_address(shared);
    Block block = blocks[blockIdx.x];
    Sequence s = sequences[block.sequence];
    uint32 head = blockIdx.y, kv_head = head / heads.group, q_row = s.q_start + block.first;
    int first = block.first, count = min(ROWS, int(s.q_len) - first);
    if (count <= 0) return;
    int own_row = threadIdx.x / WARP * 16, lane = threadIdx.x % WARP;
    Range last = keys_of(s, heads, first + count - 1);
    Range all = all_of(keys_of(s, heads, first), last, s.k_len);
    Reader<D> keys(k, heads, s.k_start + all.begin, kv_head);
    Reader<D> values(v, heads, s.k_start + all.begin, kv_head);
    auto load_next = [&](uint32 to, int count) {
        keys.template load<ROWS>(to, count);
        values.template load<ROWS>(to + BYTES, count);
    };
    // Queries and output gradients move to registers right away, so they may be loaded to where the
    // second tiles will be.
    uint32 at = base, other = base + 2 * BYTES;
    Reader<D>(q, heads, q_row, head).template load<ROWS>(other, count);
    Reader<D>(d_out, heads, q_row, head).template load<ROWS>(other + BYTES, count);
    load_next(at, all.end - all.begin);
    copy_wait();
    __syncthreads();

    Left<D, 1, true> own_q(other, own_row), own_d(other + BYTES, own_row);
    float own_lse[2], own_delta[2];
    for (int i = 0; i < 2; i++) {
        int row = min(own_row + lane / 4 + i * 8, count - 1);
        own_lse[i] = lse[size_t(head) * num_tokens + q_row + row] * LOG2_E;
        own_delta[i] = delta[size_t(head) * num_tokens + q_row + row];
    }
    Range seen = keys_of(s, heads, first + own_row);
    float sums[1][D / 8][4] = {};
    for (int k0 = all.begin; k0 < all.end; k0 += ROWS) {
        copy_wait();
        __syncthreads();
        if (k0 + ROWS < all.end) load_next(other, all.end - k0 - ROWS);
        if (seen.begin < k0 + ROWS && k0 < seen.end + 15) {
            float scores[1][ROWS / 8][4] = {}, d_scores[1][ROWS / 8][4] = {};
            add_dots(scores, own_q, at);
            add_dots(d_scores, own_d, at + BYTES);
            mask_scores(scores, k0, seen);
            float scale = heads.scale * LOG2_E;
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float weight = fast_exp2(scores[0][n][e] * scale - own_lse[e / 2]);
                    d_scores[0][n][e] = weight * (d_scores[0][n][e] - own_delta[e / 2]);
                }
            }
            add_rows<D>(sums, Weights<1, ROWS / 8>(d_scores), at);
        }
        uint32 before = at;
        at = other, other = before;
    }
    each(sums, [&](float& x, int, int) { x *= heads.scale; });
    Element* own_d_q = head_rows(d_q, heads, q_row + own_row, head);
    store_rows(own_d_q, d_q.stride, count - own_row, sums);
}
