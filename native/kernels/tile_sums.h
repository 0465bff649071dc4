// Four tiles of sums by a compile-time number: GCC 12 takes the name of a tile as text, so nothing but a literal will do.
#pragma once

#include "kernels/simd.h"

#if defined(__AMX_INT8__)

namespace optiq::OPTIQ_LEVEL {

// GCC 12's _tile_loadd does not say that it reads memory: what was written must be there before it.
inline void written() { __asm__ volatile("" ::: "memory"); }

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
