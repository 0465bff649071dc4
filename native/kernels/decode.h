// The dense values of coded rows: w = s q + b in float32, rounded to the type asked for.
#pragma once

#include "kernels/quantized.h"
#include "kernels/simd.h"
#include "kernels/unpack.h"

namespace optiq::OPTIQ_LEVEL {

// The compiler takes the conversion apart into single bytes, hence by hand.
inline vf bytes_to_floats(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
#else
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
    return __builtin_shufflevector((v8)low, (v8)high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}

// 32 codes of one group.
template <int BITS, class T>
inline void decode_part(const uint8_t* bytes, vf s, vf b, T* out) {
    store(out, fma(bytes_to_floats(bytes), s, b));
    store(out + kLanes, fma(bytes_to_floats(bytes + kLanes), s, b));
}

#if defined(__AVX512BF16__)
// Up to 32 values that a group can take: a table lookup is cheaper than arithmetic with 64 codes.
struct Values {
    __m512i table;
    template <int BITS>
    static Values of(vf s, vf b) {
        const vf count{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const __m256i low = (__m256i)narrow_bf16(fma(count, s, b));
        const __m256i high = BITS > 4 ? (__m256i)narrow_bf16(fma(count + 16.f, s, b)) : low;
        return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
    }
    void look_up(__m256i codes, bf16* out) const {
        _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes), table));
    }
};
#endif

template <int BITS, class S, class T>
void decode_row(const Coded& w, int64_t row, int64_t start, int64_t count, T* out) {
    const uint8_t* codes = w.codes + row * w.row_bytes() + start * BITS / 8;
    const S* scales = static_cast<const S*>(w.scales) + row * w.groups();
    const S* biases = static_cast<const S*>(w.biases) + row * w.groups();
    const int shift = w.group == 32 ? 5 : w.group == 64 ? 6 : 7;
    for (int64_t c = 0; c < count; c += 64) {
        const int n = count - c >= 64 ? 64 : int(count - c);
        const int64_t g = (start + c) >> shift, next = (start + c + 32) >> shift;
        const vf s = splat(widen(scales[g])), b = splat(widen(biases[g]));
#if defined(__AVX512BF16__)
        if constexpr (BITS <= 5 && std::is_same_v<T, bf16>) {
            const __m512i all = unpack<BITS>(codes + c * BITS / 8, n);
            Values values = Values::of<BITS>(s, b);
            values.look_up(_mm512_castsi512_si256(all), out + c);
            if (n == 64) {
                if (next != g) values = Values::of<BITS>(splat(widen(scales[next])), splat(widen(biases[next])));
                values.look_up(_mm512_extracti64x4_epi64(all, 1), out + c + 32);
            }
            continue;
        }
#endif
        alignas(64) uint8_t bytes[64];
        unpack<BITS>(codes + c * BITS / 8, n, bytes);
        decode_part<BITS>(bytes, s, b, out + c);
        if (n == 64) {
            if (next == g)
                decode_part<BITS>(bytes + 32, s, b, out + c + 32);
            else
                decode_part<BITS>(bytes + 32, splat(widen(scales[next])), splat(widen(biases[next])), out + c + 32);
        }
    }
}

// Columns [start, start + count) of a row; both are multiples of 32.
template <class T>
inline void decode(const Coded& w, int64_t row, int64_t start, int64_t count, T* out) {
    with_bits(w.bits, [&](auto bits) {
        with_float(w.type, [&]<class S>(S*) { decode_row<bits(), S>(w, row, start, count, out); });
    });
}

}  // namespace optiq::OPTIQ_LEVEL
