// Sixteen floats at a time, in GCC's vector extensions: one zmm register, or two ymm where the level has no more.
//
// Included by kernels alone, which are compiled once per level with OPTIQ_LEVEL set to its namespace.
#pragma once

#ifndef OPTIQ_LEVEL
#error "compile kernels through native/CMakeLists.txt, which sets OPTIQ_LEVEL"
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/half.h"

namespace optiq::OPTIQ_LEVEL {

constexpr int kLanes = 16;

typedef float vf __attribute__((vector_size(64), aligned(64), may_alias));
typedef float vf_loose __attribute__((vector_size(64), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(64), aligned(64), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), aligned(64), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(32), may_alias));
typedef uint16_t vh_loose __attribute__((vector_size(32), aligned(2), may_alias));

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline vf splat(float x) { return x - vf{}; }
inline vf load(const float* p) { return *reinterpret_cast<const vf_loose*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf_loose*>(p) = x; }

// Integers below 2^16 in 16 bits. (GCC 12 takes such conversions apart into single numbers.)
inline vh low_halves(vi x) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtepi32_epi16((__m512i)x);
#else
    typedef int32_t v8i __attribute__((vector_size(32)));
    const v8i low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    const v8i high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    return (vh)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)low, (__m256i)high), 0xd8);
#endif
}

inline vf widen_bf16(vh x) {
#if defined(__AVX512F__)
    return (vf)((vu)_mm512_cvtepu16_epi32((__m256i)x) << 16);  // GCC 12 converts in two halves
#else
    return (vf)(__builtin_convertvector(x, vu) << 16);
#endif
}

inline vh narrow_bf16(vf x) {
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    const vu bits = (vu)x;
    const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const vu quiet = (bits >> 16) | 0x40;
    const vi is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return low_halves((is_nan & (vi)quiet) | (~is_nan & (vi)rounded));
#endif
}

inline vf widen_f16(vh x) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)x);
#else
    const __m256i all = (__m256i)x;
    vf y;
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(all)), high = _mm256_cvtph_ps(_mm256_extracti128_si256(all, 1));
    std::memcpy(&y, &low, 32);
    std::memcpy(reinterpret_cast<char*>(&y) + 32, &high, 32);
    return y;
#endif
}

inline vh narrow_f16(vf x) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    __m256 low, high;
    std::memcpy(&low, &x, 32);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + 32, 32);
    const __m128i a = _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT), b = _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT);
    return (vh)_mm256_set_m128i(b, a);
#endif
}

// Values of any float type as float32, and back. T is a tag: float, or one of these.
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline vf load(const bf16* p) { return widen_bf16(*reinterpret_cast<const vh_loose*>(p)); }
inline vf load(const f16* p) { return widen_f16(*reinterpret_cast<const vh_loose*>(p)); }
inline void store(bf16* p, vf x) { *reinterpret_cast<vh_loose*>(p) = narrow_bf16(x); }
inline void store(f16* p, vf x) { *reinterpret_cast<vh_loose*>(p) = narrow_f16(x); }

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return bf16_to_float(x.bits); }
inline float widen(f16 x) { return _cvtsh_ss(x.bits); }
inline void narrow(float x, float* p) { *p = x; }
inline void narrow(float x, bf16* p) { p->bits = float_to_bf16(x); }
inline void narrow(float x, f16* p) { p->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

// The first n values, n < 16; lanes beyond are zero (load) or left alone (store).
#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline vf load_part(const float* p, int n) { return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
inline vf load_part(const bf16* p, int n) { return widen_bf16((vh)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)); }
inline vf load_part(const f16* p, int n) { return widen_f16((vh)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)); }
inline void store_part(float* p, vf x, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x); }
inline void store_part(bf16* p, vf x, int n) { _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow_bf16(x)); }
inline void store_part(f16* p, vf x, int n) { _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow_f16(x)); }
#else
template <class T>
inline vf load_part(const T* p, int n) {
    vf x{};
    for (int i = 0; i < n; i++) x[i] = widen(p[i]);
    return x;
}

template <class T>
inline void store_part(T* p, vf x, int n) {
    for (int i = 0; i < n; i++) narrow(x[i], p + i);
}
#endif

// Rows that lie pages apart are not fetched ahead by the processor itself. 8 rows: 10 % of a prompt through the delta rule.
constexpr int64_t kRowsAhead = 8;

inline void prefetch(const void* start, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(static_cast<const char*>(start) + at, _MM_HINT_T0);
}

// Calls f with a null pointer to the element type of a run-time float type.
template <class F>
inline auto with_float(Float type, F&& f) {
    switch (type) {
        case Float::bf16: return f((bf16*)nullptr);
        case Float::f16: return f((f16*)nullptr);
        default: return f((float*)nullptr);
    }
}

