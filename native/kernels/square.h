// Sixteen vectors of sixteen 32-bit numbers, rows to columns.
#pragma once

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {

#if defined(__AVX512F__)

// r[i][j] to r[j][i].
inline void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 q + c] holds, in its 128-bit lane b, column 4 b + c of rows 4 q .. 4 q + 3.
    for (int c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);        // lanes 0 2 of rows 0-3, of rows 4-7
        t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);    // lanes 1 3
        t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    }
    for (int c = 0; c < 4; c++) {
        r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
        r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
        r[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
        r[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
    }
}

inline void transpose(vf* r) { transpose(reinterpret_cast<__m512i*>(r)); }
inline void transpose(vu* r) { transpose(reinterpret_cast<__m512i*>(r)); }

#else

template <class V>
inline void transpose(V* r) {
    for (int i = 0; i < kLanes; i++)
        for (int j = i + 1; j < kLanes; j++) {
            const auto x = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = x;
        }
}

#endif

}  // namespace optiq::OPTIQ_LEVEL
