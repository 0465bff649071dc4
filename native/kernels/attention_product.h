// C = A B or C += A B for small blocks that lie in the caches: A by broadcast in any order, rows of B as vectors.
#pragma once

#include "kernels/register.h"

namespace optiq::OPTIQ_LEVEL {

// The product over single floats.
struct Singles {
    static vr add(vr total, const char* a, vr b) {
        float x;
        std::memcpy(&x, a, 4);
        return (x - vr{}) * b + total;
    }
};

#if defined(__AVX512BF16__)
// The product over pairs of bfloat16: an element of A and of B is two neighbours along the summed axis.
struct Pairs {
    static vr add(vr total, const char* a, vr b) {
        int x;
        std::memcpy(&x, a, 4);
        return (vr)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(x), (__m512bh)b);
    }
};
#endif

// Rows and registers of a tile: as many sums as there are registers, less those for one row of B and an element of A.
#if defined(__AVX512F__)
constexpr int kTall = 12, kBroad = 2;
#else
constexpr int kTall = 6, kBroad = 2;
#endif

// A block in memory: element (i, k) at `start` + i row + k step, in bytes.
struct Left {
    const void* start;
    int64_t row, step;
};

template <class Op, int TALL, int BROAD>
inline void product_tile(const char* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, int64_t depth, float* c,
                         int64_t c_row, bool add) {
    vr total[TALL][BROAD];
    for (int i = 0; i < TALL; i++)
        for (int n = 0; n < BROAD; n++) total[i][n] = add ? load_register(c + i * c_row + n * kRegister) : vr{};
    for (int64_t k = 0; k < depth; k++, a += a_step, b += b_row) {
        vr x[BROAD];
        for (int n = 0; n < BROAD; n++) x[n] = load_register(b + n * kRegister);
        for (int i = 0; i < TALL; i++)
            for (int n = 0; n < BROAD; n++) total[i][n] = Op::add(total[i][n], a + i * a_row, x[n]);
    }
    for (int i = 0; i < TALL; i++)
        for (int n = 0; n < BROAD; n++) *reinterpret_cast<vr_loose*>(c + i * c_row + n * kRegister) = total[i][n];
}

// c[i, :] (+)= sum_k a[i, k] b[k, :] for `rows` rows and `columns` columns (a multiple of 16). Strides of b and c in floats
// (32-bit elements). Each element is one sum over k in rising order.
template <class Op>
inline void product(Left a, const float* b, int64_t b_row, int64_t depth, int64_t rows, int64_t columns, float* c, int64_t c_row,
                    bool add) {
    const auto column_panel = [&](auto broad, int64_t n) {
        constexpr int BROAD = decltype(broad)::value;
        const char* from = static_cast<const char*>(a.start);
        int64_t i = 0;
        for (; i + kTall <= rows; i += kTall)
            product_tile<Op, kTall, BROAD>(from + i * a.row, a.row, a.step, b + n, b_row, depth, c + i * c_row + n, c_row, add);
        for (; i + 4 <= rows; i += 4)
            product_tile<Op, 4, BROAD>(from + i * a.row, a.row, a.step, b + n, b_row, depth, c + i * c_row + n, c_row, add);
        for (; i < rows; i++)
            product_tile<Op, 1, BROAD>(from + i * a.row, a.row, a.step, b + n, b_row, depth, c + i * c_row + n, c_row, add);
    };
    int64_t n = 0;
    for (; n + kBroad * kRegister <= columns; n += kBroad * kRegister) column_panel(std::integral_constant<int, kBroad>{}, n);
    for (; n < columns; n += kRegister) column_panel(std::integral_constant<int, 1>{}, n);
}

}  // namespace optiq::OPTIQ_LEVEL
