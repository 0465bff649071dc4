// Operations that the mixer's derivative is made of; arguments as in kernels/delta_rule.h and kernels/mixing.h.
#pragma once

#include <optional>

#include "mlx/op.h"

namespace optiq {

using Maybe = std::optional<mx::array>;

// y [B, L, Hv, Dv] and the new state, float32. Differentiable in all inputs.
std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& g,
                                            const mx::array& beta, const Maybe& state);

// The same from queries, keys and values that lie side by side in qkv [B, L, 2 Hk Dk + Hv Dv], not yet normalised.
std::pair<mx::array, mx::array> gated_delta_packed(const mx::array& qkv, const mx::array& g, const mx::array& beta,
                                                   const mx::array& state, int key_heads, int key_dim);

// Causal convolution and silu of x [B, L, C] after a tail [B, K - 1, C], float32; and the last K - 1 rows of both.
std::pair<mx::array, mx::array> causal_conv_silu(const mx::array& x, const mx::array& tail, const mx::array& taps);

// x [..., D] float32, z of the same shape and any type, which the result has.
mx::array gated_norm(const mx::array& x, const mx::array& z, const mx::array& weight, float eps);

}  // namespace optiq
