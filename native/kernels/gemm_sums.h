// The arithmetic: sums of rows of A with one or two panels of P, by tiles or by registers.
#pragma once

#include "kernels/gemm_numbers.h"
#include "kernels/tile_sums.h"

namespace optiq::OPTIQ_LEVEL {

// Sums [panel][row][16 of the panel] that a block of the depth adds to: where they are so far (nowhere yet: null), where they
// go, and the floats from one panel's to the next's in both.
struct Sums {
    const float* from;
    float* to;
    int64_t panel;
    Sums after(int64_t rows) const { return {from ? from + rows * kPanel : nullptr, to + rows * kPanel, panel}; }
};

#if defined(__AMX_BF16__)

constexpr int64_t kWidth = 128, kStrip = 32;
constexpr int kTogether = 2;  // panels
template <class F>
constexpr bool streams = F::parts == 1;  // panels stream past rows of A that stay in the first-level cache

// Two strips of 16 rows with one or two panels, sums in tiles 0 to 3. The tile intrinsics are statements with literal numbers.
template <class F, int PANELS>
inline void strip(const uint32_t* a, int64_t plane, const uint32_t* p, int64_t steps, const Sums& c) {
    constexpr int64_t row = kRowSteps * 4;
    if (!c.from) {
        _tile_zero(0);
        _tile_zero(1);
        if (PANELS > 1) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, c.from, 64);
        _tile_loadd(1, c.from + 256, 64);
        if (PANELS > 1) {
            _tile_loadd(2, c.from + c.panel, 64);
            _tile_loadd(3, c.from + c.panel + 256, 64);
        }
    }
    const auto load_a = [&](int part, int64_t s) {
        const uint32_t* at = a + part * plane + s;
        _tile_loadd(4, at, row);
        _tile_loadd(5, at + 16 * kRowSteps, row);
    };
    const auto load_p = [&](int part, int64_t s) {
        const uint32_t* at = p + part * kSteps * kPanel + s * kPanel;
        if constexpr (streams<F>) {  // not into the first-level cache: a third faster
            _tile_stream_loadd(6, at, 64);
            if (PANELS > 1) _tile_stream_loadd(7, at + panel_steps<F>, 64);
        } else {
            _tile_loadd(6, at, 64);
            if (PANELS > 1) _tile_loadd(7, at + panel_steps<F>, 64);
        }
    };
    const auto multiply = [&] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (PANELS > 1) {
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    };
    for (int64_t s = 0; s < steps; s += kLanes) {
        if constexpr (F::parts == 3) {
            load_a(0, s), load_p(2, s), multiply();
            load_p(1, s), multiply();
            load_a(1, s), multiply();
            load_p(0, s), multiply();
            load_a(2, s), multiply();
            load_a(0, s), multiply();
        } else if constexpr (F::parts == 2) {
            load_a(0, s), load_p(1, s), multiply();
            load_p(0, s), multiply();
            load_a(1, s), multiply();
        } else {
            load_a(0, s), load_p(0, s), multiply();
        }
    }
    _tile_stored(0, c.to, 64);
    _tile_stored(1, c.to + 256, 64);
    if (PANELS > 1) {
        _tile_stored(2, c.to + c.panel, 64);
        _tile_stored(3, c.to + c.panel + 256, 64);
    }
}

using Arithmetic = Tiles;
// The tile intrinsics do not tell the compiler what they read.
inline void fence() { written(); }

#else

#if defined(__AVX512F__)
typedef vf reg;
constexpr int kTogether = 2, kRegs = 1;
constexpr int64_t kStrip = 12;
#else
typedef float reg __attribute__((vector_size(32), aligned(32), may_alias));
constexpr int kTogether = 1, kRegs = 2;
constexpr int64_t kStrip = 6;
#endif
constexpr int64_t kWidth = 96;
template <class F>
constexpr bool streams = false;

template <class F>
inline reg multiply_add(uint32_t a, reg p, reg c) {
#if defined(__AVX512BF16__)
    if constexpr (F::parts) return (reg)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)p);
#endif
    float x;
    std::memcpy(&x, &a, 4);
#if defined(__AVX512F__)
    return (reg)_mm512_fmadd_ps(_mm512_set1_ps(x), (__m512)p, (__m512)c);
#else
    return (reg)_mm256_fmadd_ps(_mm256_set1_ps(x), (__m256)p, (__m256)c);
#endif
}

// kStrip rows with PANELS panels.
template <class F, int PANELS>
inline void strip(const uint32_t* a, int64_t, const uint32_t* p, int64_t steps, const Sums& c) {
    constexpr int n = PANELS * kRegs, lanes = kLanes / kRegs;
    const auto offset = [&](int64_t r, int v) { return v / kRegs * c.panel + r * kPanel + v % kRegs * lanes; };
    reg sums[kStrip][n];
    for (int r = 0; r < kStrip; r++)
        for (int v = 0; v < n; v++) sums[r][v] = c.from ? *reinterpret_cast<const reg*>(c.from + offset(r, v)) : reg{};
    for (int64_t s = 0; s < steps; s++) {
        reg x[n];
        for (int v = 0; v < n; v++)
            x[v] = *reinterpret_cast<const reg*>(p + v / kRegs * panel_steps<F> + s * kPanel + v % kRegs * lanes);
#pragma GCC unroll 12
        for (int r = 0; r < kStrip; r++)
#pragma GCC unroll 2
            for (int v = 0; v < n; v++) sums[r][v] = multiply_add<F>(a[r * kRowSteps + s], x[v], sums[r][v]);
    }
    for (int r = 0; r < kStrip; r++)
        for (int v = 0; v < n; v++) *reinterpret_cast<reg*>(c.to + offset(r, v)) = sums[r][v];
}

struct Arithmetic {
    Arithmetic() {}
};
inline void fence() {}

#endif

static_assert(kWidth % 32 == 0 && kWidth % kStrip == 0);

// Adds the products of `steps` steps of `rows` rows, a multiple of kStrip that lie as block_row says, with `panels` panels, at
// most kTogether.
template <class F>
inline void add_products(const uint32_t* a, int64_t rows, const uint32_t* p, int panels, int64_t steps, const Sums& c) {
    for (int64_t r = 0; r < rows; r += kStrip) {
        if (panels == kTogether)
            strip<F, kTogether>(a + r * kRowSteps, rows * kRowSteps, p, steps, c.after(r));
        else
            strip<F, 1>(a + r * kRowSteps, rows * kRowSteps, p, steps, c.after(r));
    }
}

}  // namespace optiq::OPTIQ_LEVEL
