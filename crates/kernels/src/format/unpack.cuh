// Unpacks rows of a weight format: `y [gridDim.x, cols]` = rows of `x` starting at `first`.
// `Weights` is the format's type, for which `read` and `aligned` are defined.
template <class Y>
__global__ void weights_unpack(Weights x, size_t first, size_t cols, Y* y) {
    const int N = VECTOR<Y>;
    size_t row = first + blockIdx.x;
    y += blockIdx.x * cols;
    over_block<N>(cols, cols % N == 0 && aligned<N>(x, y), [&](size_t c, auto count) {
        write(y + c, read(x, row * cols + c, row, count));
    });
}
