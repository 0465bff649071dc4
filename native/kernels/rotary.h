// Rotary position embedding of one row: pairs of its first 2 * half values are turned by the angle of their position,
//
//     a' = a cos - b sin,    b' = a sin + b cos,
//
// the pair being (x_i, x_{i + half}), or (x_2i, x_{2i+1}) in the traditional layout; the rest of the row is copied.
// Source: Su et al., arXiv 2104.09864. Arithmetic is float32 with one rounding at the end.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

struct RotaryKernels {
    // cosine[i] and sine[i] of position * inverse[i] (a float32 product), i < half. Absolute error below 2e-7 for angles up
    // to 1e6. `turn` is 1, or -1 for the opposite rotation, which is the derivative.
    void (*angles)(float position, const float* inverse, int64_t half, float turn, float* cosine, float* sine);
    void (*rotate)(const void* x, const float* cosine, const float* sine, int64_t half, int64_t width, bool traditional,
                   Float type, void* y);
};

OPTIQ_FAMILY(RotaryKernels, rotary)

}  // namespace optiq
