// What every attention kernel is told: where rows are, who sees whom, who computes what.

// Rows of heads: dimension c of head h in row i is data[i * stride + h * head_dim + c].
template <class T> struct Rows {
    T* data;
    size_t stride;
};

struct Heads {
    // Query heads that read the same keys and values.
    uint32 group;
    uint32 head_dim;
    // How many keys a query sees, its own among them; all bits set: all up to its own.
    uint32 window;
    // What scores are multiplied by before the softmax.
    float scale;
};

// Query i sees keys up to k_len - q_len + i, all counted from the sequence's first.
struct Sequence {
    uint32 q_start, q_len, k_start, k_len;
};

// What a block of threads computes: rows of a sequence from `first` on, as many as it has room for,
// or none, where the sequence has none.
struct Block {
    uint32 sequence, first;
};

struct Range {
    int begin, end;
};

// Keys that query i sees, those before the first included.
DEVICE Range keys_of(Sequence s, Heads heads, int i) {
    int end = int(s.k_len - s.q_len) + i + 1;
    return Range{end - int(min(heads.window, s.k_len)), end};
}

// Queries that see key j, those before the first and after the last included.
DEVICE Range queries_of(Sequence s, Heads heads, int j) {
    int begin = j - int(s.k_len - s.q_len);
    return Range{begin, begin + int(min(heads.window, s.k_len))};
}

// Those of `num` rows that the rows from the one that sees `first` to the one that sees `last` see.
DEVICE Range all_of(Range first, Range last, uint32 num) {
    return Range{max(0, first.begin), min(int(num), last.end)};
}

// A head's rows from `row` on.
template <class T> DEVICE T* head_rows(Rows<T> x, Heads heads, uint32 row, uint32 head) {
    return x.data + row * x.stride + size_t(head) * heads.head_dim;
}
