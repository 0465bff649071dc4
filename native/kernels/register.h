// One register of floats: what loops over many sums at once are written in.
#pragma once

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {

// A vector of sixteen floats is no register below AVX-512, and GCC 12 keeps arrays of them in memory.
#if defined(__AVX512F__)
constexpr int kRegister = 16;
#else
constexpr int kRegister = 8;
#endif
typedef float vr __attribute__((vector_size(4 * kRegister), aligned(4 * kRegister), may_alias));
typedef float vr_loose __attribute__((vector_size(4 * kRegister), aligned(4), may_alias));
inline vr load_register(const float* p) { return *reinterpret_cast<const vr_loose*>(p); }
inline void store_register(float* p, vr x) { *reinterpret_cast<vr_loose*>(p) = x; }

#if defined(__AVX512F__)
template <class T>
inline vr load_register(const T* p) { return load(p); }
inline float sum_register(vr x) { return sum(x); }
#else
inline vr load_register(const bf16* p) {
    return (vr)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
}
inline vr load_register(const f16* p) { return (vr)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline float sum_register(vr x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
#endif

// The first n < kRegister values, and zeros.
template <class T>
inline vr load_register_part(const T* p, int n) {
    vr x{};
    for (int i = 0; i < n; i++) x[i] = widen(p[i]);
    return x;
}

}  // namespace optiq::OPTIQ_LEVEL
