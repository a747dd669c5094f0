// FP8, FP4 and INT8 weights unpacked to BF16: where many rows share the work, and where a head's matrix is read the
// other way round. A value is what the definition's `dense` makes of it, bit by bit.
//
//   tiefsee_unpack           rows of a weight as BF16
//   tiefsee_packed_absorb    out[T, H, C] = x[T, H, N] W[h][N, C]: queries into latent space
//
// The plain C interface and the threads are as in products.cpp.

#if defined(__x86_64__) && defined(__linux__)

#include "packed.h"

#include <vector>

namespace {

// From here on no code but 0 makes a number below 2 ** -126, of which the processor's conversion would make 0: the
// smallest is E4M3's 2 ** -9.
constexpr float SMALLEST_SCALE = 0x1p-117f;

// float32 products rounded to nearest, ties to even, in the upper half of each: the conversion in whole numbers.
TIEFSEE_PACKED inline __m512i rounded(__m512i values, __m512 scale) {
    const __m512 exact = _mm512_mul_ps(_mm512_castsi512_ps(values), scale);
    const __m512i bits = _mm512_castps_si512(exact);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const __mmask16 no_number = _mm512_cmp_ps_mask(exact, exact, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(near, no_number, _mm512_set1_epi32(0x7fc00000));
}

// 32 BF16 numbers times a scale.
TIEFSEE_PACKED inline __m512i scaled(__m512i values, float scale) {
    const __m512 by = _mm512_set1_ps(scale);
    if (scale >= SMALLEST_SCALE) {
        // Value i to the upper half of float32 i, and from the sixteenth on.
        const __m512i counted = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512 wide[2];
        for (int half = 0; half < 2; ++half) {
            const __m512i from = _mm512_slli_epi32(_mm512_add_epi32(counted, _mm512_set1_epi32(16 * half)), 16);
            wide[half] = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, values));
        }
        return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(wide[1], by), _mm512_mul_ps(wide[0], by));
    }
    const __m512i even = rounded(_mm512_slli_epi32(values, 16), by);
    const __m512i odd = rounded(_mm512_and_si512(values, _mm512_set1_epi32(int(0xffff0000))), by);
    return _mm512_mask_mov_epi16(_mm512_srli_epi32(even, 16), 0xaaaaaaaa, odd);
}

// Up to 32 columns of a row, code times scale, as the definition's `dense` has them.
template <class F>
TIEFSEE_PACKED inline void unpack_some(const F &format, const uint8_t *codes, float scale, int64_t columns, bf16 *out) {
    prefetch(codes + AHEAD_BYTES);
    __m512i values[F::PARTS];
    format.unpack(F::spread(codes, columns), values);
    _mm512_mask_storeu_epi16(out, ~__mmask32(0) >> (32 - columns), scaled(values[0], scale));
}

template <class F> TIEFSEE_PACKED void unpack_row(const Matrix &m, int64_t o, int64_t ins, bf16 *out) {
    const F format;
    const uint8_t *codes = m.row(o);
    const float *scales = m.row_scales(o);
    int64_t i = 0;
    for (; i + 32 <= ins; i += 32) unpack_some(format, codes + F::bytes(i), scales[F::scale_of(i)], 32, out + i);
    if (i < ins) unpack_some(format, codes + F::bytes(i), scales[F::scale_of(i)], ins - i, out + i);
}

template <class F> void unpack(int threads, const Matrix &m, int64_t first, int64_t count, int64_t ins, bf16 *out) {
#pragma omp parallel for schedule(static) num_threads(threads) if (count * m.bytes > CHUNK_BYTES)
    for (int64_t o = 0; o < count; ++o) unpack_row<F>(m, first + o, ins, out + o * ins);
}

