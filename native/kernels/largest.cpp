#include "kernels/largest.h"

#include <limits>

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

template <class T>
int64_t first_of(const T* x, int64_t n, float* value) {
    constexpr float kLeast = -std::numeric_limits<float>::infinity();
    vf most = splat(kLeast);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const vf v = load(x + i);
        most = v > most ? v : most;
    }
    float top = largest(most);
    for (int64_t k = i; k < n; k++) top = widen(x[k]) > top ? widen(x[k]) : top;
    *value = top;
    if (top == kLeast) return 0;
    for (i = 0; i + kLanes <= n; i += kLanes) {
        const vi same = load(x + i) == splat(top);
        int any = 0;
        for (int lane = 0; lane < kLanes; lane++) any |= same[lane];
        if (any) break;
    }
    while (widen(x[i]) != top) i++;
    return i;
}

int64_t first(const void* x, int64_t n, Float type, float* value) {
    return with_float(type, [&]<class T>(T*) { return first_of(static_cast<const T*>(x), n, value); });
}

}  // namespace

const LargestKernels largest_place_table{first};

}  // namespace optiq::OPTIQ_LEVEL
