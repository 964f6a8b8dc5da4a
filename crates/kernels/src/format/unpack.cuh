// Kernels of one weight format, with those of embedding and head that read single rows.
// `Weights` is the format's type, for which `read` and `aligned` are defined.
template <> struct WeightOf<Weights> {
    typedef Weights type;
};

// `y [gridDim.x, cols]` = rows of `x` starting at `first`.
template <class Y>
__global__ void weights_unpack(Weights x, size_t first, size_t cols, Y* y) {
    const int N = VECTOR<Y>;
    size_t row = first + blockIdx.x;
    y += blockIdx.x * cols;
    over_block<N>(cols, cols % N == 0 && aligned<N>(x, y), [&](size_t c, auto count) {
        write(y + c, read(x, row * cols + c, row, count));
    });
}
