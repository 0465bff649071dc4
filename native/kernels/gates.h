// Activations and gated products of n values, forward and backward:
//
//     y = f(a) u,    da = g u f'(a),    du = g f(a)
//
// with f one of
//     silu     a sigmoid(a)
//     sigmoid  sigmoid(a)
//     gelu     a sigmoid(2 h(a)),  h(a) = sqrt(2 / pi) (a + 0.044715 a^3)      (the tanh form of GELU)
//
// Arithmetic is float32 with one rounding at the end. f is off by 5e-7 of itself at most (see exp in simd.h), GELU's tail by
// 1e-7 times 4 + 2 |h(a)|.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

enum class Gate { silu, sigmoid, gelu };

struct GateKernels {
    // y = f(a) u; u may be null for f alone.
    void (*forward)(Gate gate, const void* a, const void* u, int64_t n, Float type, void* y);
    // da and du, which is null where u is.
    void (*backward)(Gate gate, const void* a, const void* u, const void* g, int64_t n, Float type, void* da, void* du);
};

OPTIQ_FAMILY(GateKernels, gates)

}  // namespace optiq
