// Products of a few BF16 rows with large BF16 weights: a decode step on the CPU.
//
// Each weight is read once for a handful of rows, so memory sets the time. A core gets the most out of it by
// walking one row of the weight after the other, asking for it about 1 KB ahead (the hardware's own prefetcher
// stops at every page), and multiplying it with all rows of x meanwhile. Sums are in float32 and rounded once.
//
//   tiefsee_linear     out[R, O] = x[R, I] weight[O, I]^T
//   tiefsee_experts    out[N, D] = w2[e] (silu(w1[e] x) * w3[e] x), rows sorted by expert e
//   tiefsee_attention  absorbed latent attention of one query per request over pages of cached rows
//
// Plain C interface, called through ctypes; OpenMP, the runtime that torch has loaded already.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define TIEFSEE_X86 1
#endif

namespace {

using bf16 = uint16_t;

constexpr int64_t ROWS_AT_ONCE = 8;      // of x
constexpr int64_t PANEL = 4;             // rows of a weight
constexpr int64_t AHEAD = 512;           // values, 1 KB: measured, 4 KB is a tenth slower
constexpr int64_t CHUNK_BYTES = 1 << 20; // of weight per piece of work, 50 us of one core; 256 KB is 2 % slower

inline float widen(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline bf16 narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return bf16(bits >> 16 | 0x40);
    return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // nearest, ties to even
}

// A panel is up to PANEL consecutive rows of a weight. sums[w * ROWS_AT_ONCE + r] = weight row w . row r of x, for
// `rows` <= ROWS_AT_ONCE rows of x. Reading several rows at once loads x less often: it no longer fits the first cache.
using Panel = void (*)(const bf16 *weight, int64_t height, const bf16 *x, int64_t rows, int64_t ins, float *sums);

#if TIEFSEE_X86 && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
void panel_plain(const bf16 *weight, int64_t height, const bf16 *x, int64_t rows, int64_t ins, float *sums) {
    for (int64_t w = 0; w < height; ++w)
        for (int64_t r = 0; r < rows; ++r) {
            float sum = 0;
            const bf16 *a = weight + w * ins, *b = x + r * ins;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < ins; ++i) sum += widen(a[i]) * widen(b[i]);
            sums[w * ROWS_AT_ONCE + r] = sum;
        }
}

#if TIEFSEE_X86
#define TIEFSEE_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))

TIEFSEE_AVX512_BF16 inline __m512bh load(const bf16 *values) { return (__m512bh)_mm512_loadu_si512(values); }

TIEFSEE_AVX512_BF16 inline __m512bh load(const bf16 *values, __mmask32 mask) {
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, values);
}

template <int H, int R>
TIEFSEE_AVX512_BF16 void panel_of(const bf16 *weight, const bf16 *x, int64_t ins, float *sums) {
    __m512 acc[H][R];
    for (int w = 0; w < H; ++w)
        for (int r = 0; r < R; ++r) acc[w][r] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= ins; i += 32) {
        // Past the end of a row the next panel begins, H - 1 rows further on.
        const bf16 *ahead = weight + i + AHEAD + (i + AHEAD < ins ? 0 : (H - 1) * ins);
        __m512bh part[R];
        for (int r = 0; r < R; ++r) part[r] = load(x + r * ins + i);
        for (int w = 0; w < H; ++w) {
            _mm_prefetch(reinterpret_cast<const char *>(ahead + w * ins), _MM_HINT_T0);
            const __m512bh row = load(weight + w * ins + i);
            for (int r = 0; r < R; ++r) acc[w][r] = _mm512_dpbf16_ps(acc[w][r], row, part[r]);
        }
    }
    if (i < ins) {
        const __mmask32 mask = (__mmask32(1) << (ins - i)) - 1;
        for (int w = 0; w < H; ++w)
            for (int r = 0; r < R; ++r)
                acc[w][r] = _mm512_dpbf16_ps(acc[w][r], load(weight + w * ins + i, mask), load(x + r * ins + i, mask));
    }
    for (int w = 0; w < H; ++w)
        for (int r = 0; r < R; ++r) sums[w * ROWS_AT_ONCE + r] = _mm512_reduce_add_ps(acc[w][r]);
}

template <int R>
TIEFSEE_AVX512_BF16 void panel_rows(const bf16 *weight, int64_t height, const bf16 *x, int64_t ins, float *sums) {
    constexpr int H = R <= 4 ? 4 : 2; // at most 16 accumulators of the 32 registers
    int64_t w = 0;
    for (; w + H <= height; w += H) panel_of<H, R>(weight + w * ins, x, ins, sums + w * ROWS_AT_ONCE);
    for (; w < height; ++w) panel_of<1, R>(weight + w * ins, x, ins, sums + w * ROWS_AT_ONCE);
}

