// What the lanes of a warp do together, and copies that a thread starts and waits for later.
#pragma once

// --- shuffles and votes

namespace emu {

struct Shuffle {
    u64 in, out;
    u32 source;
};

static void shuffle(void* const* args, u32 mask) {
    for (u32 rest = mask; rest; rest &= rest - 1) {
        Shuffle* s = static_cast<Shuffle*>(args[__builtin_ctz(rest)]);
        if (!(mask >> s->source & 1)) return fail("a shuffle reads a lane that takes no part in it");
        s->out = static_cast<Shuffle*>(args[s->source])->in;
    }
}

template <typename T> DEVICE T shuffle_from(u32 mask, T value, u32 source) {
    static_assert(sizeof(T) <= 8, "4 or 8 bytes");
    Shuffle s{0, 0, source};
    memcpy(&s.in, &value, sizeof value);
    collective(shuffle, mask, &s);
    memcpy(&value, &s.out, sizeof value);
    return value;
}

struct Vote {
    bool in;
    u32 out;
};

static void vote(void* const* args, u32 mask) {
    u32 votes = 0;
    for (u32 rest = mask; rest; rest &= rest - 1)
        votes |= (u32) static_cast<Vote*>(args[__builtin_ctz(rest)])->in << __builtin_ctz(rest);
    for (u32 rest = mask; rest; rest &= rest - 1) static_cast<Vote*>(args[__builtin_ctz(rest)])->out = votes;
}

static void meet(void* const*, u32) {}

}  // namespace emu

