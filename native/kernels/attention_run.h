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

// Fills dq, dk and dv.
inline void run_attention_gradient(const AttentionGradient& g) {
    // With this many (batch, group) pairs each is one task, which computes every score once. With fewer, dq comes from tasks
    // over rows and dk, dv from tasks over keys, which computes scores twice but occupies the threads.
    constexpr int64_t kManyPairs = 8, kTaskKeys = 256;
    const GradientAttention& kernels = gradient_attention();
    const Attention& a = g.forward;
    const int64_t pairs = a.batches * a.groups, rows = a.queries * (a.heads / a.groups);
    const size_t bytes = kernels.scratch(a);
    if (pairs >= kManyPairs)
        return parallel(pairs, [&](int64_t pair) {
            Scratch scratch(bytes);
            kernels.block(g, pair / a.groups, pair % a.groups, 0, rows, 0, a.keys, true, true, scratch.as<void>());
        });
    const int64_t key_blocks = (a.keys + kTaskKeys - 1) / kTaskKeys, row_blocks = (rows + kBlockRows - 1) / kBlockRows;
    parallel(pairs * (key_blocks + row_blocks), [&](int64_t task) {
        Scratch scratch(bytes);
        const int64_t pair = task % pairs, part = task / pairs, batch = pair / a.groups, group = pair % a.groups;
        if (part < key_blocks) {
            const int64_t first = part * kTaskKeys, last = first + kTaskKeys < a.keys ? first + kTaskKeys : a.keys;
            kernels.block(g, batch, group, 0, rows, first, last, false, true, scratch.as<void>());
        } else {
            const int64_t first = (row_blocks - 1 - (part - key_blocks)) * kBlockRows;
            const int64_t last = first + kBlockRows < rows ? first + kBlockRows : rows;
            kernels.block(g, batch, group, first, last, 0, a.keys, true, false, scratch.as<void>());
        }
    });
}

}  // namespace optiq