TIEFSEE_AVX512_BF16 void
panel_avx512_bf16(const bf16 *weight, int64_t height, const bf16 *x, int64_t rows, int64_t ins, float *sums) {
    switch (rows) {
    case 1: return panel_rows<1>(weight, height, x, ins, sums);
    case 2: return panel_rows<2>(weight, height, x, ins, sums);
    case 3: return panel_rows<3>(weight, height, x, ins, sums);
    case 4: return panel_rows<4>(weight, height, x, ins, sums);
    case 5: return panel_rows<5>(weight, height, x, ins, sums);
    case 6: return panel_rows<6>(weight, height, x, ins, sums);
    case 7: return panel_rows<7>(weight, height, x, ins, sums);
    default: return panel_rows<8>(weight, height, x, ins, sums);
    }
}
#endif

Panel choose(int which) {
#if TIEFSEE_X86
    if (which == 1) return panel_avx512_bf16;
#endif
    return panel_plain;
}

// Columns [first, last) of one product. More rows than ROWS_AT_ONCE find the panel in a near cache.
void product(Panel panel, const bf16 *x, const bf16 *weight, bf16 *out, int64_t rows, int64_t ins, int64_t outs,
             int64_t first, int64_t last) {
    float sums[PANEL * ROWS_AT_ONCE];
    for (int64_t o = first; o < last; o += PANEL)
        for (int64_t r = 0; r < rows; r += ROWS_AT_ONCE) {
            const int64_t some = std::min(ROWS_AT_ONCE, rows - r), height = std::min(PANEL, last - o);
            panel(weight + o * ins, height, x + r * ins, some, ins, sums);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) out[(r + k) * outs + o + w] = narrow(sums[w * ROWS_AT_ONCE + k]);
        }
}

// silu(gate) * up in columns [first, last) of the hidden rows; V4 clamps both (limit is infinite elsewhere).
void gated(Panel panel, const bf16 *x, const bf16 *w1, const bf16 *w3, bf16 *out, int64_t rows, int64_t ins,
           int64_t outs, int64_t first, int64_t last, float limit) {
    float gates[PANEL * ROWS_AT_ONCE], ups[PANEL * ROWS_AT_ONCE];
    for (int64_t o = first; o < last; o += PANEL)
        for (int64_t r = 0; r < rows; r += ROWS_AT_ONCE) {
            const int64_t some = std::min(ROWS_AT_ONCE, rows - r), height = std::min(PANEL, last - o);
            panel(w1 + o * ins, height, x + r * ins, some, ins, gates);
            panel(w3 + o * ins, height, x + r * ins, some, ins, ups);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) {
                    const float gate = std::min(gates[w * ROWS_AT_ONCE + k], limit);
                    const float up = std::clamp(ups[w * ROWS_AT_ONCE + k], -limit, limit);
                    out[(r + k) * outs + o + w] = narrow(gate / (1 + std::exp(-gate)) * up);
                }
        }
}

// out[r, c] = sum over s of probs[r * room + s] * row s [c], for c < rank, added to what is there; rows of a page.
#if TIEFSEE_X86 && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
void add_values(const bf16 *page, int64_t count, int64_t width, int64_t rank, const float *probs, int64_t room,
                int64_t rows, float *out) {
    constexpr int64_t COLUMNS = 32; // so that ROWS_AT_ONCE sums of them stay in registers
    for (int64_t c = 0; c < rank; c += COLUMNS) {
        const int64_t some = std::min(COLUMNS, rank - c);
        float sums[ROWS_AT_ONCE][COLUMNS] = {}, values[COLUMNS] = {};
        for (int64_t s = 0; s < count; ++s) {
            for (int64_t i = 0; i < some; ++i) values[i] = widen(page[s * width + c + i]);
            for (int64_t r = 0; r < ROWS_AT_ONCE; ++r) {
                const float prob = r < rows ? probs[r * room + s] : 0;
                for (int64_t i = 0; i < COLUMNS; ++i) sums[r][i] += prob * values[i];
            }
        }
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < some; ++i) out[r * rank + c + i] += sums[r][i];
    }
}

// Turns scores into probabilities; returns nothing that overflows: the largest is taken off first.
void softmax(float *scores, int64_t count, float scale) {
    float largest = -INFINITY, sum = 0;
    for (int64_t s = 0; s < count; ++s) largest = std::max(largest, scores[s]);
    for (int64_t s = 0; s < count; ++s) sum += scores[s] = std::exp((scores[s] - largest) * scale);
    for (int64_t s = 0; s < count; ++s) scores[s] /= sum;
}

