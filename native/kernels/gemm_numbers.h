// How a product of many rows sees numbers: as float32, or as bfloat16 parts in pairs; and how they are read.
#pragma once

#include "kernels/gemm.h"
#include "kernels/simd.h"
#include "kernels/square.h"

namespace optiq::OPTIQ_LEVEL {

// A step is four bytes of the depth: one float32, or two bfloat16. kSteps steps make a block, so that two panels of P
// (32 KiB) stay in the first-level cache while the rows of A pass by.
constexpr int64_t kSteps = 256;
constexpr int64_t kRowSteps = kSteps + 16;  // of a row of the A block; not a power of two, so that rows do not share cache sets

// How numbers are represented: float32 as it is (0 parts), or as so many bfloat16 parts.
template <int PARTS>
struct Form {
    static constexpr int parts = PARTS, planes = PARTS ? PARTS : 1, per_step = PARTS ? 2 : 1;
    static constexpr int64_t depth = kSteps * per_step;
};

template <class F>
constexpr int64_t panel_steps = F::planes * kSteps * kPanel;  // of one panel of one block of P

template <class F>
inline auto with_form(Float type, F&& f) {
#if defined(__AMX_BF16__)
    if (type == Float::bf16) return f(Form<1>{});
    if (type == Float::f16) return f(Form<2>{});
    return f(Form<3>{});
#elif defined(__AVX512BF16__)
    if (type == Float::bf16) return f(Form<1>{});
    return f(Form<0>{});
#else
    (void)type;
    return f(Form<0>{});
#endif
}

// The parts of x as float32 numbers whose low halves are zero. Of three, all are cut off, which loses nothing and does not
// overflow; two are rounded, so that the second is small.
template <int PARTS>
inline void split(vf x, vu* parts) {
    for (int i = 0; i < PARTS; i++) {
        parts[i] = PARTS == 3 ? (vu)x & 0xffff0000u : (vu)widen_bf16(narrow_bf16(x));
        x -= (vf)parts[i];
    }
}

// The high halves of 32 numbers' bits: bfloat16, in order.
inline vu high_halves(vu low, vu high) {
#if defined(__AVX512BW__)
    alignas(64) static constexpr auto odd = [] {
        struct { uint16_t at[32]; } table{};
        for (int i = 0; i < 32; i++) table.at[i] = uint16_t(2 * i + 1);
        return table;
    }();
    return (vu)_mm512_permutex2var_epi16((__m512i)low, _mm512_load_si512(&odd), (__m512i)high);
#else
    vu all;
    const vh a = __builtin_convertvector(low >> 16, vh), b = __builtin_convertvector(high >> 16, vh);
    std::memcpy(&all, &a, 32);
    std::memcpy(reinterpret_cast<char*>(&all) + 32, &b, 32);
    return all;
#endif
}

template <class T>
inline vf load_up_to(const T* p, int64_t n) {
    if (n >= kLanes) return load(p);
    return n > 0 ? load_part(p, int(n)) : vf{};
}

// Sixteen steps of one vector, numbers p[0 .. n), zero beyond.
template <class F, class T>
inline void load_along(const T* p, int64_t n, vu* out) {
    if constexpr (F::parts == 0) {
        out[0] = (vu)load_up_to(p, n);
    } else if constexpr (F::parts == 1 && std::is_same_v<T, bf16>) {
        if (n >= 32) {
            std::memcpy(out, p, 64);
        } else {
            out[0] = vu{};
            if (n > 0) std::memcpy(out, p, size_t(n) * 2);
        }
    } else {
        vu low[F::parts], high[F::parts];
        split<F::parts>(load_up_to(p, n), low);
        split<F::parts>(load_up_to(p + kLanes, n - kLanes), high);
        for (int i = 0; i < F::parts; i++) out[i] = high_halves(low[i], high[i]);
    }
}

// One step of sixteen vectors that lie side by side; numbers (k, i) with k < depth and i < n exist.
template <class F, class T>
inline void load_across(const T* p, int64_t stride, int64_t depth, int64_t n, vu* out) {
    if constexpr (F::parts == 0) {
        out[0] = depth > 0 ? (vu)load_up_to(p, n) : vu{};
    } else {
        vu even[F::parts], odd[F::parts];
        split<F::parts>(depth > 0 ? load_up_to(p, n) : vf{}, even);
        split<F::parts>(depth > 1 ? load_up_to(p + stride, n) : vf{}, odd);
        for (int i = 0; i < F::parts; i++) out[i] = (even[i] >> 16) | odd[i];
    }
}

inline void put(uint32_t* p, vu x) { *reinterpret_cast<vu*>(p) = x; }

// Steps of a block that is n numbers deep, in whole vectors.
template <class F>
inline int64_t steps_of(int64_t n) { return round_up((n + F::per_step - 1) / F::per_step, kLanes); }

}  // namespace optiq::OPTIQ_LEVEL
