// CUDA's words in plain C++, so that a kernel's own source runs on a machine without a GPU: for
// tests of its logic, not of its speed.
//
// A block's threads are fibers that take turns. They run until they wait for each other, at a
// barrier of the block or in an operation of a warp, which therefore finds divergence that hangs
// or corrupts on a GPU: lanes that meet in different operations, threads that never arrive. Blocks
// follow one another. Not modelled: races between threads that do not wait for each other, the
// order in which a GPU's memory shows writes, and its approximate instructions.

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
// One block runs at a time, so a block's memory can be everybody's.
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

// Leaves the present stack, whose pointer goes to `from`, for another. Done by hand, since
// `swapcontext` asks the system to change signals each time, and kernels switch millions of times.
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
// Words below the top of a new stack: registers, where to begin, and nowhere to return to.
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

static const int MOST_THREADS = 1024;
static const size_t STACK = 128 << 10;

// Threads that wait for each other.
struct Meeting {
    int size, arrived;
    unsigned long generation;
    const char* operation;
    unsigned line;
};

struct Warp {
    Meeting meeting;
    // What lanes show each other: two sets, so that a lane that is ahead does not overwrite what
    // another has yet to read.
    alignas(16) unsigned char shown[2][32][64];
};

static void *scheduler, *fibers[MOST_THREADS];
static char* stacks;
static bool done[MOST_THREADS];
static int current, num_threads;
// Grows whenever a thread gets somewhere.
static unsigned long arrivals;
static Meeting block;
static Warp warps[MOST_THREADS / 32];
static void (*body)(void*);
static void* body_args;
static size_t dynamic_bytes;
static unsigned char* dynamic_shared;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulated kernel: %s (block %u %u %u, thread %d)\n", what, blockIdx.x,
            blockIdx.y, blockIdx.z, current);
    abort();
}

// Whoever is resumed finds `current` and `threadIdx` to be its own: the scheduler sets them.
static void yield() {
    fiber_switch(&fibers[current], scheduler);
}

static void wait(Meeting& meeting, const char* operation, unsigned line) {
    if (meeting.arrived == 0) {
        meeting.operation = operation;
        meeting.line = line;
    } else if (meeting.line != line || strcmp(meeting.operation, operation) != 0) {
        fail("threads that must wait for each other meet in different operations");
    }
    unsigned long generation = meeting.generation;
    arrivals++;
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    while (meeting.generation == generation) yield();
}

static void run_thread() {
    body(body_args);
    done[current] = true;
    yield();
}

static void run_block() {
    block = Meeting{num_threads};
    for (int w = 0; w * 32 < num_threads; w++) {
        warps[w].meeting = Meeting{num_threads - w * 32 < 32 ? num_threads - w * 32 : 32};
    }
    // Reading what was never written shows up as NaN.
    memset(dynamic_shared, 0xff, dynamic_bytes);
    for (int i = 0; i < num_threads; i++) {
        done[i] = false;
        void** stack = reinterpret_cast<void**>(stacks + (i + 1) * STACK) - WORDS;
        memset(stack, 0, WORDS * sizeof(void*));
        stack[SAVED] = reinterpret_cast<void*>(run_thread);
        fibers[i] = stack;
    }
    int left = num_threads;
    while (left > 0) {
        unsigned long before = arrivals;
        int finished = 0;
        for (int i = 0; i < num_threads; i++) {
            if (done[i]) continue;
            current = i;
            threadIdx.x = i % blockDim.x;
            threadIdx.y = i / blockDim.x % blockDim.y;
            threadIdx.z = i / blockDim.x / blockDim.y;
            fiber_switch(&scheduler, fibers[i]);
            finished += done[i];
        }
        if (finished == 0 && before == arrivals) fail("threads wait for others that never arrive");
        left -= finished;
    }
}

static Warp& own_warp() {
    return warps[current / 32];
}

// Every lane shows `mine`; `theirs(lane)` is what another lane showed.
template <class T> struct Shown {
    Warp& warp;
    unsigned set;
    const T& theirs(int lane) const {
        return *reinterpret_cast<const T*>(warp.shown[set][lane]);
    }
};

template <class T> Shown<T> show(const T& mine, const char* operation, unsigned line) {
    static_assert(sizeof(T) <= 64, "more than a lane can show");
    Warp& warp = own_warp();
    unsigned set = warp.meeting.generation % 2;
    memcpy(warp.shown[set][current % 32], &mine, sizeof(T));
    wait(warp.meeting, operation, line);
    return Shown<T>{warp, set};
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
    if (threads > MOST_THREADS) fail("more than 1024 threads in a block");
    if (stacks == nullptr) {
        stacks = static_cast<char*>(mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
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
#define __syncwarp(...) emulator::wait(emulator::own_warp().meeting, "__syncwarp", __LINE__)
#define __shfl_xor_sync(mask, x, lanes) emulator::shuffle_xor(mask, x, lanes, __LINE__)
#define __shfl_sync(mask, x, lane) emulator::shuffle(mask, x, lane, __LINE__)
#define __ballot_sync(mask, x) emulator::ballot(mask, x, __LINE__)

namespace emulator {

template <class T> T shuffle(unsigned mask, T x, int lane, unsigned line) {
    if (mask != 0xffffffffu) fail("only whole warps are modelled");
    return show(x, "__shfl_sync", line).theirs(lane % 32);
}

template <class T> T shuffle_xor(unsigned mask, T x, int lanes, unsigned line) {
    if (mask != 0xffffffffu) fail("only whole warps are modelled");
    return show(x, "__shfl_xor_sync", line).theirs(current % 32 ^ lanes);
}

static inline unsigned ballot(unsigned mask, bool x, unsigned line) {
    if (mask != 0xffffffffu) fail("only whole warps are modelled");
    Shown<bool> shown = show(x, "__ballot_sync", line);
    unsigned lanes = 0;
    for (int lane = 0; lane < 32; lane++) lanes |= unsigned(shown.theirs(lane)) << lane;
    return lanes;
}

}  // namespace emulator

static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
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

// Memory whose size is given at the launch.
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared
