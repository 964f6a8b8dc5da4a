// CUDA's built-ins in plain C++, so that a kernel's own source runs on a machine without a GPU, to
// test its logic, not its speed.
//
// The threads of a block are fibers, scheduled cooperatively. They run until they wait for each
// other, at a barrier or in a warp-level operation, which also detects divergence that would hang
// or corrupt on a GPU: lanes in different operations, threads that never arrive. Blocks run one
// after another. Not modelled: races between threads that do not synchronise, the GPU's memory
// ordering, and its approximate instructions.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <tuple>
#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time, so shared memory can be static.
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

// Saves the current stack pointer to `from` and switches to the stack `to`. Hand-written, since
// `swapcontext` changes the signal mask by a system call, and kernels switch millions of times.
extern "C" __attribute__((visibility("hidden"))) void fiber_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.hidden fiber_switch
.globl fiber_switch
fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
// Words at the top of a new stack: saved registers, entry point, null return address.
static const int SAVED = 6, WORDS = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.hidden fiber_switch
.globl fiber_switch
fiber_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
static const int SAVED = 11, WORDS = 20;
#else
#error "the emulator runs on x86-64 and AArch64"
#endif

namespace emulator {

static const int MAX_THREADS = 1024;
// Stacks are not a power of two apart: their ends would share a few sets of the caches.
static const size_t STACK = (128 << 10) + 320;

// A barrier of a block or a warp.
struct Barrier {
    int size, arrived;
    unsigned long generation;
    const char* operation;
    unsigned line;
};

struct Warp {
    Barrier barrier;
    // Values that lanes exchange, double-buffered, so that a lane that is ahead does not overwrite
    // what another has yet to read.
    alignas(16) unsigned char values[2][32][64];
};

static void *scheduler, *fibers[MAX_THREADS];
static char* stacks;
static bool done[MAX_THREADS];
static int current, num_threads, num_left;
// Incremented whenever a thread makes progress.
static unsigned long arrivals;
static Barrier block;
static Warp warps[MAX_THREADS / 32];
static void (*body)(void*);
static void* body_args;
static size_t dynamic_bytes;
static unsigned char* dynamic_shared;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulated kernel: %s (block %u %u %u, thread %d)\n", what, blockIdx.x,
            blockIdx.y, blockIdx.z, current);
    abort();
}

// Where the next thread goes on that has not ended, or the scheduler after the last one.
static void* next() {
    do current++;
    while (current < num_threads && done[current]);
    threadIdx.x = current;
    return current < num_threads ? fibers[current] : scheduler;
}

static void yield() {
    void** from = &fibers[current];
    fiber_switch(from, next());
}

static void wait(Barrier& barrier, const char* operation, unsigned line) {
    if (barrier.arrived == 0) {
        barrier.operation = operation;
        barrier.line = line;
    } else if (barrier.line != line ||
               (barrier.operation != operation && strcmp(barrier.operation, operation) != 0)) {
        fail("threads that must synchronise have diverged into different operations");
    }
    unsigned long generation = barrier.generation;
    arrivals++;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    while (barrier.generation == generation) yield();
}

static void run_thread() {
    body(body_args);
    done[current] = true;
    num_left--;
    yield();
}

static void run_block() {
    block = Barrier{num_threads};
    for (int w = 0; w * 32 < num_threads; w++) {
        warps[w].barrier = Barrier{num_threads - w * 32 < 32 ? num_threads - w * 32 : 32};
    }
    // Reads of uninitialised memory show up as NaN.
    memset(dynamic_shared, 0xff, dynamic_bytes);
    for (int i = 0; i < num_threads; i++) {
        done[i] = false;
        void** stack = reinterpret_cast<void**>(stacks + (i + 1) * STACK) - WORDS;
        memset(stack, 0, WORDS * sizeof(void*));
        stack[SAVED] = reinterpret_cast<void*>(run_thread);
        fibers[i] = stack;
    }
    num_left = num_threads;
    while (num_left > 0) {
        unsigned long before = arrivals;
        int left = num_left;
        current = -1;
        fiber_switch(&scheduler, next());
        if (left == num_left && before == arrivals) fail("deadlock: some threads never arrive");
    }
}

