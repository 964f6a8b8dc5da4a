// Attention for heads up to `MAX_HEAD_DIM` wide on any GPU: no tensor cores, accumulation in f32.
//
// A block of threads owns rows of one side (queries, or keys in `attention_backward_kv_general`)
// and loops over tiles of the rows on the other side that they attend to. A warp owns `PER_WARP`
// rows; its lane l computes their scores with row l of the tile, and accumulates dimensions l,
// l + 32, … of their outputs. No atomics; the order of sums depends on the sequence alone.
//
// Threads: `WARPS * 32`. Dynamic shared memory, in floats: 16 d + 32 (d | 1) for the forward pass,
// 32 d + 32 (d | 1) for the backward passes.

#define WARPS 4
#define PER_WARP 4
// Rows of a block of threads, and of a tile.
#define OWN (WARPS * PER_WARP)
#define TILE WARP
#define DIMS_PER_LANE (MAX_HEAD_DIM / WARP)

// A lane's dimensions of the rows of its warp.
typedef float Sums[PER_WARP][DIMS_PER_LANE];

// Loads `count` rows of `d`, zero-padded to `OWN` rows. A dimension's values for the rows of a warp
// are contiguous, since all its lanes read them at the same time.
template <class T> DEVICE void load_own(float* own, const T* x, size_t stride, int count, int d) {
    for (int i = threadIdx.x; i < OWN * d; i += blockDim.x) {
        int row = i / d, c = i % d;
        own[c * OWN + row] = row < count ? to_f32(x[row * stride + c]) : 0.0f;
    }
}

// Elements between rows of a tile: odd, so that lanes read rows from different banks.
DEVICE int tile_stride(int d) {
    return d | 1;
}

// Loads `count` rows of `d`, zero-padded to `TILE` rows.
template <class T> DEVICE void load_tile(float* tile, const T* x, size_t stride, int count, int d) {
    __syncthreads();  // Threads may still be reading the previous tile.
    for (int i = threadIdx.x; i < TILE * d; i += blockDim.x) {
        int row = i / d, c = i % d;
        tile[row * tile_stride(d) + c] = row < count ? to_f32(x[row * stride + c]) : 0.0f;
    }
    __syncthreads();
}

// dots[r] = row r of this warp · row of the tile of this lane.
DEVICE void multiply(float (&dots)[PER_WARP], const float* own, const float* tile, int d) {
    own += threadIdx.x / WARP * PER_WARP;
    tile += threadIdx.x % WARP * tile_stride(d);
    for (int r = 0; r < PER_WARP; r++) dots[r] = 0.0f;
    for (int c = 0; c < d; c++) {
        for (int r = 0; r < PER_WARP; r++) dots[r] += own[c * OWN + r] * tile[c];
    }
}

// sums[r] += Σ weights[r] of lane l · row l of the tile.
DEVICE void add_weighted(Sums& sums, const float (&weights)[PER_WARP], const float* tile, int d) {
    for (int row = 0; row < TILE; row++) {
        float weight[PER_WARP];
        for (int r = 0; r < PER_WARP; r++) weight[r] = __shfl_sync(ALL_LANES, weights[r], row);
        for (int i = 0; i < DIMS_PER_LANE; i++) {
            int c = threadIdx.x % WARP + i * WARP;
            float x = c < d ? tile[row * tile_stride(d) + c] : 0.0f;
            for (int r = 0; r < PER_WARP; r++) sums[r][i] += weight[r] * x;
        }
    }
}

// Stores the first `count` of the block's rows.
template <class T> DEVICE void store_own(T* x, size_t stride, int count, int d, const Sums& sums) {
    for (int r = 0; r < PER_WARP; r++) {
        int row = threadIdx.x / WARP * PER_WARP + r;
        for (int i = 0; i < DIMS_PER_LANE; i++) {
            int c = threadIdx.x % WARP + i * WARP;
            if (row < count && c < d) x[row * stride + c] = from_f32<T>(sums[r][i]);
        }
    }
}

// Online softmax of one query (Milakov & Gimelshein, 2018), the same in all lanes.
struct Softmax {
    float max, sum;

    // Returns the weight of this lane's key, given its score (-∞ if masked); earlier sums must be
    // multiplied by `rescale`.
    DEVICE float update(float score, float& rescale) {
        float old_max = max;
        max = fmaxf(max, warp_max(score));
        // While all keys are masked, -∞ - (-∞) would be NaN.
        float base = max == -INFINITY ? 0.0f : max;
        rescale = expf(old_max - base);
        float weight = expf(score - base);
        sum = sum * rescale + warp_sum(weight);
        return weight;
    }
};

