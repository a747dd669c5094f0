// Products of a few BF16 rows with FP8, FP4 and INT8 weights on the CPU, unpacked in registers.
//
// A decode step is bound by memory, and a packed weight is a half or a third of a BF16 one: it is read once, as it
// lies, and never written anywhere unpacked. Codes become BF16 exactly (unpack.h); the products of one block of
// columns are summed in float32 and then multiplied by the block's scale, so that nothing but the result is rounded to
// BF16. With many rows it pays to unpack for torch instead (unpacked.cpp).
//
//   tiefsee_packed_linear    out[R, G, O] = x[R, G, I] W[g][O, I]^T: linears, block-diagonal ones, heads
//   tiefsee_packed_experts   out[N, D] = w2[e] (silu(w1[e] x) * w3[e] x), rows sorted by expert e
//
// The plain C interface and the threads are as in products.cpp.

#if defined(__x86_64__) && defined(__linux__)

#include "experts.h"
#include "packed.h"

namespace {

constexpr int64_t ROWS_AT_ONCE = 8; // of x
constexpr int64_t PANEL = 16;       // rows of a weight that several groups of rows of x find in a near cache

// `rows` <= ROWS_AT_ONCE rows of x in the order in which a kernel reads them: [step][row][part][32], padded with zeros.
template <class F> void arrange(const bf16 *x, int64_t stride, int64_t rows, int64_t ins, bf16 *out) {
    bf16 last[F::COLUMNS];
    for (int64_t begin = 0; begin < ins; begin += F::COLUMNS)
        for (int64_t r = 0; r < rows; ++r) {
            const bf16 *from = x + r * stride + begin;
            if (ins - begin < F::COLUMNS) {
                std::fill(std::copy(from, x + r * stride + ins, last), std::end(last), bf16(0));
                from = last;
            }
            F::arrange(from, out);
            out += F::COLUMNS;
        }
}

// The next scales of a row, each in the lanes of its columns.
template <class F> TIEFSEE_PACKED inline __m512 lane_scales(const float *scales, int64_t left) {
    if constexpr (F::SCALES == 1) return _mm512_set1_ps(*scales);
    constexpr int ALL = (1 << F::SCALES) - 1;
    const __mmask8 there = left >= F::SCALES ? ALL : ALL >> (F::SCALES - left);
    const __m512i lanes = F::SCALES == 4 ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                                         : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(_mm_maskz_loadu_ps(there, scales)));
}

// sums[w * ROWS_AT_ONCE + r] = row o + w of the weight . row r of x, for H rows of the weight. The sums of a block of
// columns are scaled before they are added to the row's; without steps, at the end.
template <class F, int H, int R>
TIEFSEE_PACKED void panel_of(const Matrix &m, int64_t o, const bf16 *x, float *sums) {
    const F format;
    const uint8_t *codes = m.row(o);
    const float *scales[H];
    for (int w = 0; w < H; ++w) scales[w] = m.row_scales(o + w);
    __m512 acc[H][R];
    for (int w = 0; w < H; ++w)
        for (int r = 0; r < R; ++r) acc[w][r] = _mm512_setzero_ps();
    for (int64_t i = 0, column = 0; i < m.bytes; i += STEP_BYTES, column += F::COLUMNS, x += R * F::PARTS * 32) {
        const __mmask64 all = ~__mmask64(0);
        const int64_t left = m.bytes - i, block = F::scale_of(column);
        const __mmask64 there = left >= STEP_BYTES ? all : all >> (STEP_BYTES - left);
        // Past the end of a row the next panel begins, H - 1 rows further on.
        const uint8_t *ahead = codes + i + AHEAD_BYTES + (AHEAD_BYTES < left ? 0 : (H - 1) * m.bytes);
        for (int w = 0; w < H; ++w) {
            prefetch(ahead + w * m.bytes);
            __m512i values[F::PARTS];
            format.unpack(_mm512_maskz_loadu_epi8(there, codes + w * m.bytes + i), values);
            __m512 part[R];
            for (int r = 0; r < R; ++r) part[r] = F::STEPS ? _mm512_setzero_ps() : acc[w][r];
            for (int p = 0; p < F::PARTS; ++p)
                for (int r = 0; r < R; ++r)
                    part[r] = _mm512_dpbf16_ps(part[r], (__m512bh)values[p],
                                               (__m512bh)_mm512_load_si512(x + (r * F::PARTS + p) * 32));
            // The next panel's; those of FP4 are a fifth of all bytes.
            if (F::SCALES == 4) prefetch(scales[w] + block + H * m.scales_of_row);
            const __m512 scale =
                F::STEPS ? lane_scales<F>(scales[w] + block, m.scales_of_row - block) : _mm512_setzero_ps();
            for (int r = 0; r < R; ++r) acc[w][r] = F::STEPS ? _mm512_fmadd_ps(part[r], scale, acc[w][r]) : part[r];
        }
    }
    for (int w = 0; w < H; ++w)
        for (int r = 0; r < R; ++r)
            sums[w * ROWS_AT_ONCE + r] = _mm512_reduce_add_ps(acc[w][r]) * (F::STEPS ? 1.0f : *scales[w]);
}

