// `scale` times rows of `table [v, h]`, `ids [t]` → `y [t, h]`. One block per token.
template <class W>
__global__ void embedding_forward(
    Weight<W> table, size_t h, const uint32* ids, float scale, float* y) {
    size_t id = ids[blockIdx.x];
    y += blockIdx.x * h;
    over_block<4>(h, h % 4 == 0 && aligned<4>(table, y), [&](size_t c, auto count) {
        auto y_c = read(table, id * h + c, id, count);
        for (int k = 0; k < count.value; k++) y_c.v[k] *= scale;
        write(y + c, y_c);
    });
}
