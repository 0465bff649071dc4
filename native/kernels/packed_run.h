// Packing and attention over packed tokens as tasks for the pool. The cut depends on shapes alone, and no result on the cut.
#pragma once

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/packed.h"

namespace optiq {

inline void run_packed_attention(const PackedAttention& a) {
    constexpr int64_t kTasks = 32, kMostTogether = 16;
    const PackedFew& ours = packed_few();
    const FewAttention& theirs = few_attention();
    const int64_t pairs = a.full.batches * a.full.groups, rows = packed_rows(a);
    const int64_t packed = packed_blocks(a), full = full_blocks(a), floats = rows * (a.full.width + 2);
    const size_t query_bytes = (ours.query_bytes(a) + 63) / 64 * 64, partial_bytes = size_t(pairs * (packed + full) * floats) * 4;
    Scratch held(query_bytes * size_t(pairs) + partial_bytes + 64);
    char* const queries = held.as<char>();
    float* const partials = reinterpret_cast<float*>(queries + query_bytes * size_t(pairs));
    const size_t bytes = ours.scratch(a), full_bytes = full ? theirs.scratch(a.full) : 0;
    if (packed)
        parallel(pairs, [&](int64_t pair) {
            ours.prepare(a, pair / a.full.groups, pair % a.full.groups, queries + query_bytes * size_t(pair));
        });
    // Neighbouring blocks in one task let it fetch ahead; enough tasks must remain. Full-precision blocks, which take the
    // longest, come first.
    int64_t together = pairs * packed / kTasks;
    together = together < 1 ? 1 : together > kMostTogether ? kMostTogether : together;
    const int64_t parts = (packed + together - 1) / together;
    parallel(pairs * (full + parts), [&](int64_t task) {
        Scratch scratch(bytes > full_bytes ? bytes : full_bytes);
        const int64_t pair = task % pairs, part = task / pairs, batch = pair / a.full.groups, group = pair % a.full.groups;
        float* const partial = partials + pair * (packed + full) * floats;
        if (part < full) return theirs.block(a.full, batch, group, part, false, partial + (packed + part) * floats, scratch.as<void>());
        const int64_t first = (part - full) * together, last = first + together < packed ? first + together : packed;
        for (int64_t block = first; block < last; block++)
            ours.block(a, batch, group, block, block + 1 < last, queries + query_bytes * size_t(pair), partial + block * floats,
                       scratch.as<void>());
    });
    parallel(pairs * rows, [&](int64_t task) {
        const int64_t pair = task / rows;
        ours.combine(a, pair / a.full.groups, pair % a.full.groups, task % rows, partials + pair * (packed + full) * floats);
    });
}

// Vectors of a call, of a few microseconds' work each task.
template <class F>
inline void run_packing(int64_t vectors, int64_t width, const F& one) {
    const int64_t step = 16 * 256 / width + 1;
    parallel((vectors + step - 1) / step, [&](int64_t task) {
        const int64_t last = (task + 1) * step < vectors ? (task + 1) * step : vectors;
        for (int64_t i = task * step; i < last; i++) one(i);
    });
}

}  // namespace optiq
