// Dense products with few rows, at the speed of memory.
#pragma once

#include "kernels/gemm.h"
#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {

// ROWS rows of A by COLUMNS vectors of P. Each sum has sixteen lanes in the order of k, so that its bits depend on its own
// row and vector alone.
template <int ROWS, int COLUMNS, class T, class C>
inline void dots(const T* a, int64_t stride, int64_t depth, const float* p, C* c, int64_t c_stride) {
    vf sums[ROWS][COLUMNS]{};
    const auto add = [&](int64_t k, auto get) {
        vf x[COLUMNS];
        for (int m = 0; m < COLUMNS; m++) x[m] = get(p + m * depth + k);
        for (int r = 0; r < ROWS; r++) {
            const vf w = get(a + r * stride + k);
            for (int m = 0; m < COLUMNS; m++) sums[r][m] = fma(w, x[m], sums[r][m]);
        }
    };
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
        for (int r = 0; r < ROWS; r++) _mm_prefetch(reinterpret_cast<const char*>(a + r * stride + k) + 1024, _MM_HINT_T0);
        add(k, [](const auto* at) { return load(at); });
    }
    if (k < depth) add(k, [&](const auto* at) { return load_part(at, int(depth - k)); });
    for (int r = 0; r < ROWS; r++)
        for (int m = 0; m < COLUMNS; m++) narrow(sum(sums[r][m]), c + m * c_stride + r);
}

template <int ROWS, class T, class C>
inline void dots_of(const T* a, int64_t stride, int64_t depth, const float* p, int64_t count, C* c, int64_t c_stride) {
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) dots<ROWS, 4>(a, stride, depth, p + m * depth, c + m * c_stride, c_stride);
    if (count - m >= 2) dots<ROWS, 2>(a, stride, depth, p + m * depth, c + m * c_stride, c_stride), m += 2;
    if (count - m >= 1) dots<ROWS, 1>(a, stride, depth, p + m * depth, c + m * c_stride, c_stride);
}

void few(const Side& a, int64_t first, int64_t last, const float* p, int64_t count, void* c, Float c_type, int64_t stride) {
    with_float(a.type, [&]<class T>(T*) {
        with_float(c_type, [&]<class C>(C*) {
            const T* rows = static_cast<const T*>(a.data);
            int64_t q = first;
            for (; q + 4 <= last; q += 4)
                dots_of<4>(rows + q * a.stride, a.stride, a.depth, p, count, static_cast<C*>(c) + q, stride);
            for (; q < last; q++) dots_of<1>(rows + q * a.stride, a.stride, a.depth, p, count, static_cast<C*>(c) + q, stride);
        });
    });
}

void widen_all(const void* x, Float type, int64_t count, float* out) {
    with_float(type, [&]<class T>(T*) {
        const T* from = static_cast<const T*>(x);
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store(out + i, load(from + i));
        for (; i < count; i++) out[i] = widen(from[i]);
    });
}

}  // namespace optiq::OPTIQ_LEVEL
