// The gated delta rule alone, chunked, with its derivative; shapes and formulas in delta.h.
//
// All float32; dense where no row length is given. Up to kStepTokens tokens go one by one, unless `starts` are
// kept. The derivative recomputes each chunk from the state that it started from, which the forward pass keeps
// on request: per value head and chunk one S^T of Dk rows, padded(Dv) floats each.
#pragma once

#include "kernels/delta.h"

namespace optiq {

constexpr float kLeastDecay = 1e-30f;  // g is taken as at least this; its derivative below is zero

struct Rule {
    DeltaShape shape;
    // [B, L, Hk, Dk] twice and [B, L, Hv, Dv]; from token to token `key_row` and `value_row` floats, from row to row L times
    // as many.
    const float *q = nullptr, *k = nullptr, *v = nullptr;
    int64_t key_row = 0, value_row = 0;
    bool normalise = false;                     // q and k are to be brought to the lengths 1 / sqrt(Dk) and 1 first
    const float *g = nullptr, *beta = nullptr;  // [B, L, Hv]
    const float* state = nullptr;               // [B, Hv, Dv, Dk]; null: zeros
    float* y = nullptr;                         // [B, L, Hv, Dv]
    float* new_state = nullptr;                 // [B, Hv, Dv, Dk]
    float* starts = nullptr;                    // [B, Hv, chunks, Dk, padded(Dv)]; null: not kept
};

struct RuleGradients {
    const float *dy = nullptr, *d_new_state = nullptr;  // as y and new_state
    float *dq = nullptr, *dk = nullptr, *dv = nullptr, *dg = nullptr, *d_beta = nullptr, *d_state = nullptr;  // as their inputs
};

struct RuleKernels {
    // Floats of working memory of one task.
    int64_t (*floats)(const Rule& r, bool backward);
    // The tasks of one row and key head.
    void (*forward)(const Rule& r, int64_t batch, int64_t hk, float* scratch);
    void (*backward)(const Rule& r, const RuleGradients& out, int64_t batch, int64_t hk, float* scratch);
};

OPTIQ_FAMILY(RuleKernels, rule)

}  // namespace optiq
