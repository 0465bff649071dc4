// Both sides of a product in the order in which the arithmetic reads them: panels of P, rows of a block of A.
#pragma once

#include "kernels/decode.h"
#include "kernels/gemm_numbers.h"

namespace optiq::OPTIQ_LEVEL {

template <class F, class T>
void pack_panel(const Side& side, const T* data, int64_t panel, int64_t block, uint32_t* out) {
    const int64_t start = block * F::depth, depth = side.depth - start < F::depth ? side.depth - start : F::depth;
    const int64_t first = panel * kPanel, count = side.count - first < kPanel ? side.count - first : kPanel;
    const int64_t steps = steps_of<F>(depth);
    if (side.across) {
        for (int64_t s = 0; s < steps; s++) {
            const int64_t k = s * F::per_step;
            vu parts[F::planes];
            load_across<F>(data + (start + k) * side.stride + first, side.stride, depth - k, count, parts);
            for (int i = 0; i < F::planes; i++) put(out + i * kSteps * kPanel + s * kPanel, parts[i]);
        }
        return;
    }
    for (int64_t s = 0; s < steps; s += kLanes) {
        const int64_t k = s * F::per_step;
        vu rows[F::planes][kPanel];
        for (int64_t r = 0; r < kPanel; r++) {
            vu parts[F::planes]{};
            if (r < count) load_along<F>(data + (first + r) * side.stride + start + k, depth - k, parts);
            for (int i = 0; i < F::planes; i++) rows[i][r] = parts[i];
        }
        for (int i = 0; i < F::planes; i++) {
            transpose(rows[i]);
            for (int64_t r = 0; r < kPanel; r++) put(out + i * kSteps * kPanel + (s + r) * kPanel, rows[i][r]);
        }
    }
}
// Rows of a block of A, [plane][row][step].
template <class F>
inline uint32_t* block_row(uint32_t* block, int64_t rows, int plane, int64_t row) {
    return block + (plane * rows + row) * kRowSteps;
}

template <class F, class T>
inline void fill_row(const T* data, int64_t depth, uint32_t* block, int64_t rows, int64_t row, int64_t ahead = 0) {
    const int64_t steps = steps_of<F>(depth);
    for (int64_t s = 0; s < steps; s += kLanes) {
        // A block's row is a short stretch of memory: the processor's own prefetch would start too late.
        if (ahead) _mm_prefetch(reinterpret_cast<const char*>(data + ahead + s * F::per_step), _MM_HINT_T0);
        vu parts[F::planes];
        load_along<F>(data + s * F::per_step, depth - s * F::per_step, parts);
        for (int i = 0; i < F::planes; i++) put(block_row<F>(block, rows, i, row) + s, parts[i]);
    }
}

template <class F>
inline void fill_zero(int64_t depth, uint32_t* block, int64_t rows, int64_t row) {
    for (int i = 0; i < F::planes; i++) std::memset(block_row<F>(block, rows, i, row), 0, size_t(steps_of<F>(depth)) * 4);
}

// Sixteen numbers' steps [k, k + 16 steps) of rows [row, row + 16), which lie side by side at data.
template <class F, class T>
inline void fill_square(const T* data, int64_t stride, int64_t depth, int64_t count, uint32_t* block, int64_t rows, int64_t row,
                        int64_t step) {
    vu square[F::planes][kLanes];
    for (int64_t s = 0; s < kLanes; s++) {
        vu parts[F::planes];
        load_across<F>(data + s * F::per_step * stride, stride, depth - s * F::per_step, count, parts);
        for (int i = 0; i < F::planes; i++) square[i][s] = parts[i];
    }
    for (int i = 0; i < F::planes; i++) {
        transpose(square[i]);
        for (int64_t r = 0; r < kLanes; r++) put(block_row<F>(block, rows, i, row + r) + step, square[i][r]);
    }
}

// Vectors [first, first + count) of A, numbers [start, start + depth), as rows; rows up to `rows` are zero.
template <class F>
void fill(const Side& a, int64_t first, int64_t count, int64_t start, int64_t depth, uint32_t* block, int64_t rows) {
    for (int64_t r = count; r < rows; r++) fill_zero<F>(depth, block, rows, r);
    if (a.coded && !a.across) {
        alignas(64) float values[F::depth];
        for (int64_t r = 0; r < count; r++) {
            if constexpr (F::parts == 1) {
                bf16* out = reinterpret_cast<bf16*>(block_row<F>(block, rows, 0, r));
                decode(*a.coded, first + r, start, depth, out);
            } else {
                decode(*a.coded, first + r, start, depth, values);
                fill_row<F>(values, depth, block, rows, r);
            }
        }
        return;
    }
    if (a.coded) {
        constexpr int64_t deep = kLanes * F::per_step, most = 128;
        static_assert(most % 32 == 0);
        alignas(64) float values[deep * most];
        for (int64_t k = 0; k < depth; k += deep) {
            const int64_t left = depth - k < deep ? depth - k : deep;
            for (int64_t j = 0; j < left; j++) decode(*a.coded, start + k + j, first, count, values + j * most);
            for (int64_t r = 0; r < rows; r += kLanes)
                if (r < count) fill_square<F>(values + r, most, left, count - r, block, rows, r, k / F::per_step);
        }
        return;
    }
    with_float(a.type, [&]<class T>(T*) {
        const T* data = static_cast<const T*>(a.data);
        if (!a.across) {
            for (int64_t r = 0; r < count; r++)
                fill_row<F>(data + (first + r) * a.stride + start, depth, block, rows, r, 4 * a.stride);
            return;
        }
        for (int64_t k = 0; k < steps_of<F>(depth); k += kLanes)
            for (int64_t r = 0; r < count; r += kLanes)
                fill_square<F>(data + (start + k * F::per_step) * a.stride + first + r, a.stride, depth - k * F::per_step,
                               count - r, block, rows, r, k);
    });
}

}  // namespace optiq::OPTIQ_LEVEL
