// Root-mean-square normalisation of one row, forward and backward, alone, after an addition, or times a gate.
//
//     y_i = w_i x_i r,    r = 1 / sqrt(mean_k x_k^2 + eps)
//     dx_i = r (w_i g_i) - x_i r^3 mean_k (w_k g_k x_k),    dw_i = sum over rows of g_i x_i r
//
// Arithmetic is float32. Rounding to 16 bits is that of mx.fast.rms_norm: x r is rounded before the weight. Scale and bias
// free (no weight) where w is null. A row's sums have one order whatever else is in the batch.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

struct NormKernels {
    // y[n]; where `add` is given, x + add goes to `total` and is what is normalised; where `gate` is given, y is
    // silu(gate) times the normalised row.
    void (*rms)(const void* x, const void* add, const void* weight, const void* gate, int64_t n, float eps, Float type,
                void* total, void* y);
    // dx[n] from g[n]; dweight[n] (float32) is added to. `more`: a row that is added to dx (what flows around the norm), or
    // null. With `gate` its derivative goes to dgate, and `scratch` has room for n floats. dweight may be null.
    void (*rms_vjp)(const void* x, const void* weight, const void* gate, const void* g, const void* more, int64_t n, float eps,
                    Float type, void* dx, float* dweight, void* dgate, float* scratch);
};

OPTIQ_FAMILY(NormKernels, norm)

}  // namespace optiq
