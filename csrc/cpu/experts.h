// One step of the routed experts, whatever their weights are: which are busy, and who computes what when.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

struct Expert {
    int64_t index, first, count; // of all experts; its rows of x
};

// The experts with rows, which lie in their order: counts[e] of expert e.
inline std::vector<Expert> busy_experts(const int64_t *counts, int64_t number) {
    std::vector<Expert> busy;
    for (int64_t e = 0, rows = 0; e < number; rows += counts[e++])
        if (counts[e]) busy.push_back({e, rows, counts[e]});
    return busy;
}

// Pieces of work: columns [from, to) of the product of busy expert b, `size` at a time.
struct Pieces {
    int64_t columns, size;

    int64_t number() const { return (columns + size - 1) / size; }
};

// Four parts, each finished before the next one begins: rows of x arranged, gate and up products into hidden rows,
// those arranged, down products. All are called with b, the products also with (from, to); `setup` makes what a thread
// holds all the while.
template <class Setup, class FillX, class Up, class FillHidden, class Down>
void each_expert(int threads, int64_t busy, Pieces up_pieces, Pieces down_pieces, Setup &&setup, FillX &&fill_x,
                 Up &&up, FillHidden &&fill_hidden, Down &&down) {
    const int64_t up_number = up_pieces.number(), down_number = down_pieces.number();
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const auto held = setup();
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < busy; ++b) fill_x(b);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < busy * up_number; ++task) {
            const int64_t from = task % up_number * up_pieces.size;
            up(task / up_number, from, std::min(up_pieces.columns, from + up_pieces.size));
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < busy; ++b) fill_hidden(b);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < busy * down_number; ++task) {
            const int64_t from = task % down_number * down_pieces.size;
            down(task / down_number, from, std::min(down_pieces.columns, from + down_pieces.size));
        }
    }
}

} // namespace
