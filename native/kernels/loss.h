// Reductions of exponentials over a row of logits x, in pieces: each piece k gives its maximum m_k and s_k = sum exp(x - m_k);
//
//     m = max m_k,   s = sum_k s_k exp(m_k - m),   logsumexp = m + log s,   softmax_i = exp(x_i - m) / s
//     cross entropy = logsumexp - x_target,         its derivative = g (exp(x_i - logsumexp) - [i = target])
//     softmax' = y (g - sum_k g_k y_k)
//     divergence = sum_i p_i log(p_i / q_i),  log p_i = x_i - logsumexp(x),  log q_i likewise of y;  0 log 0 = 0
//
// Arithmetic is float32. Pieces are cut by the length of the row alone and joined in order.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

struct LossKernels {
    // Maximum and sum of exp(x - maximum) of n values; the sum of values that are all -inf is 0.
    void (*piece)(const void* x, int64_t n, Float type, float* most, float* total);
    // y = scale exp(x - shift), y in `type`.
    void (*exponentials)(const void* x, int64_t n, float shift, float scale, Float type, void* y);
    // sum of exp(x - x_shift) ((x - x_shift) - (y - y_shift)) over n values.
    float (*divergence)(const void* x, const void* y, int64_t n, float x_shift, float y_shift, Float type);
    // dx = y (g - sum g y).
    void (*softmax_vjp)(const void* y, const void* g, int64_t n, Float type, void* dx);
};

OPTIQ_FAMILY(LossKernels, loss)

}  // namespace optiq
