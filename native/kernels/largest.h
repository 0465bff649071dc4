// The place of the largest of n numbers.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

struct LargestKernels {
    // The first place of the largest number, and the number; NaN is passed over. Where all are NaN or -infinity: 0, -infinity.
    int64_t (*first)(const void* x, int64_t n, Float type, float* value);
};

OPTIQ_FAMILY(LargestKernels, largest_place)

}  // namespace optiq
