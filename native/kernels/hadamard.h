// The Walsh-Hadamard transform in blocks of the largest power of two that divides a width: src/optiq/kernels/rotation.py.
#pragma once

#include "kernels/register.h"

namespace optiq::OPTIQ_LEVEL {

// Lanes i and i ^ STEP change places.
template <int STEP>
inline vr swapped(vr x) {
#if defined(__AVX512F__)
    if constexpr (STEP == 1) return (vr)_mm512_permute_ps((__m512)x, 0xb1);
    if constexpr (STEP == 2) return (vr)_mm512_permute_ps((__m512)x, 0x4e);
    if constexpr (STEP == 4) return (vr)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0xb1);
    if constexpr (STEP == 8) return (vr)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0x4e);
#else
    if constexpr (STEP == 1) return (vr)_mm256_permute_ps((__m256)x, 0xb1);
    if constexpr (STEP == 2) return (vr)_mm256_permute_ps((__m256)x, 0x4e);
    if constexpr (STEP == 4) return (vr)_mm256_permute2f128_ps((__m256)x, (__m256)x, 1);
#endif
}

// One stage within a register: sums in lanes without the bit STEP, differences in the others.
template <int STEP>
inline vr butterfly(vr x) {
    static constexpr auto sign = [] {
        struct { alignas(64) uint32_t at[kRegister]; } table{};
        for (int i = 0; i < kRegister; i++) table.at[i] = i & STEP ? 0x80000000u : 0u;
        return table;
    }();
    typedef uint32_t bits __attribute__((vector_size(4 * kRegister), aligned(4 * kRegister), may_alias));
    return swapped<STEP>(x) + (vr)((bits)x ^ *reinterpret_cast<const bits*>(sign.at));
}

inline int64_t padded16(int64_t width) { return (width + 15) / 16 * 16; }

// y[D] becomes H y; D a multiple of 8. `y` has room for a multiple of 16, filled up with zeros (a block of their own).
inline void transform(float* y, int64_t width) {
    const int64_t block = width & -width, padded = padded16(width);
    const float scale = 1.f / __builtin_sqrtf(float(block));
    const vr by = scale - vr{};
    for (int64_t i = 0; i < padded; i += kRegister) {
        vr x = load_register(y + i) * by;
        x = butterfly<1>(x);
        x = butterfly<2>(x);
        x = butterfly<4>(x);
#if defined(__AVX512F__)
        if (block >= 16) x = butterfly<8>(x);
#endif
        store_register(y + i, x);
    }
    for (int64_t step = kRegister; step < block; step *= 2)
        for (int64_t start = 0; start < width; start += 2 * step)
            for (int64_t i = start; i < start + step; i += kRegister) {
                const vr a = load_register(y + i), b = load_register(y + i + step);
                store_register(y + i, a + b);
                store_register(y + i + step, a - b);
            }
}

}  // namespace optiq::OPTIQ_LEVEL
