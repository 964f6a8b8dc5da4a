// One block per row.

struct DeltaColumns {
    // Key heads, value heads of each, and their dimensions.
    uint32 heads, group, key_dim, value_dim;

    DEVICE uint32 width() const {
        return heads * (2 * key_dim + 2 * group * value_dim + 2 * group);
    }
    // Where column `c` of the order by kind is in that by key head.
    DEVICE uint32 at(uint32 c) const {
        uint32 values = group * value_dim, of_head = 2 * (key_dim + values);
        uint32 sizes[6] = {key_dim, key_dim, values, values, group, group};
        uint32 before = 0, within = 0;
        for (uint32 part = 0; part < 6; part++) {
            uint32 size = sizes[part];
            if (part == 4) {
                before = heads * of_head, within = 0, of_head = 2 * group;
            }
            if (c < heads * size) {
                return before + c / size * of_head + within + c % size;
            }
            c -= heads * size, within += size;
        }
        return 0;
    }
};

// `x [t, width]`, by key head → `y`, by kind.
template <class T> __global__ void delta_columns(DeltaColumns columns, const T* x, T* y) {
    uint32 width = columns.width();
    x += blockIdx.x * size_t(width), y += blockIdx.x * size_t(width);
    over_block<1>(width, true, [&](size_t c, auto) { y[c] = x[columns.at(uint32(c))]; });
}

// `d_y [t, width]`, by kind → `d_x`, by key head.
template <class T>
__global__ void delta_columns_backward(DeltaColumns columns, const T* d_y, T* d_x) {
    uint32 width = columns.width();
    d_x += blockIdx.x * size_t(width), d_y += blockIdx.x * size_t(width);
    over_block<1>(width, true, [&](size_t c, auto) { d_x[columns.at(uint32(c))] = d_y[c]; });
}
