// What the forms of attention share: who sees whom, weights, sums.
#pragma once

#include "kernels/attention.h"
#include "kernels/simd.h"
#include "kernels/square.h"
#include "kernels/tile_sums.h"

namespace optiq::OPTIQ_LEVEL {

constexpr float kNever = -__builtin_inff();

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
inline const T* row_of(const HeadRows& x, int64_t batch, int64_t head, int64_t row) {
    return static_cast<const T*>(x.data) + batch * x.batch + head * x.head + row * x.row;
}

inline int64_t heads_per_group(const Attention& a) { return a.heads / a.groups; }

// Row r of a group: query r / R of head group R + r % R.
struct RowPlace {
    int64_t head, query;
    int64_t first, last;  // keys that causality and window let it see
};

inline RowPlace place(const Attention& a, int64_t group, int64_t row) {
    const int64_t share = heads_per_group(a), query = row / share, position = a.keys - a.queries + query;
    RowPlace p{group * share + row % share, query, 0, a.keys};
    if (a.causal) p.last = at_least(0, position + 1);
    if (a.window > 0) p.first = at_least(0, position + 1 - a.window);
    return p;
}

inline int64_t out_row(const Attention& a, int64_t batch, const RowPlace& p) {
    return (batch * a.heads + p.head) * a.queries + p.query;
}

// Sixteen or fewer mask values as numbers to add.
inline vf mask_values(const Attention& a, int64_t batch, const RowPlace& p, int64_t key, int count) {
    if (a.mask_kind == MaskKind::boolean) {
        const uint8_t* seen = row_of<uint8_t>(a.mask, batch, p.head, p.query) + key;
        typedef uint8_t vb __attribute__((vector_size(16), aligned(1), may_alias));
        vb bytes{};
        if (count >= kLanes)
            bytes = *reinterpret_cast<const vb*>(seen);
        else
            for (int i = 0; i < count; i++) bytes[i] = seen[i];
        const vi wide = __builtin_convertvector(bytes, vi);
        return wide != 0 ? vf{} : splat(kNever);
    }
    return with_float(a.mask_type, [&]<class T>(T*) {
        const T* values = row_of<T>(a.mask, batch, p.head, p.query) + key;
        return count >= kLanes ? load(values) : load_part(values, count);
    });
}

// e^x for x <= 0 to 2 ulp; exactly 0 below -80 (1.8e-35), so that no step underflows, which costs 150 cycles on Intel; NaN
// stays NaN.
inline vf exp_below(vf x) {
#if defined(__AVX512F__)
    // 2^f on [-1/2, 1/2] with the coefficients of Cephes exp2f.
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    const __m512 y = _mm512_max_ps(_mm512_set1_ps(-80.f), (__m512)x);  // the second operand is what a NaN gives
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-80.f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(y, log2e), 8);
    const vf f = (vf)_mm512_fmsub_ps(y, log2e, n);
    vf p = splat(1.535336188319500e-4f);
    p = fma(p, f, splat(1.339887440266574e-3f));
    p = fma(p, f, splat(9.618437357674640e-3f));
    p = fma(p, f, splat(5.550332471162809e-2f));
    p = fma(p, f, splat(2.402264791363012e-1f));
    p = fma(p, f, splat(6.931472028550421e-1f));
    p = fma(p, f, splat(1.f));
    return (vf)_mm512_maskz_scalef_ps(counts, (__m512)p, n);
#else
    return x < splat(-80.f) ? vf{} : exp(x);
#endif
}

inline float exp_below(float x) { return exp_below(splat(x))[0]; }

// The largest score so far as something that can be subtracted: 0 where no key was seen.
inline vf settled(vf most) { return most == splat(kNever) ? vf{} : most; }

// Lane i of the result is the sum of r[i]'s lanes, in an order that does not depend on i.
inline vf sums(vf* r) {
#if defined(__AVX512F__)
    transpose(r);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) r[i] += r[i + half];
    return r[0];
#else
    vf all;
    for (int i = 0; i < kLanes; i++) all[i] = sum(r[i]);
    return all;
#endif
}

#if defined(__AVX512BF16__)

// Pairs (low[i], high[i]) of bfloat16 as sixteen 32-bit lanes, from sixteen floats each.
inline __m512i pairs(vf low, vf high) {
    const __m512i l = _mm512_cvtepu16_epi32((__m256i)narrow_bf16(low)), h = _mm512_cvtepu16_epi32((__m256i)narrow_bf16(high));
    return _mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}

// Rows `even` and `odd` of 32 bfloat16 as 32 pairs, in order.
inline void interleave(__m512i even, __m512i odd, __m512i& first, __m512i& second) {
    alignas(64) static constexpr auto order = [] {
        struct { uint16_t at[64]; } table{};
        for (int i = 0; i < 32; i++) table.at[2 * i] = uint16_t(i), table.at[2 * i + 1] = uint16_t(32 + i);
        return table;
    }();
    first = _mm512_permutex2var_epi16(even, _mm512_load_si512(&order.at[0]), odd);
    second = _mm512_permutex2var_epi16(even, _mm512_load_si512(&order.at[32]), odd);
}

#endif

// Rows that no key was seen by: every key weighs the same, which is what a softmax over equal, very small scores gives
// (mlx::core::fast::scaled_dot_product_attention masks with the type's lowest number). Rare, so it may be slow.
template <class T>
inline void mean_of_values(const Attention& a, int64_t batch, int64_t group, T* out) {
    for (int64_t d = 0; d < a.value_width; d++) {
        float total = 0.f;
        for (int64_t j = 0; j < a.keys; j++) total += widen(row_of<T>(a.v, batch, group, j)[d]);
        narrow(total / float(a.keys), out + d);
    }
}

// Writes a row of the result from its sums; `o` is [Dv].
inline void finish_row(const Attention& a, int64_t batch, int64_t group, const RowPlace& p, float most, float total, const float* o) {
    const int64_t at = out_row(a, batch, p);
    float factor = 1.f;
    if (a.sinks) {
        const float sink = a.sinks[p.head], top = most > sink ? most : sink;
        factor = exp_below(most - top);
        total = total * factor + exp_below(sink - top);
        most = top;
    }
    if (a.logsumexp) a.logsumexp[at] = total > 0.f ? most + __builtin_logf(total) : total == 0.f ? kNever : total;
    with_float(a.type, [&]<class T>(T*) {
        T* out = static_cast<T*>(a.out) + at * a.value_width;
        if (total == 0.f && a.mask_kind != MaskKind::additive) return mean_of_values(a, batch, group, out);
        const vf by = splat(factor / total);
        int64_t d = 0;
        for (; d + kLanes <= a.value_width; d += kLanes) store(out + d, load(o + d) * by);
        if (d < a.value_width) store_part(out + d, load_part(o + d, int(a.value_width - d)) * by, int(a.value_width - d));
    });
}

}  // namespace optiq::OPTIQ_LEVEL
