// Sums in float32 of rows in any float type, and the rounding of the result.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

struct SumKernels {
    // to[n] += from[n].
    void (*add)(const void* from, int64_t n, Float type, float* to);
    // to[n] = from[n], rounded to `type`.
    void (*convert)(const float* from, int64_t n, Float type, void* to);
};

OPTIQ_FAMILY(SumKernels, sums)

}  // namespace optiq
