// Gated DeltaNet: the mixer of one layer between its projections, fused, for a token or for a whole prompt.
//
// Shapes, with B batch, L tokens, Hk key heads, Hv value heads (a multiple of Hk), Dk and Dv head widths, K taps and
// C = 2 Hk Dk + Hv Dv channels:
//
//     qkv [B, L, C]   z [B, L, Hv Dv]   a, b [B, L, Hv]   tail [B, K - 1, C]   S [B, Hv, Dv, Dk]   y [B, L, Hv Dv]
//
//     q, k, v = silu(sum_j taps_j x_{t+j}) of x = tail, then qkv (causal convolution per channel), cut by channels
//     q <- q / sqrt(Dk (|q|^2 + 1e-6)),   k <- k / sqrt(|k|^2 + 1e-6)
//     g_t = exp(-exp(A_log) softplus(a_t + dt_bias)),   beta_t = sigmoid(b_t)
//     S_t = g_t S_{t-1} + beta_t (v_t - g_t S_{t-1} k_t) k_t^T,   o_t = S_t q_t
//     y_t = norm o_t / sqrt(mean(o_t^2) + eps) silu(z_t)
//
// All arithmetic is float32 and rounds once, to the type of y. A masked token has x = 0, g = 1 and beta = 0.
//
// Up to kStepTokens tokens go one by one through each row of S, which stays in registers (so a text cut into such pieces
// gives the same bits as one token at a time); longer texts go in chunks of kChunk as matrix products. In a chunk that
// starts from S_0, with G_t the product of g up to t and Gamma_ts = G_t / G_s,
//
//     (I + A) U = beta (V - G K S_0^T),   A_ts = beta_t Gamma_ts (k_t . k_s) for s < t
//     O = G Q S_0^T + P U,                P_ts = Gamma_ts (q_t . k_s) for s <= t
//     S_C = G_C S_0 + U^T (K G_C / G_s)
//
// by forward substitution; no ratio of decays exceeds 1. Source: arXiv 2412.06464 and the WY form of arXiv 2406.06484.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

constexpr int64_t kStepTokens = 16;
constexpr int64_t kChunk = 64;
constexpr int64_t kMaxTaps = 8;

// A tensor [B, L, channels] whose last axis is dense; strides in elements.
struct Tokens {
    const void* start = nullptr;  // null: zeros
    Float type = Float::f32;
    int64_t batch = 0;
    int64_t token = 0;
};

struct DeltaShape {
    int64_t B, L, Hk, Hv, Dk, Dv;
    int64_t group() const { return Hv / Hk; }
};

struct Mixer {
    DeltaShape shape;
    int64_t taps_count = 4;
    float eps = 1e-6f;
    Tokens qkv, z, a, b, tail;   // qkv, z and tail have one type, a and b any
    const void* taps = nullptr;  // [C, K] of taps_type
    Float taps_type = Float::f32;
    const float* a_log = nullptr;    // [Hv]
    const float* dt_bias = nullptr;  // [Hv]
    const float* norm = nullptr;     // [Dv]
    const uint8_t* mask = nullptr;   // [B, L]; null: nothing is masked
    const int32_t* ends = nullptr;   // [B]: tokens of each row that count for the new tail; null: L
    const float* state = nullptr;    // null: zeros
    void* y = nullptr;               // [B, L, Hv, Dv] dense, in the type of qkv; null: not wanted (L <= kStepTokens)
    void* new_tail = nullptr;        // [B, K - 1, C] dense; null: not wanted, and no new state either (L <= kStepTokens)
    float* new_state = nullptr;      // may be `state` itself
};

// Row length of scratch matrices: whole vectors, and never a power of two, whose rows would share cache sets.
inline int64_t padded(int64_t width) { return (width + 15) / 16 * 16 + 16; }

struct DeltaKernels {
    // Floats of working memory for one task of `mix`.
    int64_t (*mix_floats)(const Mixer& m);
    // The task of key head hk and its value heads in row `batch`; tasks are independent.
    void (*mix)(const Mixer& m, int64_t batch, int64_t hk, float* scratch);
};

OPTIQ_FAMILY(DeltaKernels, delta)

}  // namespace optiq
