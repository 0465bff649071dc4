// Codes of 1 to 8 bits as the levels that they stand for.
#pragma once

#include "kernels/packed.h"
#include "kernels/unpack.h"

namespace optiq::OPTIQ_LEVEL {

// Calls f with the width as a compile-time constant.
template <class F>
inline auto with_code_bits(int bits, F&& f) {
    if (bits == 1) return f(std::integral_constant<int, 1>{});
    return with_bits(bits, f);
}

inline int64_t padded64(int64_t width) { return (width + 63) / 64 * 64; }

#if defined(__AVX512VBMI__)

// Levels of codes whose upper bits, up to the byte's end, are of no account.
template <int BITS>
inline __m512i look_up(__m512i table, __m512i codes) {
    if constexpr (BITS == 8) return _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
    return _mm512_permutexvar_epi8(codes, table);
}

inline __m512i level_table(const Codebook& book) { return _mm512_load_si512(book.levels); }

// The first `count` bytes, at most 64, and zeros.
inline __m512i first_bytes(const uint8_t* p, int64_t count) {
    return _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, unsigned(count < 64 ? count : 64)), p);
}

// 64 codes in their order, of a row that ends after `left` bytes.
template <int BITS>
inline __m512i sixty_four(__m512i table, const uint8_t* p, int64_t left) {
    const __m512i raw = first_bytes(p, left < 8 * BITS ? left : 8 * BITS);
    if constexpr (BITS == 8) return look_up<8>(table, raw);
    alignas(64) static constexpr auto bytes = [] {
        struct { uint8_t at[64]; } t{};
        for (int j = 0; j < 64; j++) t.at[j] = uint8_t(((j / 8) * BITS + j % 8) % 64);
        return t;
    }();
    constexpr uint64_t shifts = [] {
        uint64_t all = 0;
        for (int c = 0; c < 8; c++) all |= uint64_t(c * BITS) << (8 * c);
        return all;
    }();
    const __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(&bytes), raw);
    return look_up<BITS>(table, _mm512_multishift_epi64_epi8(_mm512_set1_epi64(int64_t(shifts)), words));
}

// Levels of a whole row in their order; `out` has room for a multiple of 64.
template <int BITS>
inline void decode_levels(const Codebook& book, const uint8_t* p, int64_t width, int8_t* out) {
    const __m512i table = level_table(book);
    int64_t left = width * BITS / 8;
    for (int64_t d = 0; d < width; d += 64, p += 8 * BITS, left -= 8 * BITS)
        _mm512_storeu_si512(out + d, sixty_four<BITS>(table, p, left));
}

#else

// 32 codes in their order, of a row that ends after `left` bytes. (Through memory, words would be stored that a vector waits for.)
template <int BITS>
inline __m256i thirty_two(const uint8_t* p, int64_t left) {
    const auto eight = [&](int i) {
        const uint8_t* at = p + i * BITS;
        uint64_t word = 0;
        if (left - i * BITS >= 8)
            std::memcpy(&word, at, 8);
        else if (left - i * BITS >= BITS)
            std::memcpy(&word, at, BITS);
        return static_cast<long long>(BITS == 8 ? word : _pdep_u64(word, kCodeMask<BITS>));
    };
    return _mm256_set_epi64x(eight(3), eight(2), eight(1), eight(0));
}

template <int BITS>
inline __m256i look_up(const Codebook& book, __m256i codes) {
    if constexpr (BITS == 8) return _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    const auto sixteen = [&](int which) {
        const __m128i* table = reinterpret_cast<const __m128i*>(book.levels) + which;
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(table)), codes);
    };
    __m256i levels = sixteen(0);
    const __m256i part = _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
    for (int which = 1; which < (BITS > 4 ? 1 << (BITS - 4) : 1); which++)
        levels = _mm256_blendv_epi8(levels, sixteen(which), _mm256_cmpeq_epi8(part, _mm256_set1_epi8(char(which))));
    return levels;
}

template <int BITS>
inline void decode_levels(const Codebook& book, const uint8_t* p, int64_t width, int8_t* out) {
    int64_t left = width * BITS / 8;
    for (int64_t d = 0; d < padded64(width); d += 32, p += 4 * BITS, left -= 4 * BITS)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), look_up<BITS>(book, thirty_two<BITS>(p, left)));
}

#endif

}  // namespace optiq::OPTIQ_LEVEL
