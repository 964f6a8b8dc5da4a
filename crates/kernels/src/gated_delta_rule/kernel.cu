// The gated delta rule: `S = e^g S + k u`, `u = β (v - kᵀ e^g S)`, `o = qᵀ S`, with normalised
// queries and keys. No atomics; sums depend on the sequence alone, so decoding gives the bits of a
// pass over the whole.
//
// Kernels that walk along a sequence hold a block of columns of one state in registers: `PARTS`
// neighbouring threads share a column, of which each has `N` elements, every `PARTS`-th. Their
// grid: blocks of columns, value heads, sequences.

#define CHUNK 64
#define PARTS 4
#define N 32
#define THREADS 128
#define COLUMNS (THREADS / PARTS)
// Tokens whose queries and keys are in shared memory at a time.
#define TOKENS 16
#define NONE 0xffffffffu

struct Heads {
    uint32 keys, values, key_dim, value_dim;

    DEVICE uint32 group() const {
        return values / keys;
    }
    DEVICE size_t width() const {
        return 2 * size_t(keys) * key_dim + out_width();
    }
    DEVICE size_t out_width() const {
        return size_t(values) * value_dim;
    }
    DEVICE size_t state_len() const {
        return size_t(key_dim) * value_dim;
    }
};

// Rows of a sequence; rows before them and where their state is, in decoding; in training, the
// number of the first state at a border of its chunks.
struct Sequence {
    uint32 start, len, done, slot;
};

// Where value head `h` of a row begins.
template <class T> DEVICE T* q_of(T* qkv, Heads heads, size_t t, uint32 h) {
    return qkv + t * heads.width() + size_t(h / heads.group()) * heads.key_dim;
}

template <class T> DEVICE T* k_of(T* qkv, Heads heads, size_t t, uint32 h) {
    return q_of(qkv, heads, t, h) + size_t(heads.keys) * heads.key_dim;
}

template <class T> DEVICE T* v_of(T* qkv, Heads heads, size_t t, uint32 h) {
    return qkv + t * heads.width() + 2 * size_t(heads.keys) * heads.key_dim +
           size_t(h) * heads.value_dim;
}

// The reciprocal of a row's norm, by the lanes of a warp.
template <class T> DEVICE float reciprocal_norm(const T* x, uint32 n) {
    float sum = 0.0f;
    for (uint32 c = threadIdx.x % WARP; c < n; c += WARP) sum += to_f32(x[c]) * to_f32(x[c]);
    return 1.0f / sqrtf(warp_sum(sum) + 1e-6f);
}

// Tokens of a sequence as all columns of a head see them.
struct Tokens {
    float q[TOKENS][PARTS * N], k[TOKENS][PARTS * N], beta[TOKENS], decay[TOKENS];

    // Loads `count` tokens from row `t` on.
    template <class T>
    DEVICE void load(
        const T* qkv, const float* gates, Heads heads, size_t t, uint32 count, uint32 h) {
        __syncthreads();  // Threads may still be reading the tokens before.
        float scale = 1.0f / sqrtf(float(heads.key_dim));
        for (uint32 i = threadIdx.x / WARP; i < count; i += THREADS / WARP) {
            const T *q_row = q_of(qkv, heads, t + i, h), *k_row = k_of(qkv, heads, t + i, h);
            float q_factor = scale * reciprocal_norm(q_row, heads.key_dim);
            float k_factor = reciprocal_norm(k_row, heads.key_dim);
            for (uint32 a = threadIdx.x % WARP; a < PARTS * N; a += WARP) {
                q[i][a] = a < heads.key_dim ? to_f32(q_row[a]) * q_factor : 0.0f;
                k[i][a] = a < heads.key_dim ? to_f32(k_row[a]) * k_factor : 0.0f;
            }
        }
        if (threadIdx.x < count) {
            const float* row = gates + (t + threadIdx.x) * 2 * heads.values;
            beta[threadIdx.x] = row[h];
            decay[threadIdx.x] = expf(row[heads.values + h]);
        }
        __syncthreads();
    }
};

DEVICE float sum_of_parts(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// A thread's part of a column.
struct Column {
    float x[N];
    uint32 part, index;

    DEVICE Column()
        : part(threadIdx.x % PARTS), index(blockIdx.x * COLUMNS + threadIdx.x / PARTS) {
        for (int n = 0; n < N; n++) x[n] = 0.0f;
    }

    DEVICE bool exists(Heads heads) const {
        return index < heads.value_dim;
    }

    DEVICE void load(const float* state, Heads heads) {
        for (int n = 0; n < N; n++) {
            uint32 a = n * PARTS + part;
            x[n] = a < heads.key_dim && exists(heads) ? state[a * heads.value_dim + index] : 0.0f;
        }
    }

    DEVICE void store(float* state, Heads heads) const {
        for (int n = 0; n < N; n++) {
            uint32 a = n * PARTS + part;
            if (a < heads.key_dim && exists(heads)) state[a * heads.value_dim + index] = x[n];
        }
    }
};

// `out`, zero where no sequence writes it; `written`, what each token adds, unless null; `states`,
// carried from pass to pass, unless null.
template <class T>
__global__ void __launch_bounds__(THREADS) delta_forward(
    const T* qkv, const float* gates, Heads heads, const Sequence* sequences, float* states,
    T* written, T* out) {
    __shared__ Tokens tokens;
    Sequence s = sequences[blockIdx.z];
    uint32 h = blockIdx.y;
    if (s.len == 0) return;
    Column column;
    float* state = states + (size_t(s.slot) * heads.values + h) * heads.state_len();
    if (states != nullptr && s.done > 0) column.load(state, heads);
    for (uint32 first = 0; first < s.len; first += TOKENS) {
        uint32 count = min(uint32(TOKENS), s.len - first);
        tokens.load(qkv, gates, heads, s.start + first, count, h);
#pragma unroll 1
        for (uint32 i = 0; i < count; i++) {
            size_t t = s.start + first + i;
            float v = 0.0f, had = 0.0f, sum = 0.0f;
            if (column.exists(heads)) v = to_f32(v_of(qkv, heads, t, h)[column.index]);
            for (int n = 0; n < N; n++) {
                column.x[n] *= tokens.decay[i];
                had += column.x[n] * tokens.k[i][n * PARTS + column.part];
            }
            // Rounded as it is kept: later tokens make up for it.
            float u = to_f32(from_f32<T>(tokens.beta[i] * (v - sum_of_parts(had))));
            for (int n = 0; n < N; n++) {
                column.x[n] += u * tokens.k[i][n * PARTS + column.part];
                sum += column.x[n] * tokens.q[i][n * PARTS + column.part];
            }
            sum = sum_of_parts(sum);
            if (column.part > 0 || !column.exists(heads)) continue;
            size_t at = t * heads.out_width() + size_t(h) * heads.value_dim + column.index;
            out[at] = from_f32<T>(sum);
            if (written != nullptr) written[at] = from_f32<T>(u);
        }
    }
    if (states != nullptr) column.store(state, heads);
}

// States at the borders of chunks: the last field of a sequence is the number of its first one.
template <class T>
__global__ void __launch_bounds__(THREADS) delta_states(
    const T* qkv, const float* gates, Heads heads, const Sequence* sequences, const T* written,
    float* borders) {
    __shared__ Tokens tokens;
    Sequence s = sequences[blockIdx.z];
    uint32 h = blockIdx.y;
    Column column;
    for (uint32 first = 0; first < s.len; first += TOKENS) {
        if (first % CHUNK == 0 && first > 0) {
            size_t border = s.slot + first / CHUNK - 1;
            column.store(borders + (border * heads.values + h) * heads.state_len(), heads);
        }
        uint32 count = min(uint32(TOKENS), s.len - first);
        tokens.load(qkv, gates, heads, s.start + first, count, h);
#pragma unroll 1
        for (uint32 i = 0; i < count; i++) {
            size_t t = s.start + first + i;
            size_t at = t * heads.out_width() + size_t(h) * heads.value_dim + column.index;
            float u = column.exists(heads) ? to_f32(written[at]) : 0.0f;
            for (int n = 0; n < N; n++) {
                column.x[n] = column.x[n] * tokens.decay[i];
                column.x[n] += u * tokens.k[i][n * PARTS + column.part];
            }
        }
    }
}

// Gradients of states at the borders of chunks, `d_r`, those of what tokens add before `β`, and of
// values.
template <class T>
__global__ void __launch_bounds__(THREADS) delta_backward_states(
    const T* qkv, const float* gates, Heads heads, const Sequence* sequences, const T* d_out,
    float* d_borders, float* d_r, T* d_qkv) {
    __shared__ Tokens tokens;
    Sequence s = sequences[blockIdx.z];
    uint32 h = blockIdx.y;
    Column d;
    for (uint32 end = s.len; end > 0;) {
        if (end % CHUNK == 0 && end < s.len) {
            size_t border = s.slot + end / CHUNK - 1;
            d.store(d_borders + (border * heads.values + h) * heads.state_len(), heads);
        }
        uint32 first = (end - 1) / TOKENS * TOKENS;
        tokens.load(qkv, gates, heads, s.start + first, end - first, h);
#pragma unroll 1
        for (uint32 i = end - first; i-- > 0;) {
            size_t t = s.start + first + i;
            size_t at = t * heads.out_width() + size_t(h) * heads.value_dim + d.index;
            float d_o = d.exists(heads) ? to_f32(d_out[at]) : 0.0f, d_u = 0.0f;
            for (int n = 0; n < N; n++) {
                d.x[n] += d_o * tokens.q[i][n * PARTS + d.part];
                d_u += d.x[n] * tokens.k[i][n * PARTS + d.part];
            }
            d_u = sum_of_parts(d_u);
            float d_v = tokens.beta[i] * d_u;
            for (int n = 0; n < N; n++) {
                d.x[n] = tokens.decay[i] * (d.x[n] - d_v * tokens.k[i][n * PARTS + d.part]);
            }
            if (d.part > 0 || !d.exists(heads)) continue;
            d_r[at] = d_u;
            v_of(d_qkv, heads, t, h)[d.index] = from_f32<T>(d_v);
        }
        end = first;
    }
}

// Rows of a chunk, and numbers of the states at its borders, or `NONE`.
struct DeltaChunk {
    uint32 start, len, before, after;
};

#define SIDE 16
#define PER_THREAD (CHUNK / SIDE)
#define DEPTH 16
#define STRIDE (CHUNK + 1)

// A thread's elements of a square of `CHUNK`: every `SIDE`-th row and column.
typedef float Square[PER_THREAD][PER_THREAD];

DEVICE uint32 row_of(int r) {
    return threadIdx.x / SIDE + SIDE * r;
}

DEVICE uint32 col_of(int c) {
    return threadIdx.x % SIDE + SIDE * c;
}

// `sums += Σ_k a(row, k) b(k, col)`, by `SIDE²` threads; `stage` has `2 DEPTH STRIDE` floats.
template <class A, class B>
DEVICE void add_product(Square& sums, float* stage, uint32 depth, A a, B b) {
    float *as = stage, *bs = stage + DEPTH * STRIDE;
    for (uint32 k0 = 0; k0 < depth; k0 += DEPTH) {
        __syncthreads();  // Threads may still be reading the previous part.
        for (uint32 i = threadIdx.x; i < DEPTH * CHUNK; i += SIDE * SIDE) {
            uint32 k = i % DEPTH, line = i / DEPTH;
            as[k * STRIDE + line] = k0 + k < depth ? a(line, k0 + k) : 0.0f;
            bs[k * STRIDE + line] = k0 + k < depth ? b(k0 + k, line) : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            float a_r[PER_THREAD], b_c[PER_THREAD];
            for (int i = 0; i < PER_THREAD; i++) {
                a_r[i] = as[k * STRIDE + row_of(i)];
                b_c[i] = bs[k * STRIDE + col_of(i)];
            }
            for (int r = 0; r < PER_THREAD; r++) {
                for (int c = 0; c < PER_THREAD; c++) sums[r][c] += a_r[r] * b_c[c];
            }
        }
    }
}

// Calls `body(row, column, r, c)` for the elements of this thread.
template <class Body> DEVICE void over_square(Body body) {
    for (int r = 0; r < PER_THREAD; r++) {
        for (int c = 0; c < PER_THREAD; c++) body(row_of(r), col_of(c), r, c);
    }
}

// What a chunk's threads share.
struct Shared {
    double sums[CHUNK];
    float since_start[CHUNK], until_end[CHUNK], beta[CHUNK], q_norms[CHUNK], k_norms[CHUNK];
    // Gradients of sums of decays, and of `β`; rows of queries and keys times what they have read.
    float d_sums[CHUNK], d_beta[CHUNK], q_reads[CHUNK], k_reads[CHUNK], k_until[CHUNK];
    float stage[2 * DEPTH * STRIDE];
    // `D ∘ dO Uᵀ`, the gradient of `K Kᵀ`, and what is to be summed.
    float p[CHUNK * STRIDE], kk[CHUNK * STRIDE], moved[CHUNK * STRIDE];
};

// Gradients of gates, and of normalised queries and keys, of one value head of a chunk: `d_q` and
// `d_k [t, values, key_dim]`. Grid: chunks, value heads. Threads: `SIDE²`.
template <class T>
__global__ void __launch_bounds__(SIDE * SIDE) delta_backward_chunk(
    const T* qkv, const float* gates, Heads heads, const DeltaChunk* chunks, const T* written,
    const T* d_out, const float* d_r, const float* borders, const float* d_borders,
    float* d_gates, float* d_q, float* d_k) {
    DYNAMIC_SHARED(shared);
    Shared& s = *reinterpret_cast<Shared*>(shared);
    DeltaChunk chunk = chunks[blockIdx.x];
    uint32 h = blockIdx.y, n = chunk.len, dk = heads.key_dim, dv = heads.value_dim;
    if (n == 0) return;
    size_t out_width = heads.out_width(), first = chunk.start * out_width + size_t(h) * dv;
    const T *u = written + first, *d_o = d_out + first;
    const float* r = d_r + first;
    const float *state = nullptr, *d_state = nullptr;
    if (chunk.before != NONE) {
        state = borders + (size_t(chunk.before) * heads.values + h) * heads.state_len();
    }
    if (chunk.after != NONE) {
        d_state = d_borders + (size_t(chunk.after) * heads.values + h) * heads.state_len();
    }
    float scale = 1.0f / sqrtf(float(dk));
    for (uint32 i = threadIdx.x / WARP; i < CHUNK; i += SIDE * SIDE / WARP) {
        bool exists = i < n;
        size_t t = chunk.start + (exists ? i : 0);
        float q_norm = reciprocal_norm(q_of(qkv, heads, t, h), dk);
        float k_norm = reciprocal_norm(k_of(qkv, heads, t, h), dk), sum = 0.0f;
        const T* v = v_of(qkv, heads, t, h);
        for (uint32 c = threadIdx.x % WARP; exists && c < dv; c += WARP) {
            sum += to_f32(v[c]) * r[i * out_width + c];
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP > 0) continue;
        s.q_norms[i] = exists ? scale * q_norm : 0.0f;
        s.k_norms[i] = exists ? k_norm : 0.0f;
        s.beta[i] = exists ? gates[2 * t * heads.values + h] : 0.0f;
        s.d_beta[i] = sum;
        s.d_sums[i] = s.q_reads[i] = s.k_reads[i] = s.k_until[i] = 0.0f;
    }
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (uint32 i = 0; i < CHUNK; i++) {
            if (i < n) sum += gates[(2 * size_t(chunk.start + i) + 1) * heads.values + h];
            s.sums[i] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x < CHUNK) {
        s.since_start[threadIdx.x] = expf(float(s.sums[threadIdx.x]));
        s.until_end[threadIdx.x] = expf(float(s.sums[n - 1] - s.sums[threadIdx.x]));
    }
    __syncthreads();

    auto q = [&](uint32 i, uint32 a) {
        const T* row = q_of(qkv, heads, chunk.start + i, h);
        return i < n && a < dk ? to_f32(row[a]) * s.q_norms[i] : 0.0f;
    };
    auto k = [&](uint32 i, uint32 a) {
        const T* row = k_of(qkv, heads, chunk.start + i, h);
        return i < n && a < dk ? to_f32(row[a]) * s.k_norms[i] : 0.0f;
    };
    auto u_at = [&](uint32 i, uint32 c) { return i < n ? to_f32(u[i * out_width + c]) : 0.0f; };
    auto o_at = [&](uint32 i, uint32 c) { return i < n ? to_f32(d_o[i * out_width + c]) : 0.0f; };
    auto r_at = [&](uint32 i, uint32 c) { return i < n ? r[i * out_width + c] : 0.0f; };
    auto decay = [&](uint32 i, uint32 j) { return expf(float(s.sums[i] - s.sums[j])); };

    // The triangular system: the gradient of `L` is `-dR Uᵀ`.
    {
        Square kk = {}, d_l = {};
        add_product(kk, s.stage, dk, k, [&](uint32 a, uint32 j) { return k(j, a); });
        add_product(d_l, s.stage, dv, r_at, [&](uint32 c, uint32 j) { return u_at(j, c); });
        __syncthreads();
        over_square([&](uint32 i, uint32 j, int r, int c) {
            float d = j < i && i < n ? -decay(i, j) * d_l[r][c] : 0.0f;
            s.moved[i * STRIDE + j] = d * kk[r][c];
            s.p[i * STRIDE + j] = s.beta[i] * d;
        });
        __syncthreads();
        over_square([&](uint32 i, uint32 j, int, int) {
            s.kk[i * STRIDE + j] = s.p[i * STRIDE + j] + s.p[j * STRIDE + i];
        });
        if (threadIdx.x < CHUNK) {
            uint32 i = threadIdx.x;
            float row = 0.0f, column = 0.0f;
            for (uint32 j = 0; j < i; j++) row += s.moved[i * STRIDE + j];
            for (uint32 j = i + 1; j < CHUNK; j++) column += s.beta[j] * s.moved[j * STRIDE + i];
            s.d_beta[i] += row;
            s.d_sums[i] += s.beta[i] * row - column;
        }
        __syncthreads();
    }
    // The outputs' part within the chunk.
    {
        Square qk = {}, d_a = {};
        add_product(qk, s.stage, dk, q, [&](uint32 a, uint32 j) { return k(j, a); });
        add_product(d_a, s.stage, dv, o_at, [&](uint32 c, uint32 j) { return u_at(j, c); });
        __syncthreads();
        over_square([&](uint32 i, uint32 j, int r, int c) {
            float d = j <= i && i < n ? decay(i, j) * d_a[r][c] : 0.0f;
            s.p[i * STRIDE + j] = d;
            s.moved[i * STRIDE + j] = d * qk[r][c];
        });
        __syncthreads();
        if (threadIdx.x < CHUNK) {
            uint32 i = threadIdx.x;
            float row = 0.0f, column = 0.0f;
            for (uint32 j = 0; j < i; j++) row += s.moved[i * STRIDE + j];
            for (uint32 j = i + 1; j < CHUNK; j++) column += s.moved[j * STRIDE + i];
            s.d_sums[i] += row - column;
        }
        __syncthreads();
    }
    // Queries and keys, a square of dimensions at a time.
    for (uint32 a0 = 0; a0 < dk; a0 += CHUNK) {
        Square from_o = {}, from_r = {}, from_u = {};
        auto transposed = [&](const float* x) {
            return [=](uint32 c, uint32 a) { return a0 + a < dk ? x[(a0 + a) * dv + c] : 0.0f; };
        };
        if (state != nullptr) {
            add_product(from_o, s.stage, dv, o_at, transposed(state));
            add_product(from_r, s.stage, dv, r_at, transposed(state));
        }
        if (d_state != nullptr) add_product(from_u, s.stage, dv, u_at, transposed(d_state));
        for (int r = 0; r < PER_THREAD; r++) {
            uint32 i = row_of(r);
            float q_read = 0.0f, k_read = 0.0f, k_until = 0.0f;
            for (int c = 0; c < PER_THREAD; c++) {
                float q_c = q(i, a0 + col_of(c)), k_c = k(i, a0 + col_of(c));
                q_read += q_c * from_o[r][c];
                k_read += k_c * from_r[r][c];
                k_until += k_c * from_u[r][c];
            }
            // Rows belong to half a warp.
            for (int offset = SIDE / 2; offset > 0; offset /= 2) {
                q_read += __shfl_xor_sync(ALL_LANES, q_read, offset);
                k_read += __shfl_xor_sync(ALL_LANES, k_read, offset);
                k_until += __shfl_xor_sync(ALL_LANES, k_until, offset);
            }
            if (threadIdx.x % SIDE > 0) continue;
            s.q_reads[i] += q_read;
            s.k_reads[i] += k_read;
            s.k_until[i] += k_until;
        }
        Square d_queries = {}, d_keys = {};
        over_square([&](uint32 i, uint32, int r, int c) {
            d_queries[r][c] = s.since_start[i] * from_o[r][c];
            d_keys[r][c] = s.until_end[i] * from_u[r][c];
            d_keys[r][c] -= s.beta[i] * s.since_start[i] * from_r[r][c];
        });
        auto k_cols = [&](uint32 j, uint32 a) { return k(j, a0 + a); };
        auto q_cols = [&](uint32 j, uint32 a) { return q(j, a0 + a); };
        auto p = [&](uint32 i, uint32 j) { return s.p[i * STRIDE + j]; };
        auto p_t = [&](uint32 i, uint32 j) { return s.p[j * STRIDE + i]; };
        add_product(d_queries, s.stage, n, p, k_cols);
        auto kk = [&](uint32 i, uint32 j) { return s.kk[i * STRIDE + j]; };
        add_product(d_keys, s.stage, n, kk, k_cols);
        add_product(d_keys, s.stage, n, p_t, q_cols);
        over_square([&](uint32 i, uint32 a, int r, int c) {
            if (i >= n || a0 + a >= dk) return;
            size_t at = (size_t(chunk.start + i) * heads.values + h) * dk + a0 + a;
            d_q[at] = d_queries[r][c];
            d_k[at] = d_keys[r][c];
        });
    }
    float d_whole = 0.0f;
    if (state != nullptr && d_state != nullptr) {
        for (size_t i = threadIdx.x; i < heads.state_len(); i += SIDE * SIDE) {
            d_whole += state[i] * d_state[i];
        }
    }
    d_whole = block_sum(d_whole) * s.since_start[n - 1];
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (uint32 i = 0; i < n; i++) {
        float until = s.until_end[i] * s.k_until[i];
        s.d_beta[i] -= s.since_start[i] * s.k_reads[i];
        s.d_sums[i] += s.since_start[i] * (s.q_reads[i] - s.beta[i] * s.k_reads[i]) - until;
        d_whole += until;
    }
    double sum = d_whole;
    for (uint32 i = n; i-- > 0;) {
        sum += s.d_sums[i];
        float* row = d_gates + 2 * size_t(chunk.start + i) * heads.values;
        row[h] = s.d_beta[i];
        row[heads.values + h] = float(sum);
    }
}

// Gradients of queries and keys through their normalisation, of the first `*used` rows: those of a
// key head's value heads, summed in order. A warp per head of queries or keys. Grid: rows, blocks
// of heads.
template <class T>
__global__ void __launch_bounds__(THREADS) delta_backward_keys(
    const T* qkv, Heads heads, const uint32* used, const float* d_q, const float* d_k, T* d_qkv) {
    uint32 head = blockIdx.y * (THREADS / WARP) + threadIdx.x / WARP, dk = heads.key_dim;
    if (head >= 2 * heads.keys || blockIdx.x >= *used) return;
    bool is_key = head >= heads.keys;
    uint32 h = (head - (is_key ? heads.keys : 0)) * heads.group();
    size_t t = blockIdx.x, at = t * heads.width() + size_t(head) * dk;
    const float* d = (is_key ? d_k : d_q) + (t * heads.values + h) * dk;
    float norm = reciprocal_norm(qkv + at, dk), along = 0.0f;
    float scale = is_key ? 1.0f : 1.0f / sqrtf(float(dk));
    auto d_at = [&](uint32 a) {
        float sum = 0.0f;
        for (uint32 g = 0; g < heads.group(); g++) sum += d[g * dk + a];
        return sum;
    };
    for (uint32 a = threadIdx.x % WARP; a < dk; a += WARP) along += to_f32(qkv[at + a]) * d_at(a);
    along = warp_sum(along) * norm * norm;
    for (uint32 a = threadIdx.x % WARP; a < dk; a += WARP) {
        d_qkv[at + a] = from_f32<T>(scale * norm * (d_at(a) - along * to_f32(qkv[at + a])));
    }
}
