#include "kernels/sums.h"

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

void add(const void* from, int64_t n, Float type, float* to) {
    with_float(type, [&]<class T>(T*) {
        const T* x = (const T*)from;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store(to + i, load(to + i) + load(x + i));
        if (const int left = int(n - i); left > 0) store_part(to + i, load_part(to + i, left) + load_part(x + i, left), left);
    });
}

void convert(const float* from, int64_t n, Float type, void* to) {
    with_float(type, [&]<class T>(T*) {
        T* y = (T*)to;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store(y + i, load(from + i));
        if (const int left = int(n - i); left > 0) store_part(y + i, load_part(from + i, left), left);
    });
}

}  // namespace

const SumKernels sums_table{add, convert};

}  // namespace optiq::OPTIQ_LEVEL
