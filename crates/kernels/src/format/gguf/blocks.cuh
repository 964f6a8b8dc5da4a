// The blocks of `format/gguf`. A type has the size of its blocks, and of weight `i` of one: the
// integer, its scale, and what is taken off, if anything. Products and differences are rounded
// apart, as on the CPU.
template <class B> struct Blocks {
    const uint8* bytes;
};

// An f16 at any address.
DEVICE float half(const uint8* bytes) {
    return to_f32(f16{uint16(bytes[0] | bytes[1] << 8)});
}

// Bits `4 * upper ..` of a byte.
DEVICE uint32 nibble(uint8 byte, uint32 upper) {
    return byte >> 4 * upper & 15;
}

struct Q8_0 {
    static constexpr int WEIGHTS = 32, BYTES = 34;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32) { return half(block); }
    DEVICE static int value(const uint8* block, uint32 i) { return int((signed char)block[2 + i]); }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct Q5_0 {
    static constexpr int WEIGHTS = 32, BYTES = 22;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32) { return half(block); }
    DEVICE static int value(const uint8* block, uint32 i) {
        uint32 fifth = block[2 + i / 8] >> i % 8 & 1;
        return int(nibble(block[6 + i % 16], i / 16) | fifth << 4) - 16;
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct Q5_1 {
    static constexpr int WEIGHTS = 32, BYTES = 24;
    static constexpr bool HAS_OFFSET = true;
    DEVICE static float scale(const uint8* block, uint32) { return half(block); }
    DEVICE static int value(const uint8* block, uint32 i) {
        uint32 fifth = block[4 + i / 8] >> i % 8 & 1;
        return int(nibble(block[8 + i % 16], i / 16) | fifth << 4);
    }
    DEVICE static float offset(const uint8* block, uint32) { return -half(block + 2); }
};

struct Q4_1 {
    static constexpr int WEIGHTS = 32, BYTES = 20;
    static constexpr bool HAS_OFFSET = true;
    DEVICE static float scale(const uint8* block, uint32) { return half(block); }
    DEVICE static int value(const uint8* block, uint32 i) {
        return int(nibble(block[4 + i % 16], i / 16));
    }
    DEVICE static float offset(const uint8* block, uint32) { return -half(block + 2); }
};

struct Q4_0 {
    static constexpr int WEIGHTS = 32, BYTES = 18;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32) { return half(block); }
    DEVICE static int value(const uint8* block, uint32 i) {
        return int(nibble(block[2 + i % 16], i / 16)) - 8;
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct Mxfp4 {
    static constexpr int WEIGHTS = 32, BYTES = 17;
    static constexpr bool HAS_OFFSET = false;
    // Half the power of two, since the integers are twice the floats.
    DEVICE static float scale(const uint8* block, uint32) {
        uint32 exponent = block[0];
        return __uint_as_float(exponent < 2 ? 0x200000u << exponent : (exponent - 1) << 23);
    }
    DEVICE static int value(const uint8* block, uint32 i) {
        uint32 bits = nibble(block[1 + i % 16], i / 16), exponent = bits >> 1 & 3;
        int magnitude = int(exponent == 0 ? bits & 1 : (2 | bits & 1) << (exponent - 1));
        return bits & 8 ? -magnitude : magnitude;
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct Q6_K {
    static constexpr int WEIGHTS = 256, BYTES = 210;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32 i) {
        return __fmul_rn(half(block + 208), float((signed char)block[192 + i / 16]));
    }
    DEVICE static int value(const uint8* block, uint32 i) {
        uint32 part = i / 128, group = i / 32 % 4, lane = i % 32;
        uint32 four = nibble(block[64 * part + 32 * (group % 2) + lane], group / 2);
        uint32 two = block[128 + 32 * part + lane] >> 2 * group & 3;
        return int(four | two << 4) - 32;
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct Q3_K {
    static constexpr int WEIGHTS = 256, BYTES = 110;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32 i) {
        uint32 part = i / 16;
        uint32 lower = nibble(block[96 + part % 8], part / 8);
        uint32 upper = block[104 + part % 4] >> 2 * (part / 4) & 3;
        return __fmul_rn(half(block + 108), float(int(lower | upper << 4) - 32));
    }
    DEVICE static int value(const uint8* block, uint32 i) {
        uint32 third = block[i % 32] >> i / 32 & 1;
        uint32 two = block[32 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
        return int(two | third << 2) - 4;
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct Q2_K {
    static constexpr int WEIGHTS = 256, BYTES = 84;
    static constexpr bool HAS_OFFSET = true;
    DEVICE static float scale(const uint8* block, uint32 i) {
        return __fmul_rn(half(block + 80), float(block[i / 16] & 15));
    }
    DEVICE static int value(const uint8* block, uint32 i) {
        return int(block[16 + i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3);
    }
    DEVICE static float offset(const uint8* block, uint32 i) {
        return __fmul_rn(half(block + 82), float(block[i / 16] >> 4));
    }
};

// A number of the table of "I-quants".
DEVICE int level(uint32 bits) {
    constexpr signed char LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};
    return LEVELS[bits];
}

struct IQ4_NL {
    static constexpr int WEIGHTS = 32, BYTES = 18;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32) { return half(block); }
    DEVICE static int value(const uint8* block, uint32 i) {
        return level(nibble(block[2 + i % 16], i / 16));
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

struct IQ4_XS {
    static constexpr int WEIGHTS = 256, BYTES = 136;
    static constexpr bool HAS_OFFSET = false;
    DEVICE static float scale(const uint8* block, uint32 i) {
        uint32 group = i / 32;
        uint32 lower = nibble(block[4 + group / 2], group % 2);
        uint32 upper = block[2 + group / 4] >> 2 * (group % 4) & 3;
        return __fmul_rn(half(block), float(int(lower | upper << 4) - 32));
    }
    DEVICE static int value(const uint8* block, uint32 i) {
        return level(nibble(block[8 + i / 32 * 16 + i % 16], i / 16 % 2));
    }
    DEVICE static float offset(const uint8*, uint32) { return 0.0f; }
};

// The scale of a group of 32 weights, of six bits, or with `4` for `first` what is taken off.
DEVICE float six_bits(const uint8* block, uint32 group, uint32 first) {
    const uint8* bytes = block + 4;
    uint32 own = bytes[first + group % 4];
    if (group < 4) return float(own & 63);
    return float(nibble(bytes[8 + group % 4], first / 4) | own >> 6 << 4);
}

struct Q4_K {
    static constexpr int WEIGHTS = 256, BYTES = 144;
    static constexpr bool HAS_OFFSET = true;
    DEVICE static float scale(const uint8* block, uint32 i) {
        return __fmul_rn(half(block), six_bits(block, i / 32, 0));
    }
    DEVICE static int value(const uint8* block, uint32 i) {
        return int(nibble(block[16 + i / 64 * 32 + i % 32], i / 32 % 2));
    }
    DEVICE static float offset(const uint8* block, uint32 i) {
        return __fmul_rn(half(block + 2), six_bits(block, i / 32, 4));
    }
};

struct Q5_K {
    static constexpr int WEIGHTS = 256, BYTES = 176;
    static constexpr bool HAS_OFFSET = true;
    DEVICE static float scale(const uint8* block, uint32 i) { return Q4_K::scale(block, i); }
    DEVICE static int value(const uint8* block, uint32 i) {
        uint32 fifth = block[16 + i % 32] >> i / 32 & 1;
        return int(nibble(block[48 + i / 64 * 32 + i % 32], i / 32 % 2) | fifth << 4);
    }
    DEVICE static float offset(const uint8* block, uint32 i) { return Q4_K::offset(block, i); }
};

template <int N, class B> DEVICE bool aligned(Blocks<B>) {
    return true;
}

// Up to 16 weights, whose number is a multiple of theirs: they share scale and offset.
template <class B, int N> DEVICE Vec<float, N> read(Blocks<B> x, size_t index, size_t, Count<N>) {
    static_assert(N <= 16);
    const uint8* block = x.bytes + index / B::WEIGHTS * B::BYTES;
    uint32 first = uint32(index % B::WEIGHTS);
    float scale = B::scale(block, first), offset = B::offset(block, first);
    Vec<float, N> y;
    for (int k = 0; k < N; k++) {
        y.v[k] = __fmul_rn(scale, float(B::value(block, first + k)));
        if (B::HAS_OFFSET) y.v[k] = __fsub_rn(y.v[k], offset);
    }
    return y;
}
