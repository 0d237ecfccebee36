// Blocks of a grid, one after the other. See cuda_emu.h.
#pragma once

namespace emu {

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
            snprintf(state.error, sizeof state.error,
                     "%s, block (%u, %u, %u): byte %zu of %zu of shared memory was written",
                     state.name, state.block.x, state.block.y, state.block.z, state.shared_size + i, state.shared_size);
            return !(state.failed = true);
        }
    return true;
}

static bool prepare(const Launch& l, u64 threads, u64 bound) {
    u64 blocks = (u64)l.grid[0] * l.grid[1] * l.grid[2];
    const char* wrong = nullptr;
    if (!threads || threads > bound || threads > max_threads) wrong = "more threads than the kernel's bound, or none";
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
