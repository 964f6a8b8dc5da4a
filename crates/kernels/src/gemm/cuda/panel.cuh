// Weights in the layout that cuBLASLt requires of 8-bit operands: contiguous along the contraction.

// The transpose `y [cols, rows]` of a matrix `[rows, cols]` of `byte(row, index)`; a block of 256
// threads does a tile of 32 × 32.
template <class Byte> DEVICE void transpose(size_t rows, size_t cols, uint8* y, Byte byte) {
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

