// Products cut into tasks for the pool, by shape alone. Not for kernels: this is compiled once.
#pragma once

#include <algorithm>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/gemm.h"

namespace optiq {

constexpr int64_t kFewRows = 16;          // up to here rows are bit-equal whatever else is in the batch
constexpr int64_t kRoundPanels = 256;     // panels that are packed at once: 4096 vectors

// C[p, q] = sum_k P[p, k] A[q, k], C row by row of `type`; see kernels/gemm.h. `type` is that of the activations.
inline void multiply(const Side& p, const Side& a, Float type, void* c, Float c_type, int64_t stride) {
    const GemmKernels& kernels = gemm();
    const int64_t depth = kernels.depth(type), width = kernels.width(type), panel_bytes = kernels.panel_bytes(type);
    const int64_t blocks = (a.depth + depth - 1) / depth, columns = (a.count + width - 1) / width;
    if (p.count == 0 || a.count == 0) return;
    if (a.depth == 0) {
        for (int64_t i = 0; i < p.count; i++)
            std::fill_n(static_cast<char*>(c) + i * stride * float_bytes(c_type), a.count * float_bytes(c_type), 0);
        return;
    }
    for (int64_t start = 0; start < p.count; start += kRoundPanels * kPanel) {
        Side part = p;
        part.count = std::min(p.count - start, kRoundPanels * kPanel);
        const int64_t offset = start * (p.across ? 1 : p.stride);
        part.data = static_cast<const char*>(p.data) + offset * float_bytes(p.type);
        void* target = static_cast<char*>(c) + start * stride * float_bytes(c_type);
        const int64_t panels = (part.count + kPanel - 1) / kPanel, groups = (panels + kTaskPanels - 1) / kTaskPanels;
        Scratch packed(size_t(panels * blocks * panel_bytes));
        parallel(panels * blocks, [&](int64_t i) {
            kernels.pack(part, type, i % panels, i / panels, packed.as<char>() + i * panel_bytes);
        });
        parallel(columns * groups, [&](int64_t i) {
            const int64_t first = i / groups * width, panel = i % groups * kTaskPanels;
            Scratch scratch(size_t(kernels.scratch_bytes(type)));
            kernels.task(a, type, first, std::min(width, a.count - first), part, packed.as<void>(), panel,
                         std::min(kTaskPanels, panels - panel), target, c_type, stride, scratch.as<void>());
        });
    }
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