inline int64_t rows_per_chunk(int64_t ins) { return std::max<int64_t>(1, CHUNK_BYTES / (2 * ins)); }

} // namespace

extern "C" {

// The best way this processor has: 1 with AVX512-BF16, 0 otherwise (plain loops, vectorised by the compiler).
int tiefsee_best() {
#if TIEFSEE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw")) return 1;
#endif
    return 0;
}

void tiefsee_linear(int which, int threads, const bf16 *x, const bf16 *weight, bf16 *out, int64_t rows, int64_t ins,
                    int64_t outs) {
    const Panel panel = choose(which);
    const int64_t size = rows_per_chunk(ins), chunks = (outs + size - 1) / size;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (chunks > 1)
    for (int64_t c = 0; c < chunks; ++c)
        product(panel, x, weight, out, rows, ins, outs, c * size, std::min(outs, (c + 1) * size));
}

// x[N, D] holds the rows of expert 0, then of expert 1 and so on, counts[e] of each; w1, w3 [E, F, D]; w2 [E, D, F];
// hidden[N, F] is room to work in.
void tiefsee_experts(int which, int threads, const bf16 *x, const int64_t *counts, int64_t experts, const bf16 *w1,
                     const bf16 *w2, const bf16 *w3, bf16 *hidden, bf16 *out, int64_t width, int64_t inner,
                     float limit) {
    const Panel panel = choose(which);
    const int64_t up_size = rows_per_chunk(2 * width), up_chunks = (inner + up_size - 1) / up_size;
    const int64_t down_size = rows_per_chunk(inner), down_chunks = (width + down_size - 1) / down_size;
#pragma omp parallel num_threads(threads)
    {
        int64_t before = 0;
        for (int64_t e = 0; e < experts; before += counts[e++]) {
            if (counts[e] == 0) continue;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t c = 0; c < up_chunks; ++c)
                gated(panel, x + before * width, w1 + e * inner * width, w3 + e * inner * width, hidden + before * inner,
                      counts[e], width, inner, c * up_size, std::min(inner, (c + 1) * up_size), limit);
        }
#pragma omp barrier
        before = 0;
        for (int64_t e = 0; e < experts; before += counts[e++]) {
            if (counts[e] == 0) continue;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t c = 0; c < down_chunks; ++c)
                product(panel, hidden + before * inner, w2 + e * inner * width, out + before * width, counts[e], inner,
                        width, c * down_size, std::min(width, (c + 1) * down_size));
        }
    }
}

// query[B, H, width] against the rows [first[b], last[b]) of request b, row s on page tables[b * pages + s / size] of
// pool[., size, width]; the first `rank` values of a row are also its value. out[B, H, rank].
void tiefsee_attention(int which, int threads, const bf16 *query, const bf16 *pool, const int64_t *tables,
                       int64_t pages, const int64_t *first, const int64_t *last, bf16 *out, int64_t requests,
                       int64_t heads, int64_t width, int64_t rank, int64_t size, float scale) {
    const Panel panel = choose(which);
    const int64_t groups = (heads + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (requests * groups > 1)
    for (int64_t task = 0; task < requests * groups; ++task) {
        const int64_t b = task / groups, head = task % groups * ROWS_AT_ONCE;
        const int64_t rows = std::min(ROWS_AT_ONCE, heads - head), room = last[b] - first[b];
        const bf16 *x = query + (b * heads + head) * width;
        std::vector<float> scores(rows * room), sums(ROWS_AT_ONCE * rank);
        auto each_page = [&](auto &&visit) { // (its rows, how many, which is the first)
            for (int64_t s = first[b]; s < last[b];) {
                const int64_t count = std::min(last[b] - s, size - s % size);
                visit(pool + (tables[b * pages + s / size] * size + s % size) * width, count, s - first[b]);
                s += count;
            }
        };
        each_page([&](const bf16 *page, int64_t count, int64_t before) {
            float products[PANEL * ROWS_AT_ONCE];
            for (int64_t s = 0; s < count; s += PANEL) {
                const int64_t height = std::min(PANEL, count - s);
                panel(page + s * width, height, x, rows, width, products);
                for (int64_t w = 0; w < height; ++w)
                    for (int64_t r = 0; r < rows; ++r)
                        scores[r * room + before + s + w] = products[w * ROWS_AT_ONCE + r];
            }
        });
        for (int64_t r = 0; r < rows; ++r) softmax(scores.data() + r * room, room, scale);
        each_page([&](const bf16 *page, int64_t count, int64_t before) {
            add_values(page, count, width, rank, scores.data() + before, room, rows, sums.data());
        });
        for (int64_t i = 0; i < rows * rank; ++i) out[(b * heads + head) * rank + i] = narrow(sums[i]);
    }
}
}
