// Products cut into tasks for the pool, by shape alone. Not for kernels: this is compiled once.
#pragma once

#include <algorithm>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/gemm.h"

namespace optiq {

constexpr int64_t kFewRows = 16;          // up to here rows are bit-equal whatever else is in the batch
constexpr int64_t kRoundBytes = Scratch::kKeep;  // of panels that are packed at once
constexpr int64_t kGroupBytes = 1 << 20;  // of packed panels that a thread meets in turn with all of A: they stay in its cache

// Panels of a task. Coded weights are decoded once a task, which takes as long as eight panels' products.
inline int64_t group_panels(const Side& a, int64_t bytes_of_panel) {
    return std::clamp<int64_t>(kGroupBytes / bytes_of_panel, a.coded ? 32 : 16, kTaskPanels);
}

// Working memory of this thread's tasks, kept: Scratch keeps one block, and the caller's packed panels are that.
inline void* task_memory(size_t bytes) {
    struct Block {
        void* start = nullptr;
        size_t size = 0;
        ~Block() { std::free(start); }
    };
    static thread_local Block block;
    if (block.size < bytes) {
        std::free(block.start);
        block = Block{};
        block.size = (bytes + 4095) / 4096 * 4096;
        block.start = std::aligned_alloc(64, block.size);
        if (!block.start) throw std::bad_alloc();
    }
    return block.start;
}

// C[p, q] = sum_k P[p, k] A[q, k] with P packed; see kernels/gemm.h. `type` is that of the activations.
inline void multiply_packed(const Side& p, const Side& a, Float type, const Target& c) {
    const GemmKernels& kernels = gemm();
    const int64_t depth = kernels.depth(type), width = kernels.width(type), panel_bytes = kernels.panel_bytes(type);
    const int64_t blocks = (a.depth + depth - 1) / depth, columns = (a.count + width - 1) / width;
    const int64_t group = group_panels(a, blocks * panel_bytes);
    const int64_t round = std::max<int64_t>(1, kRoundBytes / (blocks * panel_bytes * group)) * group * kPanel;
    for (int64_t start = 0; start < p.count; start += round) {
        Side part = p;
        part.count = std::min(p.count - start, round);
        part.data = static_cast<const char*>(p.data) + start * (p.across ? 1 : p.stride) * float_bytes(p.type);
        Target target = c;
        target.data = static_cast<char*>(c.data) + start * c.p_step * float_bytes(c.type);
        const int64_t panels = (part.count + kPanel - 1) / kPanel, groups = (panels + group - 1) / group;
        Scratch packed(size_t(panels * blocks * panel_bytes));
        parallel(panels, [&](int64_t i) {
            for (int64_t b = 0; b < blocks; b++) kernels.pack(part, type, i, b, packed.as<char>() + (b * panels + i) * panel_bytes);
        });
        parallel(columns * groups, [&](int64_t i) {
            const int64_t first = i % columns * width, panel = i / columns * group;
            kernels.task(a, type, first, std::min(width, a.count - first), part, packed.as<void>(), panel,
                         std::min(group, panels - panel), target, task_memory(size_t(kernels.scratch_bytes(type))));
        });
    }
}

// Numbers that are moved from rows to columns while P is packed.
inline int64_t turned(const Side& p) { return p.across ? 0 : p.count * p.depth; }

// The same, C row by row of `type`. Where the rows of C are P's, sums have to be turned too. Of two dense sides that one is packed
// which leaves less to turn.
inline void multiply(const Side& p, const Side& a, Float type, void* c, Float c_type, int64_t stride) {
    if (p.count == 0 || a.count == 0) return;
    if (!a.coded && gemm().commutes(type) && turned(a) < turned(p) + p.count * a.count)
        multiply_packed(a, p, type, {c, c_type, 1, stride});
    else
        multiply_packed(p, a, type, {c, c_type, stride, 1});
}

// The same for at most kFewRows vectors p [count, a.depth] of `type`, A dense and row by row.
inline void multiply_few(const void* p, Float type, int64_t count, const Side& a, void* c, Float c_type, int64_t stride) {
    Scratch wide(size_t(count * a.depth) * 4);
    gemm().widen(p, type, count * a.depth, wide.as<float>());
    const int64_t bytes = a.depth * float_bytes(a.type), step = std::clamp<int64_t>(64 * 1024 / std::max<int64_t>(1, bytes), 1, 64);
    parallel((a.count + step - 1) / step, [&](int64_t task) {
        gemm().few(a, task * step, std::min(a.count, (task + 1) * step), wide.as<float>(), count, c, c_type, stride);
    });
}

}  // namespace optiq
