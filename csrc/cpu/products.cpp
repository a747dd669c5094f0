// Products of BF16 rows with large BF16 weights on the CPU: decode, and the experts of a prefill.
//
// A decode step reads each weight once for a handful of rows, so memory sets the time. A core gets the most out of
// it by walking along a few rows of the weight, asking for them about 1 KB ahead (the hardware's own prefetcher stops
// at every page), and multiplying them with all rows of x meanwhile. With more rows, AMX multiplies tiles of 16 rows
// of the weight, just as they lie in memory, with tiles of 16 rows of x. Sums are in float32 and rounded once.
//
//   tiefsee_linear     out[R, O] = x[R, I] weight[O, I]^T
//   tiefsee_experts    out[N, D] = w2[e] (silu(w1[e] x) * w3[e] x), rows sorted by expert e
//   tiefsee_attention  absorbed latent attention of one query per request over pages of cached rows
//
// Other formats: packed.cpp. Plain C interface, called through ctypes; OpenMP, the runtime that torch has loaded
// already. Processors without AVX512-BF16 have no way here (tiefsee_best is 0), and torch computes everything.

#if defined(__x86_64__) && defined(__linux__)

#include "bf16.h"
#include "experts.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

namespace {

constexpr int64_t ROWS_AT_ONCE = 8;      // of x
constexpr int64_t PANEL = 4;             // rows of a weight
constexpr int64_t AHEAD = 512;           // values, 1 KB: measured, 4 KB is a tenth slower
constexpr int64_t CHUNK_BYTES = 1 << 20; // of weight per piece of work, 50 us of one core; 256 KB is 3 % slower

// A panel is up to PANEL consecutive rows of a weight. sums[w * ROWS_AT_ONCE + r] = weight row w . row r of x, for
// `rows` <= ROWS_AT_ONCE rows of x. Reading several rows at once loads x less often: it no longer fits the first cache.
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
panel(const bf16 *weight, int64_t height, const bf16 *x, int64_t rows, int64_t ins, float *sums) {
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
enum Way { NONE = 0, AVX512 = 1, AMX = 2 };

// Columns [first, last) of one product. More rows than ROWS_AT_ONCE find the panel in a near cache.
void product(const bf16 *x, const bf16 *weight, bf16 *out, int64_t rows, int64_t ins, int64_t outs,
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

// silu(gate) * up in columns [first, last) of the hidden rows.
void gated(const bf16 *x, const bf16 *w1, const bf16 *w3, bf16 *out, int64_t rows, int64_t ins,
           int64_t outs, int64_t first, int64_t last, float limit) {
    float gates[PANEL * ROWS_AT_ONCE], ups[PANEL * ROWS_AT_ONCE];
    for (int64_t o = first; o < last; o += PANEL)
        for (int64_t r = 0; r < rows; r += ROWS_AT_ONCE) {
            const int64_t some = std::min(ROWS_AT_ONCE, rows - r), height = std::min(PANEL, last - o);
            panel(w1 + o * ins, height, x + r * ins, some, ins, gates);
            panel(w3 + o * ins, height, x + r * ins, some, ins, ups);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) {
                    const int64_t i = w * ROWS_AT_ONCE + k;
                    out[(r + k) * outs + o + w] = narrow(swiglu(gates[i], ups[i], limit));
                }
        }
}

// ---------------------------------------------------------------------------------------------------------- AMX

constexpr int64_t TILE = 16;      // rows of a tile, of the weight or of x
constexpr int64_t TILE_INS = 32;  // BF16 values in a tile's row
constexpr int64_t AMX_ROWS = 5;   // fewer rows of x are faster without tiles

inline int64_t packed_rows(int64_t rows) { return (rows + TILE - 1) / TILE * TILE; }

// x[rows, ins] as tiles [rows / 16][ins / 32][16 pairs of values][16 rows], which is how a product takes its right side.
void pack(const bf16 *x, int64_t rows, int64_t ins, uint32_t *out) {
    for (int64_t n = 0; n < rows; n += TILE)
        for (int64_t i = 0; i < ins; i += TILE_INS, out += TILE * TILE)
            for (int64_t r = 0; r < TILE; ++r) {
                uint32_t pairs[TILE] = {};
                if (n + r < rows) std::memcpy(pairs, x + (n + r) * ins + i, sizeof pairs);
                for (int64_t p = 0; p < TILE; ++p) out[p * TILE + r] = pairs[p];
            }
}

#define TIEFSEE_TILES __attribute__((target("amx-tile,amx-bf16")))

struct TileShapes { // what `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// In static memory: the intrinsic does not tell the compiler that all of it is read.
alignas(64) const TileShapes SHAPES;

// A thread's tiles, for as long as this lives.
struct Tiles {
    TIEFSEE_TILES explicit Tiles(bool wanted) : used(wanted) {
        if (used) _tile_loadconfig(&SHAPES);
    }
    TIEFSEE_TILES ~Tiles() {
        if (used) _tile_release();
    }
    const bool used;
};

// sums[16 H][16 N] (row stride 32) of 16 H rows of the weight with 16 N packed rows of x.
template <int H, int N>
TIEFSEE_TILES void tile_block(const bf16 *weight, const uint32_t *x, int64_t ins, float *sums, bool fetch) {
    const int64_t next = ins / TILE_INS * TILE * TILE; // from one block of 16 rows of x to the next
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (H > 1) _tile_zero(2);
    if constexpr (H > 1 && N > 1) _tile_zero(3);
    for (int64_t i = 0; i < ins; i += TILE_INS, x += TILE * TILE) {
        if (fetch)
            for (int64_t r = 0; r < H * TILE; ++r)
                _mm_prefetch(reinterpret_cast<const char *>(weight + r * ins + i + AHEAD), _MM_HINT_T0);
        _tile_loadd(4, weight + i, ins * 2);
        if constexpr (H > 1) _tile_loadd(5, weight + TILE * ins + i, ins * 2);
        _tile_loadd(6, x, TILE * 4);
        if constexpr (N > 1) _tile_loadd(7, x + next, TILE * 4);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (H > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (H > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }
    constexpr int64_t STRIDE = 2 * TILE;
    _tile_stored(0, sums, STRIDE * 4);
    if constexpr (N > 1) _tile_stored(1, sums + TILE, STRIDE * 4);
    if constexpr (H > 1) _tile_stored(2, sums + TILE * STRIDE, STRIDE * 4);
    if constexpr (H > 1 && N > 1) _tile_stored(3, sums + TILE * STRIDE + TILE, STRIDE * 4);
}

inline void tile_sums(const bf16 *weight, int64_t height, const uint32_t *x, int64_t rows, int64_t ins, float *sums,
                      bool fetch) {
    if (height > TILE)
        rows > TILE ? tile_block<2, 2>(weight, x, ins, sums, fetch) : tile_block<2, 1>(weight, x, ins, sums, fetch);
    else
        rows > TILE ? tile_block<1, 2>(weight, x, ins, sums, fetch) : tile_block<1, 1>(weight, x, ins, sums, fetch);
}
// `product` with tiles: x is packed; ins is a multiple of 32, and first and last are multiples of 16.
void tile_product(const uint32_t *x, const bf16 *weight, bf16 *out, int64_t rows, int64_t ins, int64_t outs,
                  int64_t first, int64_t last) {
    alignas(64) float sums[4 * TILE * TILE];
    for (int64_t o = first; o < last; o += 2 * TILE)
        for (int64_t n = 0; n < rows; n += 2 * TILE) {
            const int64_t height = std::min(2 * TILE, last - o), some = std::min(2 * TILE, rows - n);
            tile_sums(weight + o * ins, height, x + n * ins / 2, some, ins, sums, n == 0);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) out[(n + k) * outs + o + w] = narrow(sums[w * 2 * TILE + k]);
        }
}

// `gated` with tiles.
void tile_gated(const uint32_t *x, const bf16 *w1, const bf16 *w3, bf16 *out, int64_t rows, int64_t ins, int64_t outs,
                int64_t first, int64_t last, float limit) {
    alignas(64) float gates[4 * TILE * TILE], ups[4 * TILE * TILE];
    for (int64_t o = first; o < last; o += 2 * TILE)
        for (int64_t n = 0; n < rows; n += 2 * TILE) {
            const int64_t height = std::min(2 * TILE, last - o), some = std::min(2 * TILE, rows - n);
            tile_sums(w1 + o * ins, height, x + n * ins / 2, some, ins, gates, n == 0);
            tile_sums(w3 + o * ins, height, x + n * ins / 2, some, ins, ups, n == 0);
            for (int64_t k = 0; k < some; ++k)
                for (int64_t w = 0; w < height; ++w) {
                    const int64_t i = w * 2 * TILE + k;
                    out[(n + k) * outs + o + w] = narrow(swiglu(gates[i], ups[i], limit));
                }
        }
}

inline bool fits_tiles(int way, int64_t rows, int64_t ins, int64_t outs) {
    return way == AMX && rows >= AMX_ROWS && ins % TILE_INS == 0 && outs % TILE == 0;
}

// out[r, c] = sum over s of probs[r * room + s] * row s [c], for c < rank, added to what is there; rows of a page.
TIEFSEE_AVX512_BF16 void add_values(const bf16 *page, int64_t count, int64_t width, int64_t rank, const float *probs, int64_t room,
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

inline int64_t rows_per_chunk(int64_t ins) { return std::max(2 * TILE, CHUNK_BYTES / (2 * ins) / TILE * TILE); }

} // namespace

extern "C" {

// The best way of this processor: 2 with AMX, 1 with AVX512-BF16, 0 if it has neither.
int tiefsee_best() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw")) return NONE;
    constexpr unsigned AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18; // arch_prctl: a process asks before it uses tiles
    const bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE);
    return has_tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? AMX : AVX512;
}

void tiefsee_linear(int threads, const bf16 *x, const bf16 *weight, bf16 *out, int64_t rows, int64_t ins,
                    int64_t outs) {
    const int64_t size = rows_per_chunk(ins), chunks = (outs + size - 1) / size;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (chunks > 1)
    for (int64_t c = 0; c < chunks; ++c)
        product(x, weight, out, rows, ins, outs, c * size, std::min(outs, (c + 1) * size));
}

// x[N, D] holds the rows of expert 0, then of expert 1 and so on, counts[e] of each; w1, w3 [E, F, D]; w2 [E, D, F];
// hidden[N, F] is room to work in.
void tiefsee_experts(int way, int threads, const bf16 *x, const int64_t *counts, int64_t experts, const bf16 *w1,
                     const bf16 *w2, const bf16 *w3, bf16 *hidden, bf16 *out, int64_t width, int64_t inner,
                     float limit) {
    const std::vector<Expert> busy = busy_experts(counts, experts);
    std::vector<int64_t> rooms; // where the packed rows of an expert begin; -1: none
    int64_t room = 0;
    for (const Expert &e : busy) {
        const bool tiled = fits_tiles(way, e.count, width, inner) && fits_tiles(way, e.count, inner, width);
        rooms.push_back(tiled ? room : -1);
        if (tiled) room += packed_rows(e.count);
    }
    const int64_t size = width * inner;
    std::vector<uint32_t> packed(room * std::max(width, inner) / 2);
    auto tiles_of = [&](int64_t b, int64_t ins) { return packed.data() + rooms[b] * ins / 2; };
    auto fill = [&](int64_t b, const bf16 *rows, int64_t ins) {
        if (rooms[b] >= 0) pack(rows + busy[b].first * ins, busy[b].count, ins, tiles_of(b, ins));
    };
    each_expert(
        threads, int64_t(busy.size()), {inner, rows_per_chunk(2 * width)}, {width, rows_per_chunk(inner)},
        [&] { return Tiles(room > 0); }, [&](int64_t b) { fill(b, x, width); },
        [&](int64_t b, int64_t from, int64_t to) {
            const Expert &e = busy[b];
            const bf16 *gate = w1 + e.index * size, *up = w3 + e.index * size;
            bf16 *target = hidden + e.first * inner;
            if (rooms[b] >= 0) tile_gated(tiles_of(b, width), gate, up, target, e.count, width, inner, from, to, limit);
            else gated(x + e.first * width, gate, up, target, e.count, width, inner, from, to, limit);
        },
        [&](int64_t b) { fill(b, hidden, inner); },
        [&](int64_t b, int64_t from, int64_t to) {
            const Expert &e = busy[b];
            const bf16 *weight = w2 + e.index * size;
            bf16 *target = out + e.first * width;
            if (rooms[b] >= 0) tile_product(tiles_of(b, inner), weight, target, e.count, inner, width, from, to);
            else product(hidden + e.first * inner, weight, target, e.count, inner, width, from, to);
        });
}

// query[B, H, width] against the rows [first[b], last[b]) of request b, row s on page tables[b * pages + s / size] of
// pool[., size, width]; the first `rank` values of a row are also its value. out[B, H, rank].
void tiefsee_attention(int threads, const bf16 *query, const bf16 *pool, const int64_t *tables,
                       int64_t pages, const int64_t *first, const int64_t *last, bf16 *out, int64_t requests,
                       int64_t heads, int64_t width, int64_t rank, int64_t size, float scale) {
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

#else
extern "C" int tiefsee_best() { return 0; }
#endif
