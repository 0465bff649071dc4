// Small dense products in float32 for kernels that keep their operands in cache.
#pragma once

#include "kernels/register.h"

namespace optiq::OPTIQ_LEVEL {

#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kBlockRegisters = 4;  // 24 of 32 registers hold sums
#else
constexpr int kBlockRows = 6, kBlockRegisters = 2;  // 12 of 16
#endif

inline vr spread(float x) { return x - vr{}; }

// One rounding, as `fma` of simd.h.
inline vr fused(vr a, vr b, vr c) {
#if defined(__AVX512F__)
    return fma(a, b, c);
#else
    return (vr)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#endif
}

// A operand read one value at a time, so that any strides do.
struct Scalars {
    const float* start;
    int64_t row, column;
};

inline Scalars plain(const float* a, int64_t stride) { return {a, stride, 1}; }
inline Scalars transposed(const float* a, int64_t stride) { return {a, 1, stride}; }

template <int ROWS, int REGISTERS>
inline void product_block(Scalars a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth, float keep) {
    vr sums[ROWS][REGISTERS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < REGISTERS; j++)
            sums[i][j] = keep != 0.f ? load_register(c + i * c_row + j * kRegister) * keep : vr{};
    for (int64_t k = 0; k < depth; k++) {
        vr row[REGISTERS];
        for (int j = 0; j < REGISTERS; j++) row[j] = load_register(b + k * b_row + j * kRegister);
        for (int i = 0; i < ROWS; i++) {
            const vr x = spread(a.start[i * a.row + k * a.column]);
            for (int j = 0; j < REGISTERS; j++) sums[i][j] = fused(x, row[j], sums[i][j]);
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < REGISTERS; j++) store_register(c + i * c_row + j * kRegister, sums[i][j]);
}

template <int REGISTERS>
void product_panel(Scalars a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t depth, float keep) {
    const auto next = [&](int64_t i) { return Scalars{a.start + i * a.row, a.row, a.column}; };
    int64_t i = 0;
    for (; i + kBlockRows <= rows; i += kBlockRows)
        product_block<kBlockRows, REGISTERS>(next(i), b, b_row, c + i * c_row, c_row, depth, keep);
    if (rows - i >= 4) product_block<4, REGISTERS>(next(i), b, b_row, c + i * c_row, c_row, depth, keep), i += 4;
    if (rows - i >= 2) product_block<2, REGISTERS>(next(i), b, b_row, c + i * c_row, c_row, depth, keep), i += 2;
    if (rows - i >= 1) product_block<1, REGISTERS>(next(i), b, b_row, c + i * c_row, c_row, depth, keep);
}

// C = keep C + A B for A [rows, depth], B [depth, columns], C [rows, columns]; columns is a multiple of 16.
// With keep 0 the old C is not read.
inline void product(Scalars a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t columns,
                    int64_t depth, float keep) {
    constexpr int64_t whole = kBlockRegisters * kRegister;
    int64_t j = 0;
    for (; j + whole <= columns; j += whole)
        product_panel<kBlockRegisters>(a, b + j, b_row, c + j, c_row, rows, depth, keep);
    if constexpr (whole > 32)
        if (columns - j >= 32) product_panel<32 / kRegister>(a, b + j, b_row, c + j, c_row, rows, depth, keep), j += 32;
    if constexpr (whole > 16)
        if (columns - j >= 16) product_panel<16 / kRegister>(a, b + j, b_row, c + j, c_row, rows, depth, keep);
}

// Lower triangle of C = A B in blocks of 16 rows: row r gets columns up to the end of its block.
inline void product_lower(Scalars a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows, int64_t depth) {
    for (int64_t i = 0; i < rows; i += kLanes)
        product({a.start + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row, kLanes, i + kLanes, depth, 0.f);
}

#if defined(__AVX512F__)
inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
    // Pairs of values of two rows, pairs of pairs, then quarters of registers.
    const vi low = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}, high = low + 2;
    const vi low2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29}, high2 = low2 + 2;
    const vi even = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27}, odd = even + 4;
    vf x[16], y[16];
    for (int i = 0; i < 16; i++) x[i] = load(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
        y[i] = __builtin_shuffle(x[i], x[i + 1], low);
        y[i + 1] = __builtin_shuffle(x[i], x[i + 1], high);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            x[i + 2 * h] = __builtin_shuffle(y[i + h], y[i + h + 2], low2);
            x[i + 2 * h + 1] = __builtin_shuffle(y[i + h], y[i + h + 2], high2);
        }
    // x[4 r + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 r to 4 r + 3
    for (int c = 0; c < 4; c++) {
        const vf a = __builtin_shuffle(x[c], x[c + 4], even), b = __builtin_shuffle(x[c], x[c + 4], odd);
        const vf d = __builtin_shuffle(x[c + 8], x[c + 12], even), e = __builtin_shuffle(x[c + 8], x[c + 12], odd);
        store(to + c * to_row, __builtin_shuffle(a, d, even));
        store(to + (c + 4) * to_row, __builtin_shuffle(b, e, even));
        store(to + (c + 8) * to_row, __builtin_shuffle(a, d, odd));
        store(to + (c + 12) * to_row, __builtin_shuffle(b, e, odd));
    }
}
#else
inline void transpose_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[j * to_row + i] = from[i * from_row + j];
}
#endif

// to[columns, rows] = from[rows, columns]^T for any size.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j += 16) {
            if (i + 16 <= rows && j + 16 <= columns) {
                transpose_block(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
                continue;
            }
            for (int64_t r = i; r < rows && r < i + 16; r++)
                for (int64_t c = j; c < columns && c < j + 16; c++) to[c * to_row + r] = from[r * from_row + c];
        }
}

}  // namespace optiq::OPTIQ_LEVEL
