// FP8, FP4 and INT8 weights as the kernels see them: codes, scales, and which scale belongs to which code.
#pragma once

#include "unpack.h"

#include <new>

namespace {

constexpr int64_t AHEAD_BYTES = 2048;      // prefetched: with 1 KB INT8 and blocks of 32 are a fifth slower
constexpr int64_t CHUNK_BYTES = 512 << 10; // of codes per piece of work

// What the kernels are made for: codes, and how they are scaled. SCALES scales of a row belong to STEPS steps; without
// steps a row has one scale.
template <class C, int64_t STEPS_, int64_t SCALES_> struct Format : C {
    static constexpr int64_t STEPS = STEPS_, SCALES = SCALES_;

    static int64_t padded(int64_t ins) { return (ins + C::COLUMNS - 1) / C::COLUMNS * C::COLUMNS; } // columns of x
    static int64_t bytes(int64_t columns) { return columns * STEP_BYTES / C::COLUMNS; }
    static int64_t scale_of(int64_t column) { return STEPS ? column * SCALES / (STEPS * C::COLUMNS) : 0; }
};
using Fp8Blocks128 = Format<Fp8, 2, 1>;
using Fp8Blocks32 = Format<Fp8, 1, 2>;
using Fp4Blocks32 = Format<Fp4, 1, 4>;
using Int8Rows = Format<Int8, 0, 0>;

// One weight, or one of a stack. Row o has `bytes` of codes, and its `scales_of_row` scales with row_block - 1 others.
struct Matrix {
    const uint8_t *codes;
    const float *scales;
    int64_t bytes, scales_of_row, row_block;

    template <class F> static Matrix of(const uint8_t *codes, const float *scales, int64_t row_block, int64_t ins) {
        return {codes, scales, F::bytes(ins), F::scale_of(ins - 1) + 1, row_block};
    }
    const uint8_t *row(int64_t o) const { return codes + o * bytes; }
    const float *row_scales(int64_t o) const { return scales + o / row_block * scales_of_row; }
};

inline void prefetch(const void *from) { _mm_prefetch(static_cast<const char *>(from), _MM_HINT_T0); }

// Room for BF16 numbers that are read a register at a time. Were it not to begin with a cache line, every read would
// touch two: measured, half the speed from five rows on.
struct Room {
    static constexpr std::align_val_t LINE{64};
    bf16 *const values;

    explicit Room(int64_t size) : values(static_cast<bf16 *>(::operator new(size * sizeof(bf16), LINE))) {}
    Room(const Room &) = delete;
    ~Room() { ::operator delete(values, LINE); }
};

template <class F> struct Named { using Format = F; };

// Calls `use` with the format that the caller's number means (ops/packed.py has the same list).
template <class U> void with_format(int number, U &&use) {
    switch (number) {
    case 0: return use(Named<Fp8Blocks128>{});
    case 1: return use(Named<Fp8Blocks32>{});
    case 2: return use(Named<Fp4Blocks32>{});
    case 3: return use(Named<Int8Rows>{});
    }
}

} // namespace
