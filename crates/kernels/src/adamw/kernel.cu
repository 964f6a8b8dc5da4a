// One pass over parameters, gradients and moments, with the same factors as `cpu.rs`.
__global__ void adamw_step(
    const uint64* table, uint32 rows, float gradient_scale, float b1, float rest1, float b2,
    float rest2, float keep, float step_size, float root2, float epsilon) {
    Chunk<4> all(table, rows);
    float *p = all.at[0], *g = all.at[1], *m = all.at[2], *v = all.at[3];
    over_block<4>(all.len, aligned<4>(p, g, m, v), [&](size_t i, auto count) {
        auto p_i = read(p + i, count), g_i = read(g + i, count);
        auto m_i = read(m + i, count), v_i = read(v + i, count);
        for (int k = 0; k < count.value; k++) {
            float g_k = g_i.v[k] * gradient_scale;
            m_i.v[k] = fmaf(b1, m_i.v[k], rest1 * g_k);
            v_i.v[k] = fmaf(b2, v_i.v[k], rest2 * g_k * g_k);
            float change = step_size * m_i.v[k] / (sqrtf(v_i.v[k]) / root2 + epsilon);
            p_i.v[k] = p_i.v[k] * keep - change;
        }
        write(p + i, p_i);
        write(m + i, m_i);
        write(v + i, v_i);
    });
}
