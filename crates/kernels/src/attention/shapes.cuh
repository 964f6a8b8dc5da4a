// Parameters of every attention kernel: where rows are, the mask, and the work of each block.

// Rows of heads: dimension c of head h in row i is data[i * stride + h * head_dim + c].
template <class T> struct Rows {
    T* data;
    size_t stride;
};

struct Heads {
    // Query heads per key-value head.
    uint32 group;
    uint32 head_dim;
    // Number of keys up to its own that a query sees, including that; all bits set: all.
    uint32 window;
    // Number of keys after its own that a query sees; all bits set: all.
    uint32 ahead;
    // Factor of scores before the softmax.
    float scale;
    // Bound of scaled scores; 0: none.
    float softcap;
};

// A score before the softmax, given the product of query and key.
DEVICE float score_of(Heads heads, float dot) {
    float score = dot * heads.scale;
    return heads.softcap > 0.0f ? heads.softcap * tanhf(score / heads.softcap) : score;
}

// The derivative of `score_of` with respect to the product.
DEVICE float score_slope(Heads heads, float score) {
    float share = heads.softcap > 0.0f ? score / heads.softcap : 0.0f;
    return heads.scale * (1.0f - share * share);
}

// The key of query i is k_len - q_len + i, both counted from the start of the sequence.
struct Sequence {
    uint32 q_start, q_len, k_start, k_len;
};

// The work of a block of threads: rows of a sequence beginning at `first`, up to the block's size;
// none if the sequence is empty.
struct Block {
    uint32 sequence, first;
};

struct Range {
    int begin, end;
};

// The keys visible to query i; may begin before the first key and end after the last.
DEVICE Range keys_of(Sequence s, Heads heads, int i) {
    int end = int(s.k_len - s.q_len) + i + 1;
    return Range{end - int(min(heads.window, s.k_len)), end + int(min(heads.ahead, s.k_len))};
}

// The queries that see key j; may begin before the first query and end after the last.
DEVICE Range queries_of(Sequence s, Heads heads, int j) {
    int begin = j - int(s.k_len - s.q_len);
    int end = begin + int(min(heads.window, s.k_len));
    return Range{begin - int(min(heads.ahead, s.k_len)), end};
}

// The union of ranges, from that of the first row to that of the last, clipped to `num` rows.
DEVICE Range all_of(Range first, Range last, uint32 num) {
    return Range{max(0, first.begin), min(int(num), last.end)};
}

// A head's rows beginning at `row`.
template <class T> DEVICE T* head_rows(Rows<T> x, Heads heads, uint32 row, uint32 head) {
    return x.data + row * x.stride + size_t(head) * heads.head_dim;
}
