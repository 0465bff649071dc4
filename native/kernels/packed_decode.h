// Codes as levels in the orders in which tiles of bytes are multiplied, a vector of 64 at a time with two or three shuffles.
#pragma once

#include "kernels/levels.h"

#if defined(__AMX_INT8__)

namespace optiq::OPTIQ_LEVEL {

struct alignas(64) ByteTable { uint8_t at[64]; };

inline __m512i load_table(const ByteTable& table) { return _mm512_load_si512(table.at); }

// Levels of a key lie as the key's bytes meet the query's: where `paired`, all even coordinates of each 128, then the odd ones.
inline bool paired(int bits, int64_t width) { return bits <= 4 && width % 128 == 0; }

inline int64_t coordinate(bool pairs, int64_t place) {
    return pairs ? place / 128 * 128 + 2 * (place % 64) + place % 128 / 64 : place;
}

// 128 codes of one key, of at most 4 bits: 64 even ones and 64 odd ones. A 64-bit word holds sixteen.
template <int BITS>
inline void decode_paired(__m512i table, __m512i raw, int8_t* out) {
    __m512i even = raw, odd = _mm512_srli_epi16(raw, 4);
    if constexpr (BITS != 4) {
        static constexpr ByteTable bytes = [] {
            ByteTable t{};
            for (int j = 0; j < 64; j++) t.at[j] = uint8_t((j / 8 * 2 * BITS + j % 8) % 64);
            return t;
        }();
        constexpr uint64_t shifts = [] {
            uint64_t all = 0;
            for (int c = 0; c < 8; c++) all |= uint64_t(2 * c * BITS) << (8 * c);
            return all;
        }();
        const __m512i words = _mm512_permutexvar_epi8(load_table(bytes), raw);
        even = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(int64_t(shifts)), words);
        odd = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(int64_t(shifts + BITS * 0x0101010101010101ull)), words);
    }
    _mm512_store_si512(out, look_up<BITS>(table, even));
    _mm512_store_si512(out + 64, look_up<BITS>(table, odd));
}

// Values of four tokens side by side, dword by dword a coordinate. kUnit coordinates come at once: two vectors, those of the even
// and of the odd ones, or one of all.
template <int BITS>
struct FourTokens {
    static constexpr int kUnit = BITS <= 4 ? 32 : 16, kVectors = kUnit / 16, kBytes = kUnit * BITS / 8;

    // The bytes that hold a 64-bit word's coordinates of each token: two each (of four tokens' 16 bytes).
    static constexpr ByteTable kSpread = [] {
        ByteTable t{};
        for (int j = 0; j < 64; j++) {
            const int word = j / 8, token = j % 8 / 2;
            t.at[j] = BITS == 4 ? uint8_t(j % 4 * 16 + j / 4) : uint8_t(token * 16 + word * (kUnit / 8) * BITS / 8 + j % 2);
        }
        return t;
    }();
    template <int ODD>
    static constexpr ByteTable kShifts = [] {
        ByteTable t{};
        for (int j = 0; j < 64; j++) {
            const int word = j / 8, token = j % 4, which = kVectors * (j % 8 / 4) + ODD;
            t.at[j] = uint8_t(16 * token + word * (kUnit / 8) * BITS % 8 + which * BITS);
        }
        return t;
    }();

    // Reads 16 bytes at each of p, p + step, ..; `apart` bytes between the two vectors.
    static void decode(__m512i table, const uint8_t* p, int64_t step, int8_t* out, int64_t apart) {
        const auto token = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * step)); };
        __m512i raw = _mm512_castsi128_si512(token(0));
        raw = _mm512_mask_broadcast_i32x4(raw, 0x00f0, token(1));
        raw = _mm512_mask_broadcast_i32x4(raw, 0x0f00, token(2));
        raw = _mm512_mask_broadcast_i32x4(raw, 0xf000, token(3));
        const __m512i words = _mm512_permutexvar_epi8(load_table(kSpread), raw);
        if constexpr (BITS == 4) {
            _mm512_store_si512(out, look_up<BITS>(table, words));
            _mm512_store_si512(out + apart, look_up<BITS>(table, _mm512_srli_epi16(words, 4)));
        } else {
            _mm512_store_si512(out, look_up<BITS>(table, _mm512_multishift_epi64_epi8(load_table(kShifts<0>), words)));
            if constexpr (kVectors == 2)
                _mm512_store_si512(out + apart, look_up<BITS>(table, _mm512_multishift_epi64_epi8(load_table(kShifts<1>), words)));
        }
    }
};

}  // namespace optiq::OPTIQ_LEVEL

#endif
