// Tensor-core primitives: products of 16 × 16 blocks of `Element` (bf16 or f16) with operands from
// shared memory, and asynchronous copies into it. Needs compute capability 8.0.
//
// On a GPU each is one PTX instruction. In the emulator, lanes of a warp exchange their registers
// as the PTX ISA specifies ("Warp Level Matrix Instructions", mma.m16n8k16 and ldmatrix); copies
// are synchronous, so a missing wait goes unnoticed.

template <class T> constexpr bool IS_BF16 = false;
template <> constexpr bool IS_BF16<bf16> = true;

// An address in shared memory, in bytes; in the emulator, an offset into dynamic shared memory.
DEVICE uint32 shared_address(const void* x) {
#if defined(__CUDA_ARCH__)
    return uint32(__cvta_generic_to_shared(x));
#else
    return uint32(static_cast<const unsigned char*>(x) - emulator::dynamic_shared);
#endif
}

// Starts a copy of 4 or 16 aligned bytes, or writes zeros if the source does not exist.
template <int BYTES> DEVICE void copy_async(uint32 to, const void* from, bool exists) {
    static_assert(BYTES == 4 || BYTES == 16, "an unsupported size");
#if defined(__CUDA_ARCH__)
    int taken = exists ? BYTES : 0;
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(taken) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                     :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(taken) : "memory");
    }
#else
    if (to % BYTES != 0 || size_t(from) % BYTES != 0) emulator::fail("misaligned copy");
    memset(emulator::dynamic_shared + to, 0, BYTES);
    if (exists) memcpy(emulator::dynamic_shared + to, from, BYTES);
#endif
}

// Waits for the copies that this thread started.
DEVICE void copy_wait() {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#if !defined(__CUDA_ARCH__)
namespace emulator {

static float half_of(uint32 word, int upper) {
    return to_f32(Element{uint16(word >> 16 * upper)});
}

static uint16 shared_element(uint32 row, int col) {
    uint16 x;
    memcpy(&x, dynamic_shared + row + 2 * col, 2);
    return x;
}

static void read_blocks(uint32 (&x)[4], uint32 row, bool transposed) {
    if (row % 16 != 0) fail("misaligned row");
    Exchange<uint32> rows = exchange(row, "ldmatrix", __LINE__);
    int lane = current % 32, i = lane / 4, j = lane % 4 * 2;
    for (int block = 0; block < 4; block++) {
        auto at = [&](int row, int col) {
            return uint32(shared_element(rows.of_lane(block * 8 + row), col));
        };
        x[block] = transposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
    }
}

struct Operands {
    uint32 a[4], b[2];
};

static void multiply(float (&sums)[4], const Operands& mine) {
    Exchange<Operands> operands = exchange(mine, "mma", __LINE__);
    int lane = current % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            uint32 a = operands.of_lane(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2];
            uint32 b = operands.of_lane(col * 4 + k % 8 / 2).b[k / 8];
            sums[i] += half_of(a, k % 2) * half_of(b, k % 2);
        }
    }
}

}  // namespace emulator
#endif

// Loads four 8 × 8 blocks: lane l passes the address of row l % 8 of block l / 8, and receives of
// each block the two elements of row l / 4 that start at column l % 4 * 2.
DEVICE void read_blocks(uint32 (&x)[4], uint32 row) {
#if defined(__CUDA_ARCH__)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row));
#else
    emulator::read_blocks(x, row, false);
#endif
}

// Like `read_blocks`, with each block transposed.
DEVICE void read_blocks_transposed(uint32 (&x)[4], uint32 row) {
#if defined(__CUDA_ARCH__)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row));
#else
    emulator::read_blocks(x, row, true);
#endif
}

// sums[16, 8] += a[16, 16] b[16, 8]. Lane l holds columns l % 4 * 2 and l % 4 * 2 + 1 of rows l / 4
// and l / 4 + 8 of `sums`.
DEVICE void multiply(float (&sums)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
#if defined(__CUDA_ARCH__)
#define MULTIPLY(TYPE) \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 " \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if constexpr (IS_BF16<Element>) {
        MULTIPLY("bf16");
    } else {
        MULTIPLY("f16");
    }
#else
    emulator::multiply(sums, emulator::Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
#endif
}

// 2^x to about 22 bits; subnormal results flush to zero.
DEVICE float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