// out[r, c] = sum over n of x[r, n] weight[n, c] for R rows; x as pairs of n. Both rows of a pair are interleaved in
// registers.
template <int R>
TIEFSEE_PACKED void columns_of(const bf16 *weight, int64_t pairs, int64_t width, const uint32_t *x, bf16 *out,
                               int64_t stride) {
    for (int64_t c = 0; c < width; c += 32) {
        const int64_t left = std::min<int64_t>(width - c, 32);
        const __mmask32 there = ~__mmask32(0) >> (32 - left);
        __m512 low[R], high[R];
        for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_setzero_ps();
        for (int64_t n = 0; n < pairs; ++n) {
            const __m512i first = _mm512_maskz_loadu_epi16(there, weight + 2 * n * width + c);
            const __m512i second = _mm512_maskz_loadu_epi16(there, weight + (2 * n + 1) * width + c);
            const __m512bh lower = (__m512bh)_mm512_unpacklo_epi16(first, second);
            const __m512bh upper = (__m512bh)_mm512_unpackhi_epi16(first, second);
            for (int r = 0; r < R; ++r) {
                const __m512bh pair = (__m512bh)_mm512_set1_epi32(int(x[r * pairs + n]));
                low[r] = _mm512_dpbf16_ps(low[r], lower, pair);
                high[r] = _mm512_dpbf16_ps(high[r], upper, pair);
            }
        }
        // Four columns from each in turn.
        const __m512i turns = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i later = _mm512_add_epi32(turns, _mm512_set1_epi32(8));
        alignas(64) float sums[32];
        for (int r = 0; r < R; ++r) {
            _mm512_store_ps(sums, _mm512_permutex2var_ps(low[r], turns, high[r]));
            _mm512_store_ps(sums + 16, _mm512_permutex2var_ps(low[r], later, high[r]));
            for (int64_t i = 0; i < left; ++i) out[r * stride + c + i] = narrow(sums[i]);
        }
    }
}

template <class F>
void absorb(int threads, const Matrix &m, const bf16 *x, int64_t rows, int64_t row_stride, int64_t heads,
            int64_t head_stride, int64_t ins, int64_t head_rows, bf16 *out, int64_t out_width, int64_t width) {
    const int64_t pairs = (ins + 1) / 2, stride = heads * out_width;
#pragma omp parallel num_threads(threads) if (heads > 1)
    {
        const Room weight(2 * pairs * width);
        std::vector<uint32_t> x_pairs(rows * pairs);
        if (ins % 2) std::fill_n(weight.values + ins * width, width, bf16(0));
#pragma omp for schedule(dynamic, 1)
        for (int64_t h = 0; h < heads; ++h) {
            for (int64_t n = 0; n < ins; ++n) unpack_row<F>(m, h * head_rows + n, width, weight.values + n * width);
            for (int64_t r = 0; r < rows; ++r)
                std::memcpy(&x_pairs[r * pairs], x + r * row_stride + h * head_stride, ins * sizeof(bf16));
            for (int64_t r = 0, some; r < rows; r += some) {
                some = rows - r >= 4 ? 4 : 1;
                const auto columns = some == 4 ? columns_of<4> : columns_of<1>;
                columns(weight.values, pairs, width, &x_pairs[r * pairs], out + r * stride + h * out_width, stride);
            }
        }
    }
}

} // namespace

extern "C" {

// `count` rows of a weight, from `first` on.
void tiefsee_unpack(int threads, int format, const uint8_t *codes, const float *scales, int64_t row_block,
                    int64_t first, int64_t count, int64_t ins, bf16 *out) {
    with_format(format, [&](auto named) {
        using F = typename decltype(named)::Format;
        unpack<F>(threads, Matrix::of<F>(codes, scales, row_block, ins), first, count, ins, out);
    });
}

// x[T, H, N] with strides from row to row and from head to head; head h has N rows of the weight from h * head_rows on,
// of `width` columns each, which become the first of the `out_width` columns of out[T, H, .].
void tiefsee_packed_absorb(int threads, int format, const uint8_t *codes, const float *scales, int64_t row_block,
                           const bf16 *x, int64_t rows, int64_t row_stride, int64_t heads, int64_t head_stride,
                           int64_t ins, int64_t head_rows, bf16 *out, int64_t out_width, int64_t width) {
    with_format(format, [&](auto named) {
        using F = typename decltype(named)::Format;
        absorb<F>(threads, Matrix::of<F>(codes, scales, row_block, width), x, rows, row_stride, heads, head_stride, ins,
                  head_rows, out, out_width, width);
    });
}
}

#endif
