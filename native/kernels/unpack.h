// Codes of 2 to 8 bits from MLX's bit stream, 64 at a time, as bytes in their natural order.
#pragma once

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {

// Eight codes take `bits` bytes, so they can be cut out of one 64-bit word whatever the width.
template <int BITS>
constexpr uint64_t kCodeMask = 0x0101010101010101ull * ((1u << BITS) - 1);

#if defined(__AVX512VBMI__)

// `count` codes (64, or 32 at the end of a row); bytes beyond them are not read, codes beyond them are zero.
template <int BITS>
inline __m512i unpack(const uint8_t* p, int count) {
    const __mmask64 inside = count == 64 ? (BITS == 8 ? ~0ull : (1ull << (BITS * 8 & 63)) - 1) : (1ull << BITS * 4) - 1;
    const __m512i raw = _mm512_maskz_loadu_epi8(inside, p);
    if constexpr (BITS == 8) return raw;
    alignas(64) static constexpr auto bytes = [] {
        struct { uint8_t at[64]; } table{};
        for (int j = 0; j < 64; j++) table.at[j] = uint8_t((j / 8) * BITS + j % 8);
        return table;
    }();
    constexpr uint64_t shifts = [] {
        uint64_t all = 0;
        for (int c = 0; c < 8; c++) all |= uint64_t(c * BITS) << (8 * c);
        return all;
    }();
    const __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(&bytes), raw);
    const __m512i fields = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(int64_t(shifts)), words);
    return _mm512_and_si512(fields, _mm512_set1_epi64(int64_t(kCodeMask<BITS>)));
}

template <int BITS>
inline void unpack(const uint8_t* p, int count, uint8_t* out) {
    _mm512_storeu_si512(out, unpack<BITS>(p, count));
}

#else

template <int BITS>
inline void unpack(const uint8_t* p, int count, uint8_t* out) {
    if (count < 64) std::memset(out + count, 0, size_t(64 - count));
    for (int j = 0; j < count / 8; j++) {
        uint64_t word = 0;
        if (8 * (j + 1) <= count * BITS / 8 - j * (BITS - 8))  // a whole word lies inside the codes
            std::memcpy(&word, p + j * BITS, 8);
        else
            std::memcpy(&word, p + j * BITS, BITS);
        const uint64_t eight = BITS == 8 ? word : _pdep_u64(word, kCodeMask<BITS>);
        std::memcpy(out + 8 * j, &eight, 8);
    }
}

#endif

// Calls f with the width as a compile-time constant.
template <class F>
inline auto with_bits(int bits, F&& f) {
    switch (bits) {
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 8: return f(std::integral_constant<int, 8>{});
        default: return f(std::integral_constant<int, 4>{});
    }
}

}  // namespace optiq::OPTIQ_LEVEL
