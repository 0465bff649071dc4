// What operations on coded weights share: the view of one, how its work is cut, and the product itself.
#pragma once

#include <algorithm>

#include "kernels/quantized.h"
#include "mlx/op.h"

namespace optiq {

// The matrix, or matrix `index` of a bank [E, O, ...].
inline Coded coded(const mx::array& codes, const mx::array& scales, const mx::array& biases, int group, int bits, int64_t index = 0) {
    const int64_t rows = codes.shape(-2), words = codes.shape(-1), columns = words * 32 / bits;
    const Float type = float_of(scales);
    const int64_t factors = index * rows * (columns / group) * float_bytes(type);
    return {data<uint8_t>(codes) + index * rows * words * 4, data<char>(scales) + factors, data<char>(biases) + factors, type, bits,
            group, rows, columns};
}

// Throws where codes, factors and the width of x [..., width] do not belong together.
inline void check_coded(const mx::array& codes, const mx::array& scales, const mx::array& biases, int group, int bits, int64_t width,
                 bool transpose) {
    const int64_t columns = int64_t(codes.shape(-1)) * 32 / bits;
    if (codes.dtype() != mx::uint32) throw std::invalid_argument("codes must be uint32");
    if (group != 32 && group != 64 && group != 128) throw std::invalid_argument("group_size must be 32, 64 or 128");
    if (scales.dtype() != biases.dtype() || scales.shape() != biases.shape() || scales.shape(-1) * int64_t(group) != columns)
        throw std::invalid_argument("scales and biases do not belong to these codes");
    if (width != (transpose ? columns : codes.shape(-2))) throw std::invalid_argument("x does not fit the coded matrix");
}

// Weight rows per task, by shape alone. A task begins with memory that nobody has asked for yet, so it should be long; but each
// thread should have several.
inline int64_t task_rows(const Coded& w) {
    constexpr int64_t kFewest = 8, kLeastBytes = 16 * 1024, kMostBytes = 256 * 1024;
    const int64_t bytes = std::clamp(w.rows * w.row_bytes() / kFewest, kLeastBytes, kMostBytes);
    return std::max<int64_t>(16, bytes / w.row_bytes() / 16 * 16);
}

// y = x Wᵀ, or x W where `transpose` is false; differentiable by x.
mx::array quantized_matmul(const mx::array& x, const mx::array& codes, const mx::array& scales, const mx::array& biases,
                           int group_size, int bits, bool transpose);

}  // namespace optiq