// As on the card, a lane outside its part of `width` lanes gets its own value.
template <typename T> DEVICE T __shfl_sync(u32 mask, T v, int source, int width = 32) {
    u32 lane = emu::me->lane;
    return emu::shuffle_from(mask, v, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T> DEVICE T __shfl_xor_sync(u32 mask, T v, int bits, int width = 32) {
    u32 lane = emu::me->lane, source = lane ^ bits;
    return emu::shuffle_from(mask, v, source > (lane | (width - 1)) ? lane : source);
}
template <typename T> DEVICE T __shfl_down_sync(u32 mask, T v, u32 n, int width = 32) {
    u32 lane = emu::me->lane, source = lane + n;
    return emu::shuffle_from(mask, v, source > (lane | (width - 1)) ? lane : source);
}
template <typename T> DEVICE T __shfl_up_sync(u32 mask, T v, u32 n, int width = 32) {
    u32 lane = emu::me->lane;
    return emu::shuffle_from(mask, v, lane - (lane & ~(width - 1)) < n ? lane : lane - n);
}

DEVICE u32 __ballot_sync(u32 mask, int predicate) {
    emu::Vote v{predicate != 0, 0};
    emu::collective(emu::vote, mask, &v);
    return v.out;
}
DEVICE int __any_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
DEVICE int __all_sync(u32 mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
DEVICE void __syncwarp(u32 mask = FULL_WARP) { emu::collective(emu::meet, mask, nullptr); }
DEVICE u32 __activemask() { return emu::me->warp->alive; }

// --- matrices

namespace emu {

template <typename T> struct Product {
    const u32 *a, *b;
    T* d;
};

// d[16][8] += a[16][k] b[k][8] after `load` has made numbers of the lanes' words (per_word of them in each).
template <typename T, int per_word, typename Load> static inline void multiply(void* const* args, Load load) {
    constexpr int depth = 8 * per_word;
    T a[16][depth], b[depth][8];
    for (int lane = 0; lane < 32; lane++) {
        const Product<T>* p = static_cast<Product<T>*>(args[lane]);
        int g = lane / 4, t = lane % 4 * per_word;
        for (int i = 0; i < per_word; i++) {
            for (int half = 0; half < 2; half++) {
                a[g][t + half * depth / 2 + i] = load(p->a[2 * half], i);
                a[g + 8][t + half * depth / 2 + i] = load(p->a[2 * half + 1], i);
                b[t + half * depth / 2 + i][g] = load(p->b[half], i);
            }
        }
    }
    for (int row = 0; row < 16; row++) {
        T sums[8] = {};
        for (int k = 0; k < depth; k++)
            for (int n = 0; n < 8; n++) sums[n] += a[row][k] * b[k][n];
        for (int n = 0; n < 8; n++)
            static_cast<Product<T>*>(args[row % 8 * 4 + n / 2])->d[row / 8 * 2 + n % 2] += sums[n];
    }
}

static void multiply_f16(void* const* args, u32) {
    multiply<float, 2>(args, [](u32 word, int i) { return f16_to_f32((u16)(word >> (16 * i))); });
}
static void multiply_s8(void* const* args, u32) {
    multiply<int, 4>(args, [](u32 word, int i) { return (int)(s8)(word >> (8 * i)); });
}

struct MatrixLoad {
    const void* row;
    u32* out;
};

template <int n, bool transposed> static void load_matrices(void* const* args, u32) {
    u16 values[8][8];
    for (int m = 0; m < n; m++) {
        for (int i = 0; i < 8; i++) {
            const void* row = static_cast<MatrixLoad*>(args[8 * m + i])->row;
            if (reinterpret_cast<uintptr_t>(row) % 16) return fail("ldmatrix from an address that is not aligned");
            memcpy(values[i], row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = lane % 4 * 2;
            u16 low = transposed ? values[t][g] : values[g][t], high = transposed ? values[t + 1][g] : values[g][t + 1];
            static_cast<MatrixLoad*>(args[lane])->out[m] = (u32)high << 16 | low;
        }
    }
}

}  // namespace emu

DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emu::Product<float> p{a, b, d};
    emu::collective(emu::multiply_f16, FULL_WARP, &p);
}
DEVICE void mma_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emu::Product<int> p{a, b, d};
    emu::collective(emu::multiply_s8, FULL_WARP, &p);
}

#define LDMATRIX(n, suffix, transposed)                                        \
    DEVICE void ldmatrix##n##suffix(u32 (&r)[n], const void* p) {              \
        emu::MatrixLoad load{p, r};                                            \
        emu::collective(emu::load_matrices<n, transposed>, FULL_WARP, &load);  \
    }
LDMATRIX(1, , false)
LDMATRIX(2, , false)
LDMATRIX(4, , false)
LDMATRIX(1, _trans, true)
LDMATRIX(2, _trans, true)
LDMATRIX(4, _trans, true)
#undef LDMATRIX

// --- cp.async: done when waited for, so that a missing wait shows

namespace emu {

struct Copies {
    struct Copy {
        void* to;
        const void* from;  // none: zeros
        u32 group, size;
    };
    Copy* items;
    u32 first, n, capacity, group;  // group: the one that is open
};

static inline void add_copy(void* to, const void* from, u32 size) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size)
        fail("cp.async with an address that is not aligned");
    if (!me->copies) me->copies = static_cast<Copies*>(calloc(1, sizeof(Copies)));
    Copies* c = me->copies;
    pause(8);
    if (state.seed && state.random.one_in(2)) {  // at once, as a card may
        from ? memcpy(to, from, size) : memset(to, 0, size);
        return;
    }
    if (c->n == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 64;
        c->items = static_cast<Copies::Copy*>(realloc(c->items, c->capacity * sizeof *c->items));
    }
    c->items[c->n++] = {to, from, c->group, size};
    memset(to, 0xff, size);
}

static inline void wait_copies(u32 pending) {
    pause(4);
    Copies* c = me->copies;
    if (!c) return;
    while (c->first < c->n && c->items[c->first].group + pending < c->group) {
        const Copies::Copy& copy = c->items[c->first++];
        if (copy.from)
            memcpy(copy.to, copy.from, copy.size);
        else
            memset(copy.to, 0, copy.size);
    }
    if (c->first == c->n) c->first = c->n = 0;
}

static inline void reset_copies(Fiber* f) {
    if (f->copies) f->copies->first = f->copies->n = f->copies->group = 0;
}

}  // namespace emu

DEVICE void cp_async16(void* shared, const void* global) { emu::add_copy(shared, global, 16); }
template <int bytes> DEVICE void cp_async(void* shared, const void* global) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "what the card can copy");
    emu::add_copy(shared, global, bytes);
}
DEVICE void cp_async16_or_zero(void* shared, const void* global, bool take) {
    emu::add_copy(shared, take ? global : nullptr, 16);
}
DEVICE void cp_async_commit() {
    if (emu::me->copies) emu::me->copies->group++;
}
template <int pending> DEVICE void cp_async_wait() { emu::wait_copies(pending); }
