// Products with weights in MLX's affine code format, for few rows, and the dense values of rows.
//
// A row of a weight is a little-endian bit stream of `columns` codes; each group of `group` codes has a scale s and a bias b
// and stands for s q + b. For few rows the activations become 16-bit fixed-point numbers, one step size per group,
//
//     x_k = step (256 high_k + low_k) + e_k,   |e_k| <= step / 2,   step = max |x| / 32639 over the group,
//
// so that sum_k q_k x_k is an exact integer sum of bytes by bytes, and
//
//     y = sum_groups step (s sum_k q_k (256 high_k + low_k)  +  b sum_k (256 high_k + low_k)).
//
// That is the product with x - e, so the error is at most sum_groups (step / 2) sum_k |w_k| plus float32 rounding: an
// activation is off by at most 1.5e-5 of the largest one in its group, a hundredth of what bfloat16 rounds away. Rows do
// not see each other, so a row's result is the same bits whatever else is in the batch.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

// A view of one coded matrix [rows, columns]; columns is a multiple of group; group is 32, 64 or 128.
struct Coded {
    const uint8_t* codes = nullptr;
    const void* scales = nullptr;
    const void* biases = nullptr;
    Float type = Float::f32;  // of scales and biases
    int bits = 4;
    int group = 64;
    int64_t rows = 0;
    int64_t columns = 0;

    int64_t row_bytes() const { return columns * bits / 8; }
    int64_t groups() const { return columns / group; }
};

// Floats that a prepared activation row takes: bytes of all chunks of 64, the same in the order of 4-bit codes, then step and
// sum per group, padded.
inline int64_t prepared_floats(int64_t columns, int group) {
    const int64_t chunks = (columns + 63) / 64, groups = (columns / group + 15) / 16 * 16 + 16;
    return chunks * 64 + 2 * groups;
}

// Floats beyond the last of `count` prepared rows that `arrange` takes.
inline int64_t arranged_floats(int64_t columns, int64_t count) {
    return count == 1 ? 0 : columns / 64 * 34 * ((count + 3) / 4 * 4);
}

struct QuantizedKernels {
    // Write x[columns] of `type` as one prepared row.
    void (*prepare)(const void* x, Float type, int64_t columns, int group, float* prepared);
    // After the last of `count` <= 16 prepared rows that follow each other: what a product of several reads besides.
    void (*arrange)(int64_t columns, int group, int64_t count, float* prepared);
    // y[m, o] for m < count arranged rows and weight rows o in [first, last), first a multiple of 16; `stride` in elements of y.
    void (*product)(const Coded& w, int64_t first, int64_t last, const float* prepared, int64_t count, void* y, Float y_type,
                    int64_t stride);
    // The dense values of one row, columns [0, w.columns), in `type`.
    void (*dequantize)(const Coded& w, int64_t row, void* out, Float type);
    // gate[k] = silu(gate[k]) up[k]: what stands between the products of a gated MLP.
    void (*swiglu)(float* gate, const float* up, int64_t count);
};

OPTIQ_FAMILY(QuantizedKernels, quantized)

}  // namespace optiq
