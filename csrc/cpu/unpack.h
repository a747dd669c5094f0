// Codes of FP8, FP4 and INT8 weights to BF16 in registers. BF16 holds every code exactly: E4M3 has 4 significant bits,
// E2M1 2, and INT8 7 and a sign (-128 is a power of two). Scales are not applied here.
//
// A step is 64 bytes of codes. Its values come in PARTS registers in an order that costs no shuffle to restore: value
// k of part p is the column of which `arrange` puts x there: rows of x are brought into that order once. In any order
// the values of byte b lie in 128-bit lane b / 16, so that one register of four scales, a lane each, fits a step.
#pragma once

#include "bf16.h"

#include <immintrin.h>

#define TIEFSEE_PACKED __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")))

namespace {

constexpr int64_t STEP_BYTES = 64;

// 128 BF16 numbers, the upper and the lower bytes apart: what `vpermi2b` looks up by 7 bits of each code.
struct Magnitudes {
    alignas(64) uint8_t upper[128], lower[128];

    constexpr void set(int index, bf16 value) {
        upper[index] = uint8_t(value >> 8);
        lower[index] = uint8_t(value & 0xff);
    }
};

// The BF16 number significand * 2 ** exponent, for a significand below 256.
constexpr bf16 bf16_of(int significand, int exponent) {
    if (significand == 0) return 0;
    while (significand < 128) {
        significand *= 2;
        --exponent;
    }
    return bf16((exponent + 7 + 127) << 7 | (significand & 127));
}

constexpr Magnitudes e4m3_magnitudes() { // 4 bits of exponent, biased by 7, and 3 of significand; no infinities
    Magnitudes found{};
    for (int code = 0; code < 127; ++code) {
        const int exponent = code >> 3, fraction = code & 7;
        found.set(code, exponent == 0 ? bf16_of(fraction, -9) : bf16_of(8 + fraction, exponent - 10));
    }
    found.set(127, 0x7fc0); // not a number
    return found;
}

constexpr Magnitudes int8_magnitudes() {
    Magnitudes found{};
    for (int code = 0; code < 128; ++code) found.set(code, bf16_of(code, 0));
    return found;
}

constexpr Magnitudes E4M3 = e4m3_magnitudes(), INT8 = int8_magnitudes();

// What the two formats of a byte per value share: magnitudes by table, signs from the codes.
struct ByteCodes {
    static constexpr int64_t PARTS = 2, COLUMNS = 64;
    static void arrange(const bf16 *x, bf16 *out) {
        for (int64_t part = 0; part < PARTS; ++part)
            for (int64_t lane = 0; lane < 4; ++lane, out += 8)
                std::memcpy(out, x + lane * 16 + part * 8, 8 * sizeof(bf16));
    }

    const __m512i upper0, upper1, lower0, lower1, sign;

    TIEFSEE_PACKED explicit ByteCodes(const Magnitudes &table)
        : upper0(_mm512_load_si512(table.upper)), upper1(_mm512_load_si512(table.upper + 64)),
          lower0(_mm512_load_si512(table.lower)), lower1(_mm512_load_si512(table.lower + 64)),
          sign(_mm512_set1_epi8(char(0x80))) {}

    // The codes of up to 32 columns, so that part 0 of what they unpack to has the columns in order.
    TIEFSEE_PACKED static inline __m512i spread(const uint8_t *codes, int64_t columns) {
        const __mmask32 there = columns >= 32 ? ~__mmask32(0) : (__mmask32(1) << columns) - 1;
        const __m512i packed = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(there, codes));
        return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), packed);
    }
};

// a | (b & c), bit by bit.
constexpr int OR_AND = 0xf8;

struct Fp8 : ByteCodes {
    TIEFSEE_PACKED Fp8() : ByteCodes(E4M3) {}

    TIEFSEE_PACKED inline void unpack(__m512i codes, __m512i (&out)[PARTS]) const { // bit 7 is no part of an index
        __m512i upper = _mm512_permutex2var_epi8(upper0, codes, upper1);
        const __m512i lower = _mm512_permutex2var_epi8(lower0, codes, lower1);
        upper = _mm512_ternarylogic_epi32(upper, codes, sign, OR_AND);
        out[0] = _mm512_unpacklo_epi8(lower, upper);
        out[1] = _mm512_unpackhi_epi8(lower, upper);
    }
};

struct Int8 : ByteCodes {
    TIEFSEE_PACKED Int8() : ByteCodes(INT8) {}

    TIEFSEE_PACKED inline void unpack(__m512i codes, __m512i (&out)[PARTS]) const {
        const __m512i size = _mm512_abs_epi8(codes); // 128 stays 0x80 and finds 0: it gets its exponent by itself
        __m512i upper = _mm512_permutex2var_epi8(upper0, size, upper1);
        const __m512i lower = _mm512_permutex2var_epi8(lower0, size, lower1);
        upper = _mm512_mask_mov_epi8(upper, _mm512_movepi8_mask(size), _mm512_set1_epi8(0x43));
        upper = _mm512_ternarylogic_epi32(upper, codes, sign, OR_AND);
        out[0] = _mm512_unpacklo_epi8(lower, upper);
        out[1] = _mm512_unpackhi_epi8(lower, upper);
    }
};

struct Fp4 { // two columns a byte, the lower half first
    static constexpr int64_t PARTS = 4, COLUMNS = 128;
    TIEFSEE_PACKED static void arrange(const bf16 *x, bf16 *out) { // part p is every fourth column from p on
        for (int64_t k = 0; k < 32; k += 8) {
            const __m512i fours = _mm512_loadu_si512(x + 4 * k);
            for (int64_t part = 0; part < PARTS; ++part)
                _mm_storeu_si128(reinterpret_cast<__m128i *>(out + part * 32 + k),
                                 _mm512_cvtepi64_epi16(_mm512_srli_epi64(fours, unsigned(16 * part))));
        }
    }

    const __m512i table;

    TIEFSEE_PACKED static __m512i values() {
        // Twice: `vpermw` looks at five bits, of which the fifth belongs to the next code.
        alignas(64) static constexpr bf16 E2M1[32] = {
            0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, // 0, 0.5, 1, 1.5, 2, 3, 4, 6
            0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
            0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
            0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
        };
        return _mm512_load_si512(E2M1);
    }

    TIEFSEE_PACKED Fp4() : table(values()) {}

    TIEFSEE_PACKED static inline __m512i spread(const uint8_t *codes, int64_t columns) { // see ByteCodes
        const __mmask16 there = columns >= 32 ? ~__mmask16(0) : (__mmask16(1) << columns / 2) - 1;
        const __m512i bytes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, codes));
        return _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)); // the upper half of a byte begins its own word
    }

    TIEFSEE_PACKED inline void unpack(__m512i codes, __m512i (&out)[PARTS]) const {
        out[0] = _mm512_permutexvar_epi16(codes, table);
        out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table);
        out[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table);
        out[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table);
    }
};

} // namespace