// One rounding, everywhere: whether the compiler contracts a * b + c may differ from one instance of a template to the next,
// and rows that pass through different instances must be equal to the bit.
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    const auto low = [](vf x) -> v8 { return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7); };
    const auto high = [](vf x) -> v8 { return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15); };
    const v8 x = (v8)_mm256_fmadd_ps((__m256)low(a), (__m256)low(b), (__m256)low(c));
    const v8 y = (v8)_mm256_fmadd_ps((__m256)high(a), (__m256)high(b), (__m256)high(c));
    return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf min(vf a, vf b) { return a < b ? a : b; }

// Sum of the lanes, always in the same order: halves, quarters, ...
inline float sum(vf x) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    v8 a, b;
    std::memcpy(&a, &x, 32);
    std::memcpy(&b, reinterpret_cast<const char*>(&x) + 32, 32);
    a += b;
    v4 c, d;
    std::memcpy(&c, &a, 16);
    std::memcpy(&d, reinterpret_cast<const char*>(&a) + 16, 16);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}

inline float largest(vf x) {
    typedef float v4 __attribute__((vector_size(16)));
    v8 a, b;
    std::memcpy(&a, &x, 32);
    std::memcpy(&b, reinterpret_cast<const char*>(&x) + 32, 32);
    a = a > b ? a : b;
    v4 c, d;
    std::memcpy(&c, &a, 16);
    std::memcpy(&d, reinterpret_cast<const char*>(&a) + 16, 16);
    c = c > d ? c : d;
    const float even = c[0] > c[2] ? c[0] : c[2], odd = c[1] > c[3] ? c[1] : c[3];
    return even > odd ? even : odd;
}

// e^x to 2 ulp; below -87.3 zero, above 88.7 infinity, NaN stays NaN.
// Cody-Waite reduction to |r| <= ln2/2 and a polynomial of degree 6 (coefficients: minimax, Cephes expf).
inline vf exp(vf x) {
    const vf clamped = max(min(x, splat(88.8f)), splat(-88.0f));
    const vf shifted = fma(clamped, splat(1.44269504f), splat(12582912.f));  // 1.5 * 2^23: rounds to an integer
    const vf n = shifted - splat(12582912.f);
    vf r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.0f));
    // Two halves of the exponent, so that 2^128 and 2^-126 are reached without overflow on the way.
    const vi k = __builtin_convertvector(n, vi);
    const vi half = k >> 1, rest = k - half;
    const vf y = p * (vf)((half + 127) << 23) * (vf)((rest + 127) << 23);
    const vi small = x < splat(-87.33654f), broken = x != x;
    vi bits = (vi)y & ~small;
    bits = (broken & (vi)x) | (~broken & bits);
    return (vf)bits;
}

inline vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }
inline vf silu(vf x) { return x / (splat(1.0f) + exp(-x)); }

// 1 / (1 + e^-x) to 4 ulp at half the price: e^-x is held within e^-80 to e^80, and NaN is not kept.
#if defined(__AVX512F__)
inline vf quick_sigmoid(vf x) {
    const vf z = max(min(-x, splat(80.f)), splat(-80.f));
    const vf shifted = fma(z, splat(1.44269504f), splat(12582912.f));
    const vf n = shifted - splat(12582912.f);
    vf r = fma(n, splat(-0.693359375f), z);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.3981999507e-3f);
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.0f));
    const vf d = splat(1.f) + (vf)((vi)p + ((vi)shifted << 23));  // the low bits of `shifted` are the exponent
    const vf y = (vf)_mm512_maskz_rcp14_ps(__mmask16(-1), (__m512)d);
    return fma(y, fma(-d, y, splat(1.f)), y);
}
#else
inline vf quick_sigmoid(vf x) {
    vf y;
    for (int half = 0; half < 2; half++) {  // in registers: the compiler would go through memory with all sixteen
        const auto c = [](float value) { return _mm256_set1_ps(value); };
        const auto step = [&](__m256 p, __m256 r, float value) { return _mm256_fmadd_ps(p, r, c(value)); };
        const __m256 from = _mm256_load_ps(reinterpret_cast<const float*>(&x) + 8 * half);
        const __m256 z = _mm256_max_ps(_mm256_min_ps(_mm256_sub_ps(c(0.f), from), c(80.f)), c(-80.f));
        const __m256 shifted = _mm256_fmadd_ps(z, c(1.44269504f), c(12582912.f)), n = _mm256_sub_ps(shifted, c(12582912.f));
        const __m256 r = _mm256_fmadd_ps(n, c(2.12194440e-4f), _mm256_fmadd_ps(n, c(-0.693359375f), z));
        __m256 p = step(c(1.3981999507e-3f), r, 8.3334519073e-3f);
        p = step(step(step(p, r, 4.1665795894e-2f), r, 1.6666665459e-1f), r, 5.0000001201e-1f);
        p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, c(1.f)));
        const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
        const __m256 d = _mm256_add_ps(c(1.f), _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power)));
        _mm256_store_ps(reinterpret_cast<float*>(&y) + 8 * half, _mm256_div_ps(c(1.f), d));
    }
    return y;
}
#endif

inline vf quick_silu(vf x) { return x * quick_sigmoid(x); }

}  // namespace optiq::OPTIQ_LEVEL