template <class F, int R>
TIEFSEE_PACKED void panel_rows(const Matrix &m, int64_t o, int64_t height, const bf16 *x, float *sums) {
    constexpr int H = R <= 4 ? 4 : R <= 5 || F::STEPS == 0 ? 2 : 1; // R (H + 1) sums and up to 9 others in 32 registers
    int64_t w = 0;
    for (; w + H <= height; w += H) panel_of<F, H, R>(m, o + w, x, sums + w * ROWS_AT_ONCE);
    for (; w < height; ++w) panel_of<F, 1, R>(m, o + w, x, sums + w * ROWS_AT_ONCE);
}

template <class F> void panel(const Matrix &m, int64_t o, int64_t height, const bf16 *x, int64_t rows, float *sums) {
    switch (rows) {
    case 1: return panel_rows<F, 1>(m, o, height, x, sums);
    case 2: return panel_rows<F, 2>(m, o, height, x, sums);
    case 3: return panel_rows<F, 3>(m, o, height, x, sums);
    case 4: return panel_rows<F, 4>(m, o, height, x, sums);
    case 5: return panel_rows<F, 5>(m, o, height, x, sums);
    case 6: return panel_rows<F, 6>(m, o, height, x, sums);
    case 7: return panel_rows<F, 7>(m, o, height, x, sums);
    default: return panel_rows<F, 8>(m, o, height, x, sums);
    }
}

// Rows of x arranged, a few at a time: as many times as it takes, and about equally many each time.
template <class F> struct Rows {
    int64_t rows, ins, each;

    Rows(int64_t rows_, int64_t ins_) : rows(rows_), ins(ins_) {
        const int64_t times = std::max<int64_t>((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, 1);
        each = std::max<int64_t>((rows + times - 1) / times, 1);
    }
    int64_t room() const { return rows * F::padded(ins); }
    void fill(const bf16 *x, int64_t stride, bf16 *out) const {
        for (int64_t r = 0; r < rows; r += each)
            arrange<F>(x + r * stride, stride, std::min(each, rows - r), ins, out + r * F::padded(ins));
    }
    // visit(first row, how many, where they are)
    template <class V> void visit(const bf16 *arranged, V &&visit) const {
        for (int64_t r = 0; r < rows; r += each) visit(r, std::min(each, rows - r), arranged + r * F::padded(ins));
    }
};

// Columns [first, last) of one product; row o of the weight gives column o.
template <class F>
void product(const Rows<F> &rows, const bf16 *x, const Matrix &m, bf16 *out, int64_t stride, int64_t first,
             int64_t last) {
    float sums[PANEL * ROWS_AT_ONCE];
    for (int64_t o = first; o < last; o += PANEL)
        rows.visit(x, [&](int64_t r, int64_t some, const bf16 *part) {
            const int64_t height = std::min(PANEL, last - o);
            panel<F>(m, o, height, part, some, sums);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) out[(r + k) * stride + o + w] = narrow(sums[w * ROWS_AT_ONCE + k]);
        });
}

// silu(gate) * up in columns [first, last) of the hidden rows.
template <class F>
void gated(const Rows<F> &rows, const bf16 *x, const Matrix &w1, const Matrix &w3, bf16 *out, int64_t stride,
           int64_t first, int64_t last, float limit) {
    float gates[PANEL * ROWS_AT_ONCE], ups[PANEL * ROWS_AT_ONCE];
    for (int64_t o = first; o < last; o += PANEL)
        rows.visit(x, [&](int64_t r, int64_t some, const bf16 *part) {
            const int64_t height = std::min(PANEL, last - o);
            panel<F>(w1, o, height, part, some, gates);
            panel<F>(w3, o, height, part, some, ups);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) {
                    const int64_t i = w * ROWS_AT_ONCE + k;
                    out[(r + k) * stride + o + w] = narrow(swiglu(gates[i], ups[i], limit));
                }
        });
}

inline int64_t rows_per_chunk(int64_t bytes) { return std::max(PANEL, CHUNK_BYTES / bytes / PANEL * PANEL); }

