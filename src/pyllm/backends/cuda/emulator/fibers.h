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

static void enter() {
    state.body(state.args);
    leave();
    abort();
}

static inline char* stack_of(int i) { return state.stacks + stack_spare + (size_t)i * stack_stride; }

static void reset_copies(Fiber* f);

static void start(int i) {
    Fiber* f = state.fibers + i;
    char* stack = stack_of(i);
    uint3 b = state.block_size;
    f->thread = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
    f->lane = i & 31;
    f->warp = state.warps + i / 32;
    reset_copies(f);
#ifdef EMULATE_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = stack_bytes;
    f->context.uc_link = nullptr;
    makecontext(&f->context, enter, 0);
#else
    void** sp = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + stack_bytes) & ~(uintptr_t)63);
    *--sp = nullptr;  // no return address: the stack is aligned as after a call
    *--sp = reinterpret_cast<void*>(enter);
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    f->sp = sp;
#endif
}

static bool run_block(int n) {
    memset(state.shared, 0xff, state.shared_size + guard_bytes);
    if (__start_emu_shared) memset(__start_emu_shared, 0xff, __stop_emu_shared - __start_emu_shared);
    state.n_warps = (n + 31) / 32;
    state.n_alive = n;
    state.n_arrived = 0;
    for (int w = 0; w < state.n_warps; w++) {
        Warp* warp = state.warps + w;
        int lanes = n - w * 32 < 32 ? n - w * 32 : 32;
        warp->alive = warp->ready = lanes == 32 ? FULL_WARP : (1u << lanes) - 1;
        warp->waiting = 0;
        warp->fibers = state.fibers + w * 32;
    }
    for (int i = 0; i < n; i++) start(i);
    me = &state.main;
    if (state.seed) {
        state.by_priority = state.random.one_in(2);
        for (int w = 0; w < state.n_warps; w++) {
            int other = (int)state.random.below(w + 1);
            state.order[w] = state.order[other];
            state.order[other] = w;
        }
    }
    go(state.seed ? choose() : state.fibers);
    if (state.failed) return false;
    for (int i = 0; i < guard_bytes; i++)
        if (static_cast<u8>(state.shared[state.shared_size + i]) != 0xff) {
            me = state.fibers;
            snprintf(state.error, sizeof state.error, "%s, block (%u, %u, %u): byte %zu of %zu of shared memory was written",
                     state.name, state.block.x, state.block.y, state.block.z, state.shared_size + i, state.shared_size);
            return !(state.failed = true);
        }
    return true;
}

static bool prepare(const Launch& l, u64 threads, u64 bound) {
    u64 blocks = (u64)l.grid[0] * l.grid[1] * l.grid[2];
    const char* wrong = nullptr;
    if (threads == 0 || threads > bound || threads > max_threads) wrong = "more threads than the kernel's bound, or none";
    if (blocks == 0 || l.grid[0] > 0x7fffffff || l.grid[1] > 65535 || l.grid[2] > 65535) wrong = "an impossible grid";
    if (l.block[2] > 64) wrong = "an impossible block";
    if (l.shared > l.max_shared) wrong = "more shared memory than a block can have";
    if (wrong) {
        snprintf(state.error, sizeof state.error, "%s: grid (%u, %u, %u), block (%u, %u, %u), %u bytes shared: %s",
                 state.name, l.grid[0], l.grid[1], l.grid[2], l.block[0], l.block[1], l.block[2], l.shared, wrong);
        return false;
    }
    if (!state.stacks) {
        state.stacks = static_cast<char*>(malloc(stack_spare + stack_stride * max_threads));
        for (int i = 0; state.stacks && i < max_threads; i++) memcpy(stack_of(i), stack_mark, sizeof stack_mark);
    }
    if (!state.shared_buffer || l.shared > state.shared_size) {
        free(state.shared_buffer);
        state.shared_buffer = static_cast<char*>(malloc(l.shared + guard_bytes + 128));
        state.shared = state.shared_buffer + (-reinterpret_cast<uintptr_t>(state.shared_buffer) & 127);
    }
    if (!state.stacks || !state.shared_buffer) {
        snprintf(state.error, sizeof state.error, "%s: no memory for stacks", state.name);
        return false;
    }
    state.shared_size = l.shared;
    return true;
}

#ifdef EMULATE_FAULTS
static struct sigaction faults_before[2];
static pthread_t faults_thread;

static void on_fault(int number, siginfo_t* info, void* context) {
    if (!pthread_equal(pthread_self(), faults_thread) || me == &state.main) {  // not a kernel's
        sigaction(number, &faults_before[number == SIGBUS], nullptr);
        return;
    }
    bool write = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
    state.fault = reinterpret_cast<uintptr_t>(info->si_addr);
    if (info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR)
        fail(write ? "a write to an address outside its memory" : "a read from an address outside its memory");
    state.fault = 0;
    fail("an address that is not aligned, or that no memory can have");
}

// Faults of this thread's kernel are its errors, until `watch(false)`.
static void watch(bool on) {
    struct sigaction mine = {};
    mine.sa_sigaction = on_fault;
    mine.sa_flags = SA_SIGINFO | SA_NODEFER;
    faults_thread = pthread_self();
    sigaction(SIGSEGV, on ? &mine : &faults_before[0], on ? &faults_before[0] : nullptr);
    sigaction(SIGBUS, on ? &mine : &faults_before[1], on ? &faults_before[1] : nullptr);
}
#else
static void watch(bool) {}
#endif

static bool run_blocks(const Launch& l, int threads) {
    BlockOrder order((u64)l.grid[0] * l.grid[1] * l.grid[2], l.seed);
    for (u64 i = l.first; i < l.last; i++) {
        u64 b = order(i);
        state.block = {(u32)(b % l.grid[0]), (u32)(b / l.grid[0] % l.grid[1]), (u32)(b / ((u64)l.grid[0] * l.grid[1]))};
        if (!run_block(threads)) return false;
    }
    return true;
}

static bool run_stressed(const Launch& l, int threads) {
    state.random = {l.seed};
    state.constants.n = 0;
    watch(true);
    bool done = run_blocks(l, threads);
    watch(false);
    if (!done) return false;
    if (state.constants.changed()) {
        snprintf(state.error, sizeof state.error, "%s: it wrote what it also reads with stream4, stream8 or stream16",
                 state.name);
        return false;
    }
    return true;
}

static __attribute__((unused)) int run(const Launch& l, const char* name, int bound, void (*body)(const void*),
                                       const void* args) {
    u64 threads = (u64)l.block[0] * l.block[1] * l.block[2];
    state.name = name;
    state.body = body;
    state.args = args;
    state.failed = false;
    state.grid_size = {l.grid[0], l.grid[1], l.grid[2]};
    state.block_size = {l.block[0], l.block[1], l.block[2]};
    state.seed = l.seed;
    state.fault = 0;
    if (!prepare(l, threads, bound)) return 1;
    if (!(l.seed ? run_stressed(l, (int)threads) : run_blocks(l, (int)threads))) return 1;
    int overflowed = -1;
    for (int i = (int)threads - 1; i >= 0; i--)
        if (memcmp(stack_of(i), stack_mark, sizeof stack_mark)) {
            memcpy(stack_of(i), stack_mark, sizeof stack_mark);
            overflowed = i;
        }
    if (overflowed >= 0)
        snprintf(state.error, sizeof state.error, "%s: the stack of thread %d overflowed", name, overflowed);
    return overflowed >= 0;
}

}  // namespace emu
