// Attention as tasks for the pool. The cut depends on shapes alone.
#pragma once

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/attention.h"

namespace optiq {

inline void run_few_attention(const Attention& a) {
    const FewAttention& kernels = few_attention();
    const int64_t blocks = (a.keys + kFewKeys - 1) / kFewKeys, rows = a.queries * (a.heads / a.groups);
    const int64_t block_floats = rows * (a.value_width + 2), pairs = a.batches * a.groups;
    Scratch partials(size_t(pairs * blocks * block_floats) * 4);
    float* const partial = partials.as<float>();
    const size_t bytes = kernels.scratch(a);
    parallel(pairs * blocks, [&](int64_t task) {
        Scratch scratch(bytes);
        const int64_t pair = task / blocks;
        kernels.block(a, pair / a.groups, pair % a.groups, task % blocks, partial + task * block_floats, scratch.as<void>());
    });
    parallel(pairs, [&](int64_t pair) {
        kernels.combine(a, pair / a.groups, pair % a.groups, blocks, partial + pair * blocks * block_floats);
    });
}

inline void run_many_attention(const Attention& a) {
    constexpr int64_t kPackKeys = 256;
    const ManyAttention& kernels = many_attention();
    const int64_t pairs = a.batches * a.groups;
    const size_t each = kernels.packed_bytes(a), bytes = kernels.scratch(a);
    Scratch packed(each * size_t(pairs) + 64);
    if (each) {
        const int64_t parts = (a.keys + kPackKeys - 1) / kPackKeys;
        parallel(pairs * parts, [&](int64_t task) {
            const int64_t pair = task / parts, first = task % parts * kPackKeys;
            const int64_t last = first + kPackKeys < a.keys ? first + kPackKeys : a.keys;
            kernels.pack(a, pair / a.groups, pair % a.groups, first, last, packed.as<char>() + size_t(pair) * each);
        });
    }
    const int64_t rows = a.queries * (a.heads / a.groups), blocks = (rows + kBlockRows - 1) / kBlockRows;
    parallel(pairs * blocks, [&](int64_t task) {
        Scratch scratch(bytes);
        // Causal blocks grow with their number: the long ones first, so that the threads end together.
        const int64_t pair = task % pairs, block = blocks - 1 - task / pairs, first = block * kBlockRows;
        const int64_t last = first + kBlockRows < rows ? first + kBlockRows : rows;
        kernels.rows(a, pair / a.groups, pair % a.groups, first, last, packed.as<char>() + size_t(pair) * each,
                     scratch.as<void>());
    });
}

inline void run_attention(const Attention& a) {
    if (a.queries <= kFewQueries)
        run_few_attention(a);
    else
        run_many_attention(a);
}

}  // namespace optiq