static Warp& own_warp() {
    return warps[current / 32];
}

// The values that the lanes of a warp passed to `exchange`.
template <class T> struct Exchange {
    Warp& warp;
    unsigned buffer;
    const T& of_lane(int lane) const {
        return *reinterpret_cast<const T*>(warp.values[buffer][lane]);
    }
};

template <class T> Exchange<T> exchange(const T& mine, const char* operation, unsigned line) {
    static_assert(sizeof(T) <= 64, "too large to exchange");
    Warp& warp = own_warp();
    unsigned buffer = warp.barrier.generation % 2;
    memcpy(warp.values[buffer][current % 32], &mine, sizeof(T));
    wait(warp.barrier, operation, line);
    return Exchange<T>{warp, buffer};
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(args[I])...);
}

template <class... A>
void launch(
    void (*kernel)(A...), const unsigned* grid, unsigned threads, size_t shared, void** args) {
    struct Call {
        void (*kernel)(A...);
        void** args;
    } call_args{kernel, args};
    if (threads > MAX_THREADS) fail("more than 1024 threads in a block");
    if (stacks == nullptr) {
        stacks = static_cast<char*>(mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    body = [](void* opaque) {
        Call* c = static_cast<Call*>(opaque);
        call(c->kernel, c->args, std::index_sequence_for<A...>());
    };
    body_args = &call_args;
    num_threads = threads;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    threadIdx = {0, 0, 0};
    dynamic_bytes = shared;
    dynamic_shared = static_cast<unsigned char*>(aligned_alloc(128, (shared + 128) / 128 * 128));
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
        }
    }
    free(dynamic_shared);
}

}  // namespace emulator

#define __syncthreads() emulator::wait(emulator::block, "__syncthreads", __LINE__)
#define __syncwarp(...) emulator::wait(emulator::own_warp().barrier, "__syncwarp", __LINE__)
#define __shfl_xor_sync(mask, x, lanes) emulator::shuffle_xor(mask, x, lanes, __LINE__)
#define __shfl_sync(mask, x, lane) emulator::shuffle(mask, x, lane, __LINE__)
#define __ballot_sync(mask, x) emulator::ballot(mask, x, __LINE__)

namespace emulator {

template <class T> T shuffle(unsigned mask, T x, int lane, unsigned line) {
    if (mask != 0xffffffffu) fail("only whole warps are modelled");
    return exchange(x, "__shfl_sync", line).of_lane(lane % 32);
}

template <class T> T shuffle_xor(unsigned mask, T x, int lanes, unsigned line) {
    if (mask != 0xffffffffu) fail("only whole warps are modelled");
    return exchange(x, "__shfl_xor_sync", line).of_lane(current % 32 ^ lanes);
}

static inline unsigned ballot(unsigned mask, bool x, unsigned line) {
    if (mask != 0xffffffffu) fail("only whole warps are modelled");
    Exchange<bool> votes = exchange(x, "__ballot_sync", line);
    unsigned lanes = 0;
    for (int lane = 0; lane < 32; lane++) lanes |= unsigned(votes.of_lane(lane)) << lane;
    return lanes;
}

}  // namespace emulator

static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Compiled without contraction, all are rounded apart.
static inline float __fmul_rn(float x, float y) {
    return x * y;
}

static inline float __fadd_rn(float x, float y) {
    return x + y;
}

static inline float __fsub_rn(float x, float y) {
    return x - y;
}

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

static inline unsigned atomicMax(unsigned* x, unsigned y) {
    unsigned before = *x;
    if (y > before) *x = y;
    return before;
}

template <class T> static inline T min(T a, T b) {
    return b < a ? b : a;
}

template <class T> static inline T max(T a, T b) {
    return a < b ? b : a;
}

// Dynamic shared memory.
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared
