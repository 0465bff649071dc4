// The parts of Gated DeltaNet around its recurrence, each with its derivative: short convolution and gated norm.
//
// Arithmetic is float32. Sums over tokens (for weights) are taken within a task or over tasks in their order, so they do not
// depend on the number of threads.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

constexpr int64_t kMostTaps = 8;
constexpr int64_t kConvChannels = 64;  // per task
constexpr int64_t kNormRows = 256;     // per task

// y[b, t, c] = f(sum_j w[c, j] x[b, t + j, c]), f the identity or silu; y [B, L, C], w [C, K] float32.
struct Conv {
    int64_t B, L, C, K;
    bool silu;
    Float type;    // of x and tail
    Float y_type;  // `type` or float32
    // x is [B, L + K - 1, C]; or, if `causal`, [B, L, C] after a tail [B, K - 1, C], where null stands for zeros.
    bool causal = false;
    const void *x = nullptr, *tail = nullptr;
    const float* w = nullptr;
};

// y = w n silu(z), n = x / sqrt(mean(x^2) + eps), for `rows` rows of D values; x [rows, D] and w [D] float32; z and y of `type`.
struct GatedNorm {
    int64_t rows, D;
    float eps;
    Float type;
    const float* x = nullptr;
    const void* z = nullptr;
    const float* w = nullptr;
};

struct MixingKernels {
    // Channels [task * kConvChannels, ...).
    void (*conv)(const Conv& f, int64_t task, void* y);
    void (*conv_backward)(const Conv& f, int64_t task, const void* dy, void* dx, void* d_tail, float* dw);
    // Rows [task * kNormRows, ...); `dw` receives this task's part, [D].
    void (*gated_norm)(const GatedNorm& f, int64_t task, void* y);
    void (*gated_norm_backward)(const GatedNorm& f, int64_t task, const void* dy, float* dx, void* dz, float* dw);
};

OPTIQ_FAMILY(MixingKernels, mixing)

}  // namespace optiq
