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
        const int64_t pair = task / blocks, block = task % blocks;
        kernels.block(a, pair / a.groups, pair % a.groups, block, block + 1 < blocks, partial + task * block_floats, scratch.as<void>());
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

// Fills dq, dk and dv. One task computes a share of a (batch, group) pair's rows; with few pairs the shares of dk and dv are
// kept apart and added in order.
inline void run_attention_gradient(const AttentionGradient& g) {
    constexpr int64_t kTasks = 16, kMostParts = 8, kAddKeys = 256;
    const GradientAttention& kernels = gradient_attention();
    const Attention& a = g.forward;
    const int64_t pairs = a.batches * a.groups, rows = a.queries * (a.heads / a.groups);
    const int64_t row_blocks = (rows + kBlockRows - 1) / kBlockRows, wished = (kTasks + pairs - 1) / pairs;
    int64_t parts = wished < kMostParts ? wished : kMostParts;
    if (parts > row_blocks) parts = row_blocks;
    const int64_t k_floats = a.keys * padded_width(a.width), v_floats = a.keys * padded_width(a.value_width);
    // Where the sums are the result, they are made in its place.
    const bool own_k = parts > 1 || a.type != Float::f32 || a.width % 16 != 0;
    const bool own_v = parts > 1 || a.type != Float::f32 || a.value_width % 16 != 0;
    Scratch sums(size_t(pairs * parts * (own_k * k_floats + own_v * v_floats)) * 4 + 64);
    float* const dk = own_k ? sums.as<float>() : static_cast<float*>(g.dk);
    float* const dv = own_v ? sums.as<float>() + own_k * pairs * parts * k_floats : static_cast<float*>(g.dv);
    const size_t bytes = kernels.scratch(a);
    parallel(pairs * parts, [&](int64_t task) {
        Scratch scratch(bytes);
        const int64_t pair = task / parts;
        kernels.block(g, pair / a.groups, pair % a.groups, task % parts, parts, dk + task * k_floats, dv + task * v_floats,
                      scratch.as<void>());
    });
    const int64_t spans = (a.keys + kAddKeys - 1) / kAddKeys;
    const auto add = [&](bool own, const float* from, int64_t floats, int64_t width, void* to) {
        if (!own) return;
        parallel(pairs * spans, [&](int64_t task) {
            const int64_t pair = task / spans, first = task % spans * kAddKeys;
            const int64_t last = first + kAddKeys < a.keys ? first + kAddKeys : a.keys;
            kernels.add_parts(from + pair * parts * floats + first * padded_width(width), parts, floats, last - first, width,
                              static_cast<char*>(to) + (pair * a.keys + first) * width * float_bytes(a.type), a.type);
        });
    };
    add(own_k, dk, k_floats, a.width, g.dk);
    add(own_v, dv, v_floats, a.value_width, g.dv);
}

}  // namespace optiq