// out = softmax(q kᵀ scale) v and lse [num_heads, num_tokens], the logarithm of the softmax's
// denominator; with `sinks` [num_heads], each in the denominator of its head. With `pages`, row r
// of keys and values is row r % page_rows of page pages[r / page_rows]; a page holds whole tiles.
// Grid: blocks of `OWN` queries, query heads.
template <class T>
__global__ void attention_forward_general(
    Rows<const T> q, Rows<const T> k, Rows<const T> v, Heads heads, const Sequence* sequences,
    const Block* blocks, Rows<T> out, float* lse, uint32 num_tokens, const float* sinks,
    const uint32* pages, uint32 page_rows) {
    DYNAMIC_SHARED(shared);
    Block block = blocks[blockIdx.x];
    Sequence s = sequences[block.sequence];
    uint32 head = blockIdx.y, kv_head = head / heads.group, q_row = s.q_start + block.first;
    int d = heads.head_dim, first = block.first, count = min(OWN, int(s.q_len) - first);
    if (count <= 0) return;
    int own_row = threadIdx.x / WARP * PER_WARP, lane = threadIdx.x % WARP;
    float *own = reinterpret_cast<float*>(shared), *tile = own + OWN * d;
    load_own(own, head_rows(q, heads, q_row, head), q.stride, count, d);

    Sums sums = {};
    Softmax softmax[PER_WARP];
    for (int r = 0; r < PER_WARP; r++) {
        softmax[r] = sinks ? Softmax{sinks[head], 1.0f} : Softmax{-INFINITY, 0.0f};
    }
    // The keys visible to row 0; those of row i are shifted by i.
    Range seen = keys_of(s, heads, first), last = keys_of(s, heads, first + count - 1);
    auto [begin, end] = all_of(seen, last, s.k_len);
    // Tiles start at multiples of `TILE`, whichever queries share the block, so that a query's sums
    // do not depend on the others, and no tile straddles pages.
    for (int k0 = begin / TILE * TILE; k0 < end; k0 += TILE) {
        uint32 k_row = s.k_start + k0;
        if (pages != nullptr) k_row = pages[k_row / page_rows] * page_rows + k_row % page_rows;
        load_tile(tile, head_rows(k, heads, k_row, kv_head), k.stride, end - k0, d);
        float weights[PER_WARP];
        multiply(weights, own, tile, d);
        for (int r = 0; r < PER_WARP; r++) {
            int key = k0 + lane - own_row - r;
            bool sees = seen.begin <= key && key < seen.end && k0 + lane < end;
            float rescale;
            weights[r] = softmax[r].update(sees ? score_of(heads, weights[r]) : -INFINITY, rescale);
            for (int i = 0; i < DIMS_PER_LANE; i++) sums[r][i] *= rescale;
        }
        load_tile(tile, head_rows(v, heads, k_row, kv_head), v.stride, end - k0, d);
        add_weighted(sums, weights, tile, d);
    }
    for (int r = 0; r < PER_WARP; r++) {
        for (int i = 0; i < DIMS_PER_LANE; i++) sums[r][i] /= softmax[r].sum;
        float value = softmax[r].max + logf(softmax[r].sum);
        if (lane == 0 && own_row + r < count) {
            lse[size_t(head) * num_tokens + q_row + own_row + r] = value;
        }
    }
    store_own(head_rows(out, heads, q_row, head), out.stride, count, d, sums);
}

