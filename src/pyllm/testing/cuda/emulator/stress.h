// Another order at every turn, by a seed, and what a card would not forgive: see `PYLLM_CUDA_EMULATOR_STRESS` in env.py.
//
// With a seed, a block's threads run in random order wherever they wait, and pause where they touch memory that others
// see; blocks run in random order; a cp.async copies at any time until it is waited for; memory that was read as
// constant must still be the same when the kernel ends; and a fault is an error that names the kernel and the thread.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>
#define EMULATE_FAULTS
#endif

namespace emu {

struct Random {
    u64 state;

    u64 next() {  // splitmix64
        u64 z = state += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        return z ^ z >> 31;
    }
    u32 below(u32 n) { return (u32)((next() >> 32) * n >> 32); }
    bool one_in(u32 n) { return below(n) == 0; }
};

// Which block comes at a place in the grid's order: a walk over all of them in steps of the same size.
struct BlockOrder {
    u64 n, step, start;

    static u64 common(u64 a, u64 b) { return b ? common(b, a % b) : a; }
    BlockOrder(u64 blocks, u64 seed) : n(blocks), step(1), start(0) {
        if (!seed) return;
        Random random{seed};
        start = random.next() % n;
        for (step = random.next() % n; common(step, n) != 1; step = (step + 1) % n) {
        }
    }
    u64 operator()(u64 i) const { return (u64)((start + (unsigned __int128)step * i) % n); }
};

// What was read with stream4/8/16, which cards may cache as constant: nothing may write it in the same kernel.
struct Constants {
    static constexpr u32 capacity = 1 << 16;
    struct Read {
        const char* at;
        u32 size;
        char value[16];
    };
    Read* reads;
    u32 n;

    void add(const void* at, u32 size, Random& random) {
        if (!reads) reads = static_cast<Read*>(malloc(capacity * sizeof(Read)));
        u32 i = n < capacity ? n++ : random.below(capacity);
        reads[i].at = static_cast<const char*>(at);
        reads[i].size = size;
        memcpy(reads[i].value, at, size);
    }
    bool changed() const {
        for (u32 i = 0; i < n; i++)
            if (memcmp(reads[i].at, reads[i].value, reads[i].size)) return true;
        return false;
    }
};

}  // namespace emu
