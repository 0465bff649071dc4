// Four tiles of sums by a compile-time number: GCC 12 takes the name of a tile as text, so nothing but a literal will do.
#pragma once

#include "kernels/simd.h"

#if defined(__AMX_INT8__)

namespace optiq::OPTIQ_LEVEL {

// GCC 12's _tile_loadd does not say that it reads memory: what was written must be there before it.
inline void written() { __asm__ volatile("" ::: "memory"); }

// All eight tiles with 16 rows of 64 bytes, until the end of the scope. The setting is a constant in memory: GCC 12's
// _tile_loadconfig tells the compiler that it reads 8 bytes, so stores to the others of a local one may be dropped.
struct Tiles {
    struct alignas(64) Setting {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };
    // Tiles 0 to 5 have `rows` rows, 6 and 7 have 16: a product takes as many cycles as its left side has rows.
    static constexpr Setting of(uint8_t rows) {
        return {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {rows, rows, rows, rows, rows, rows, 16, 16}};
    }
    explicit Tiles(int rows = 16) {
        static constexpr Setting all[16] = {of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8),
                                            of(9), of(10), of(11), of(12), of(13), of(14), of(15), of(16)};
        _tile_loadconfig(&all[rows - 1]);
    }
    ~Tiles() { _tile_release(); }
};

// Calls f with 0, 1, 2, 3 as compile-time constants.
template <class F>
inline void each_tile(const F& f) {
    f(std::integral_constant<int, 0>{});
    f(std::integral_constant<int, 1>{});
    f(std::integral_constant<int, 2>{});
    f(std::integral_constant<int, 3>{});
}

template <int T>
inline void clear_sums() {
    if constexpr (T == 0) _tile_zero(0);
    if constexpr (T == 1) _tile_zero(1);
    if constexpr (T == 2) _tile_zero(2);
    if constexpr (T == 3) _tile_zero(3);
}

template <int T>
inline void store_sums(int32_t* to, int64_t stride) {
    if constexpr (T == 0) _tile_stored(0, to, stride);
    if constexpr (T == 1) _tile_stored(1, to, stride);
    if constexpr (T == 2) _tile_stored(2, to, stride);
    if constexpr (T == 3) _tile_stored(3, to, stride);
}

}  // namespace optiq::OPTIQ_LEVEL

#endif
