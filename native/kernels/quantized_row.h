// A prepared row of activations: 16-bit fixed-point numbers as two signed bytes, their steps and sums. See kernels/quantized.h.
#pragma once

#include "kernels/quantized.h"
#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {

// Where the parts of a prepared row lie.
struct Row {
    int8_t* chunks;  // per 64 columns 128 bytes: high and low bytes, or 16-bit numbers
    int8_t* pairs;   // per 128 columns 256 bytes: high bytes of even and of odd columns, low bytes likewise
    float* steps;
    float* sums;
};

inline int64_t padded_groups(int64_t columns, int group) { return (columns / group + 15) / 16 * 16 + 16; }

inline Row row_at(const float* prepared, int64_t columns, int group, int64_t index) {
    float* base = const_cast<float*>(prepared) + index * prepared_floats(columns, group);
    const int64_t half = (columns + 63) / 64 * 32;
    float* steps = base + 2 * half;
    return {reinterpret_cast<int8_t*>(base), reinterpret_cast<int8_t*>(base + half), steps, steps + padded_groups(columns, group)};
}

template <class T>
inline vf load_some(const T* values, int64_t count) {
    return count >= kLanes ? load(values) : load_part(values, int(count));
}

inline vf load_some(const void* p, Float type, int64_t at, int64_t count) {
    return with_float(type, [&]<class T>(T*) { return load_some(static_cast<const T*>(p) + at, count); });
}

constexpr int kSegment = 64;  // groups whose factors lie on the stack at once

}  // namespace optiq::OPTIQ_LEVEL
