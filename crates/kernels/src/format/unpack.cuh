// Rows of a weight format as floats: `y [gridDim.x, cols]` = rows of `x` from `first` on. `Weights`
// is the format's type; `read` and `aligned` are defined for it.
template <class Y>
__global__ void weights_unpack(Weights x, size_t first, size_t cols, Y* y) {
    const int N = RUN<Y>;
    size_t row = first + blockIdx.x;
    y += blockIdx.x * cols;
    over_block<N>(cols, cols % N == 0 && aligned<N>(x, y), [&](size_t c, auto count) {
        write(y + c, read(x, row * cols + c, row, count));
    });
}