// delta [num_heads, num_tokens] = Σ_c d_out · out, which the softmax's backward pass subtracts from
// the gradients of a row's weights. One warp per row. Grid: rows over warps of a block, query
// heads.
template <class T>
__global__ void attention_delta(
    Rows<const T> out, Rows<const T> d_out, Heads heads, float* delta, uint32 num_tokens) {
    uint32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, head = blockIdx.y;
    if (row >= num_tokens) return;
    const T* x = head_rows(out, heads, row, head);
    const T* y = head_rows(d_out, heads, row, head);
    float sum = 0.0f;
    for (uint32 c = threadIdx.x % WARP; c < heads.head_dim; c += WARP) {
        sum += to_f32(x[c]) * to_f32(y[c]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[size_t(head) * num_tokens + row] = sum;
}

// Adds -Σ share · delta over rows to the gradient of each sink. Rows of no sequence have a delta
// of zero and any lse. One block per query head.
__global__ void attention_backward_sinks(
    const float* sinks, const float* lse, const float* delta, uint32 num_tokens, float* d_sinks) {
    size_t head = blockIdx.x;
    lse += head * num_tokens, delta += head * num_tokens;
    float sum = 0.0f;
    for (uint32 row = threadIdx.x; row < num_tokens; row += blockDim.x) {
        if (delta[row] != 0.0f) sum += expf(sinks[head] - lse[row]) * delta[row];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) d_sinks[head] -= sum;
}

// d_k and d_v from the saved lse and delta. Grid: blocks of `OWN` keys, key-value heads.
template <class T>
__global__ void attention_backward_kv_general(
    Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> d_out, const float* lse,
    const float* delta, Heads heads, const Sequence* sequences, const Block* blocks, Rows<T> d_k,
    Rows<T> d_v, uint32 num_tokens) {
    DYNAMIC_SHARED(shared);
    Block block = blocks[blockIdx.x];
    Sequence s = sequences[block.sequence];
    uint32 kv_head = blockIdx.y, k_row = s.k_start + block.first;
    int d = heads.head_dim, first = block.first, count = min(OWN, int(s.k_len) - first);
    if (count <= 0) return;
    int own_row = threadIdx.x / WARP * PER_WARP, lane = threadIdx.x % WARP;
    float *own_k = reinterpret_cast<float*>(shared), *own_v = own_k + OWN * d;
    float* tile = own_v + OWN * d;
    load_own(own_k, head_rows(k, heads, k_row, kv_head), k.stride, count, d);
    load_own(own_v, head_rows(v, heads, k_row, kv_head), v.stride, count, d);

    Sums sums_k = {}, sums_v = {};
    // The queries that see row 0; those of row i are shifted by i.
    Range seeing = queries_of(s, heads, first), last = queries_of(s, heads, first + count - 1);
    auto [begin, end] = all_of(seeing, last, s.q_len);
    for (uint32 head = kv_head * heads.group; head < (kv_head + 1) * heads.group; head++) {
        for (int q0 = begin; q0 < end; q0 += TILE) {
            uint32 q_row = s.q_start + q0;
            const T* queries = head_rows(q, heads, q_row, head);
            float weights[PER_WARP], d_scores[PER_WARP];
            load_tile(tile, queries, q.stride, end - q0, d);
            multiply(weights, own_k, tile, d);
            load_tile(tile, head_rows(d_out, heads, q_row, head), d_out.stride, end - q0, d);
            multiply(d_scores, own_v, tile, d);
            size_t at = size_t(head) * num_tokens + q_row + lane;
            float own_lse = q0 + lane < end ? lse[at] : 0.0f;
            float own_delta = q0 + lane < end ? delta[at] : 0.0f;
            for (int r = 0; r < PER_WARP; r++) {
                int query = q0 + lane - own_row - r;
                bool sees = seeing.begin <= query && query < seeing.end;
                float score = score_of(heads, weights[r]);
                weights[r] = sees ? expf(score - own_lse) : 0.0f;
                d_scores[r] = weights[r] * (d_scores[r] - own_delta) * score_slope(heads, score);
            }
            add_weighted(sums_v, weights, tile, d);
            load_tile(tile, queries, q.stride, end - q0, d);
            add_weighted(sums_k, d_scores, tile, d);
        }
    }
    store_own(head_rows(d_k, heads, k_row, kv_head), d_k.stride, count, d, sums_k);
    store_own(head_rows(d_v, heads, k_row, kv_head), d_v.stride, count, d, sums_v);
}

// d_q from the saved lse and delta. Grid: blocks of `OWN` queries, query heads.
template <class T>
__global__ void attention_backward_q_general(
    Rows<const T> q, Rows<const T> k, Rows<const T> v, Rows<const T> d_out, const float* lse,
    const float* delta, Heads heads, const Sequence* sequences, const Block* blocks, Rows<T> d_q,
    uint32 num_tokens) {
    DYNAMIC_SHARED(shared);
    Block block = blocks[blockIdx.x];
    Sequence s = sequences[block.sequence];
    uint32 head = blockIdx.y, kv_head = head / heads.group, q_row = s.q_start + block.first;
    int d = heads.head_dim, first = block.first, count = min(OWN, int(s.q_len) - first);
    if (count <= 0) return;
    int own_row = threadIdx.x / WARP * PER_WARP, lane = threadIdx.x % WARP;
    float *own_q = reinterpret_cast<float*>(shared), *own_d = own_q + OWN * d;
    float* tile = own_d + OWN * d;
    load_own(own_q, head_rows(q, heads, q_row, head), q.stride, count, d);
    load_own(own_d, head_rows(d_out, heads, q_row, head), d_out.stride, count, d);

    Sums sums = {};
    const float* own_lse = lse + size_t(head) * num_tokens + q_row;
    const float* own_delta = delta + size_t(head) * num_tokens + q_row;
    // The keys visible to row 0; those of row i are shifted by i.
    Range seen = keys_of(s, heads, first), last = keys_of(s, heads, first + count - 1);
    auto [begin, end] = all_of(seen, last, s.k_len);
    for (int k0 = begin; k0 < end; k0 += TILE) {
        uint32 k_row = s.k_start + k0;
        float scores[PER_WARP], d_scores[PER_WARP];
        load_tile(tile, head_rows(v, heads, k_row, kv_head), v.stride, end - k0, d);
        multiply(d_scores, own_d, tile, d);
        load_tile(tile, head_rows(k, heads, k_row, kv_head), k.stride, end - k0, d);
        multiply(scores, own_q, tile, d);
        for (int r = 0; r < PER_WARP; r++) {
            int row = min(own_row + r, count - 1), key = k0 + lane - row;
            bool sees = seen.begin <= key && key < seen.end && k0 + lane < end;
            float score = score_of(heads, scores[r]);
            float weight = sees ? expf(score - own_lse[row]) : 0.0f;
            d_scores[r] = weight * (d_scores[r] - own_delta[row]) * score_slope(heads, score);
        }
        add_weighted(sums, d_scores, tile, d);
    }
    store_own(head_rows(d_q, heads, q_row, head), d_q.stride, count, d, sums);
}
