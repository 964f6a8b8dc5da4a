// Weights as cuBLASLt wants them for products in eight bits, contractions along neighbours.

// `y [cols, rows] = byte(row, index)` of a matrix `[rows, cols]`, turned; a block of 256 threads
// takes 32 × 32.
template <class Byte> DEVICE void turn(size_t rows, size_t cols, uint8* y, Byte byte) {
    __shared__ uint8 tile[WARP][WARP + 4];
    size_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    size_t top = size_t(blockIdx.y) * WARP, left = size_t(blockIdx.x) * WARP;
    for (size_t i = warp; i < WARP; i += blockDim.x / WARP) {
        size_t row = top + i, col = left + lane;
        if (row < rows && col < cols) tile[i][lane] = byte(row, row * cols + col);
    }
    __syncthreads();
    for (size_t i = warp; i < WARP; i += blockDim.x / WARP) {
        size_t col = left + i, row = top + lane;
        if (row < rows && col < cols) y[col * rows + row] = tile[lane][i];
    }
}

