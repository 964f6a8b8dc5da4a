// Kernels of one weight format, with those of embedding and head that read single rows.
// `Weights` is the format's type, for which `read` and `aligned` are defined.
template <> struct WeightOf<Weights> {
    typedef Weights type;
};

// Columns in tiles: the first head of each group, then their second ones.
struct Tiles {
    uint32 groups, per_group, len;

    // Where column `c` of the matrix is.
    DEVICE uint32 at(uint32 c) const {
        if (per_group == 1) return c;
        uint32 head = c / len;
        return (head % per_group * groups + head / per_group) * len + c % len;
    }
};

// `y [gridDim.x, cols]` = rows of `x` starting at `first`.
template <class Y>
__global__ void weights_unpack(Weights x, size_t first, size_t cols, Tiles tiles, Y* y) {
    const int N = VECTOR<Y>;
    size_t row = first + blockIdx.x;
    y += blockIdx.x * cols;
    bool whole = cols % N == 0 && tiles.len % N == 0;
    over_block<N>(cols, whole && aligned<N>(x, y), [&](size_t c, auto count) {
        write(y + c, read(x, row * cols + tiles.at(uint32(c)), row, count));
    });
}
