// Threads of a block as fibers, and what they wait at. See cuda_emu.h.
#pragma once

#include "stress.h"

namespace emu {

constexpr int max_threads = 1024, max_warps = max_threads / 32, guard_bytes = 256;
constexpr size_t stack_bytes = 128 << 10;
// Stacks begin at different places within a page: else the same local variable of all lanes falls into one cache set.
constexpr size_t stack_stride = stack_bytes + 5 * 64;
constexpr size_t stack_spare = 1 << 20;  // below the first, so that an overflow is reported there, too
constexpr u8 stack_mark[64] = {0x5c, 0xa1, 0xab, 0x1e, 0x0d, 0xdb, 0xa1, 0x1e};  // at the end of each

struct Launch {  // what the host passes
    u32 grid[3], block[3], shared, max_shared;
    u64 first, last;  // blocks of the grid, counted with x fastest
    u64 seed;         // of a stressed run; 0: everything in order
};

struct Warp;

struct Fiber {
#ifdef EMULATE_UCONTEXT
    ucontext_t context;
#else
    void* sp;
#endif
    uint3 thread;
    u32 lane;
    Warp* warp;
    struct Copies* copies;
};

// What lanes do together: arguments of all lanes, and which lanes take part.
typedef void (*Collective)(void* const* args, u32 mask);

struct Warp {
    u32 alive, ready, waiting;  // lanes: not returned; able to run; at a collective
    Fiber* fibers;
    Collective what[32];
    u32 mask[32];
    void* args[32];
};

struct State {
    Fiber main;
    Fiber fibers[max_threads];
    Warp warps[max_warps];
    char* stacks;
    char* shared_buffer;
    char* shared;
    size_t shared_size;
    int n_warps, n_alive, n_arrived, barrier_line;
    uint3 block, block_size, grid_size;
    void (*body)(const void*);
    const void* args;
    const char* name;
    bool failed;
    char error[512];
    u64 seed;
    Random random;
    bool by_priority;        // of this block's warps; else any may come next
    int order[max_warps];    // the warps, the one that goes first at the front
    Constants constants;
    uintptr_t fault;  // the address that a kernel must not use, where that is what failed
};

static State state;
static Fiber* me;

// Static shared memory of all kernels of the file, between marks of the linker; none: null.
extern "C" char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));

#ifdef EMULATE_UCONTEXT
static inline void swap(Fiber* from, Fiber* to) { swapcontext(&from->context, &to->context); }
#else
extern "C" void emu_swap(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl emu_swap
.hidden emu_swap
.type emu_swap, @function
emu_swap:
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
.size emu_swap, . - emu_swap
)");
static inline void swap(Fiber* from, Fiber* to) { emu_swap(&from->sp, to->sp); }
#endif

static inline void go(Fiber* to) {
    Fiber* from = me;
    me = to;
    if (from != to) swap(from, to);
}

// Give the block up; the fibers' stacks are set up anew for the next one.
static __attribute__((noinline, unused)) void fail(const char* what) {
    if (!state.failed)
        snprintf(state.error, sizeof state.error, "%s, block (%u, %u, %u), thread (%u, %u, %u): %s", state.name,
                 state.block.x, state.block.y, state.block.z, me->thread.x, me->thread.y, me->thread.z, what);
    state.failed = true;
    go(&state.main);
}

static __attribute__((noinline)) void deadlock() {
    int waiting = 0;
    for (int w = 0; w < state.n_warps; w++) waiting += __builtin_popcount(state.warps[w].waiting);
    char text[160];
    snprintf(text, sizeof text, "%d threads wait at __syncthreads (line %d) and %d at a warp's operation, forever",
             state.n_arrived, state.barrier_line, waiting);
    fail(text);
}

// Any thread that can run, or none. By priority, warps get as far ahead of others as they can, until that changes.
static __attribute__((noinline)) Fiber* choose() {
    int n = state.n_warps, at = state.by_priority ? 0 : (int)state.random.below(n);
    if (state.by_priority && state.random.one_in(16)) {
        int other = (int)state.random.below(n), first = state.order[0];
        state.order[0] = state.order[other];
        state.order[other] = first;
    }
    for (int i = 0; i < n; i++) {
        Warp* w = state.warps + (state.by_priority ? state.order[i] : at + i < n ? at + i : at + i - n);
        if (!w->ready) continue;
        u32 first = state.random.below(32), later = w->ready & (FULL_WARP << first);
        return w->fibers + __builtin_ctz(later ? later : w->ready);
    }
    return nullptr;
}

// Where a card could run other threads for a while: they may, one time in `n`.
static inline void pause(u32 n) {
    if (__builtin_expect(state.seed != 0, 0) && me != &state.main && state.random.one_in(n)) go(choose());
}

// Run another thread that can; returns when this one can again.
static inline void wait() {
    if (__builtin_expect(state.seed != 0, 0)) {
        Fiber* next = choose();
        return next ? go(next) : deadlock();
    }
    Warp* w = me->warp;
    u32 ready = w->ready, later = ready & ~((2u << me->lane) - 1);
    if (ready) return go(w->fibers + __builtin_ctz(later ? later : ready));
    int n = state.n_warps, mine = (int)(w - state.warps);
    for (int i = 1; i < n; i++) {
        Warp* other = state.warps + (mine + i < n ? mine + i : mine + i - n);
        if (other->ready) return go(other->fibers + __builtin_ctz(other->ready));
    }
    deadlock();
}

// Do what the waiting lanes wait for, if all that must be there are.
static inline bool complete(Warp* w, u32 lane) {
    u32 need = w->mask[lane] & w->alive;
    if ((w->waiting & need) != need) return false;
    for (u32 rest = need; rest; rest &= rest - 1) {
        int other = __builtin_ctz(rest);
        if (w->what[other] != w->what[lane] || w->mask[other] != w->mask[lane])
            fail("lanes of a warp are at different operations, or name different masks");
    }
    w->what[lane](w->args, need);
    w->waiting &= ~need;
    w->ready |= need;
    return true;
}

static inline void collective(Collective what, u32 mask, void* args) {
    Warp* w = me->warp;
    u32 lane = me->lane;
    if (!(mask >> lane & 1)) fail("a lane takes part in an operation whose mask leaves it out");
    w->what[lane] = what;
    w->mask[lane] = mask;
    w->args[lane] = args;
    w->waiting |= 1u << lane;
    w->ready &= ~(1u << lane);
    if (!complete(w, lane))
        wait();
    else
        pause(1);
    asm volatile("" ::: "memory");
}

static inline void open_barrier() {
    state.n_arrived = 0;
    for (int w = 0; w < state.n_warps; w++) state.warps[w].ready = state.warps[w].alive;
}

static __attribute__((noinline, unused)) void barrier(int line) {
    Warp* w = me->warp;
    if (state.n_arrived++ == 0) state.barrier_line = line;
    if (state.barrier_line != line) fail("threads of a block are at different __syncthreads");
    w->ready &= ~(1u << me->lane);
    if (state.n_arrived == state.n_alive) {
        open_barrier();
        pause(1);
    } else {
        wait();
    }
}

static void leave() {  // this thread returned
    Warp* w = me->warp;
    w->alive &= ~(1u << me->lane);
    w->ready &= ~(1u << me->lane);
    if (--state.n_alive == 0) go(&state.main);
    for (u32 rest = w->waiting; rest; rest = w->waiting & rest & (rest - 1)) complete(w, __builtin_ctz(rest));
    if (state.n_arrived == state.n_alive) open_barrier();
    wait();
}

}  // namespace emu
