// The gradient of a table.

// Columns per thread, and threads per block, of the gradient.
#define COLUMNS 4
#define SCATTER_THREADS 256

// `d_table [v, h] += scale ·` the rows of `d_y [t, h]`, in the order of the tokens: the block of an
// id's first token adds the rows of all tokens with that id. A block handles 1024 columns, so that
// sums stay in registers.
__global__ void __launch_bounds__(SCATTER_THREADS)
    embedding_backward(
        const uint32* ids, size_t t, float scale, const float* d_y, size_t h, float* d_table) {
    __shared__ uint32 found[SCATTER_THREADS], hits[SCATTER_THREADS / WARP];
    size_t token = blockIdx.x, thread = threadIdx.x;
    uint32 id = ids[token], warp = thread / WARP, lane = thread % WARP;
    float seen = 0.0f;
    for (size_t i = thread; i < token; i += SCATTER_THREADS) {
        if (ids[i] == id) seen = 1.0f;
    }
    if (block_max(seen) > 0.0f) return;
    size_t first = blockIdx.y * SCATTER_THREADS * COLUMNS + thread;
    float* row = d_table + id * h;
    float sums[COLUMNS];
    for (int k = 0; k < COLUMNS; k++) {
        size_t column = first + k * SCATTER_THREADS;
        sums[k] = column < h ? row[column] : 0.0f;
    }
    for (size_t start = token; start < t; start += SCATTER_THREADS) {
        bool hit = start + thread < t && ids[start + thread] == id;
        uint32 warp_hits = __ballot_sync(ALL_LANES, hit);
        if (lane == 0) hits[warp] = __popc(warp_hits);
        __syncthreads();
        uint32 before = __popc(warp_hits & ((1u << lane) - 1)), num_found = 0;
        for (uint32 w = 0; w < SCATTER_THREADS / WARP; w++) {
            before += w < warp ? hits[w] : 0;
            num_found += hits[w];
        }
        if (hit) found[before] = thread;
        __syncthreads();
        for (uint32 f = 0; f < num_found; f++) {
            const float* d = d_y + (start + found[f]) * h;
            for (int k = 0; k < COLUMNS; k++) {
                size_t column = first + k * SCATTER_THREADS;
                if (column < h) sums[k] += scale * d[column];
            }
        }
    }
    for (int k = 0; k < COLUMNS; k++) {
        size_t column = first + k * SCATTER_THREADS;
        if (column < h) row[column] = sums[k];
    }
}