template <class F>
void linear(int threads, const Matrix &m, const bf16 *x, int64_t rows, int64_t stride, int64_t groups,
            int64_t group_stride, int64_t ins, int64_t first, int64_t group_rows, bf16 *out, int64_t outs) {
    const Rows<F> few(rows, ins);
    const Room arranged(groups * few.room());
    const int64_t size = rows_per_chunk(m.bytes), chunks = (outs + size - 1) / size;
#pragma omp parallel num_threads(threads) if (groups * chunks > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t g = 0; g < groups; ++g) few.fill(x + g * group_stride, stride, arranged.values + g * few.room());
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < groups * chunks; ++task) {
            const int64_t g = task / chunks, from = task % chunks * size, row = first + g * group_rows;
            product<F>(few, arranged.values + g * few.room(), m, out + g * outs - row, groups * outs, row + from,
                       row + std::min(outs, from + size));
        }
    }
}

// The weights of all experts, one behind the other.
struct Stack {
    Matrix first;
    int64_t outs;

    Matrix operator[](int64_t e) const {
        Matrix found = first;
        found.codes += e * outs * first.bytes;
        found.scales += e * ((outs + first.row_block - 1) / first.row_block) * first.scales_of_row;
        return found;
    }
};

template <class F>
void experts(int threads, const bf16 *x, const int64_t *counts, int64_t number, const Stack &w1, const Stack &w2,
             const Stack &w3, bf16 *hidden, bf16 *out, int64_t width, int64_t inner, float limit) {
    const std::vector<Expert> busy = busy_experts(counts, number);
    const int64_t rows = busy.empty() ? 0 : busy.back().first + busy.back().count;
    const int64_t wide = F::padded(width), small = F::padded(inner);
    const Room x_room(rows * wide), hidden_room(rows * small);
    each_expert(
        threads, int64_t(busy.size()), {inner, rows_per_chunk(2 * w1.first.bytes)},
        {width, rows_per_chunk(w2.first.bytes)}, [] { return 0; },
        [&](int64_t b) {
            const Expert &e = busy[b];
            Rows<F>(e.count, width).fill(x + e.first * width, width, x_room.values + e.first * wide);
        },
        [&](int64_t b, int64_t from, int64_t to) {
            const Expert &e = busy[b];
            gated<F>({e.count, width}, x_room.values + e.first * wide, w1[e.index], w3[e.index],
                     hidden + e.first * inner, inner, from, to, limit);
        },
        [&](int64_t b) {
            const Expert &e = busy[b];
            Rows<F>(e.count, inner).fill(hidden + e.first * inner, inner, hidden_room.values + e.first * small);
        },
        [&](int64_t b, int64_t from, int64_t to) {
            const Expert &e = busy[b];
            product<F>({e.count, inner}, hidden_room.values + e.first * small, w2[e.index], out + e.first * width,
                       width, from, to);
        });
}

} // namespace

extern "C" {

// 1 if this processor has what the kernels need.
int tiefsee_packed_best() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi");
}

// x[R, G, I] with strides from row to row and from group to group. Group g multiplies `outs` rows of the weight, the
// first of which is first + g * group_rows.
void tiefsee_packed_linear(int threads, int format, const uint8_t *codes, const float *scales, int64_t row_block,
                           const bf16 *x, int64_t rows, int64_t stride, int64_t groups, int64_t group_stride,
                           int64_t ins, int64_t first, int64_t group_rows, bf16 *out, int64_t outs) {
    with_format(format, [&](auto named) {
        using F = typename decltype(named)::Format;
        linear<F>(threads, Matrix::of<F>(codes, scales, row_block, ins), x, rows, stride, groups, group_stride, ins,
                  first, group_rows, out, outs);
    });
}

// As `tiefsee_experts` in products.cpp; the three stacks have one format and one block.
void tiefsee_packed_experts(int threads, int format, const uint8_t *codes1, const float *scales1, int64_t row_block,
                            const uint8_t *codes2, const float *scales2, const uint8_t *codes3, const float *scales3,
                            const bf16 *x, const int64_t *counts, int64_t number, bf16 *hidden, bf16 *out,
                            int64_t width, int64_t inner, float limit) {
    with_format(format, [&](auto named) {
        using F = typename decltype(named)::Format;
        experts<F>(threads, x, counts, number, {Matrix::of<F>(codes1, scales1, row_block, width), inner},
                   {Matrix::of<F>(codes2, scales2, row_block, inner), width},
                   {Matrix::of<F>(codes3, scales3, row_block, width), inner}, hidden, out, width, inner, limit);
    });
}
}

#else
extern "C" int tiefsee_packed_best() { return 0; }
#endif
