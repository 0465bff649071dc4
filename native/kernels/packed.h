// Vectors as rotated codes with one scale each, and attention of few queries over keys and values that are stored so.
// Definitions: src/optiq/kernels/packed.py.
//
// Attention never makes the vectors. With levels l (signed bytes) and scales s of a block of kPackedKeys tokens, and everything
// else in float32,
//
//     score_j = scale s_j (H u q) . l_j      w_j = exp(score_j - m)      o = sum_j (w_j s'_j) l'_j
//
// both sums are exact sums of integers: the rotated query and the weights become 16-bit fixed-point numbers, a step per row (and
// block, for weights),
//
//     x_i = step X_i + e_i,   |e_i| <= step / 2,   step = max |x| / 32639.
//
// So a score is off by at most scale s_j (step / 2) sum_d |l_jd|, a coordinate of o by at most (step / 2) sum_j |l'_jd|, which
// is 1.5e-5 of the largest coordinate of the query, or of the largest weight of the block, times those sums; errors of single
// terms are independent, so what is seen is about the root of the number of terms less.
//
// A row's bits depend on its own query, tokens, start and mask alone. Blocks are combined in their order with those of the
// full-precision tokens (kernels/attention.h), and the sum of packed values is rotated back once.
#pragma once

#include "kernels/attention.h"

namespace optiq {

constexpr int64_t kPackedKeys = 256;   // per block
constexpr int64_t kPackedWidth = 512;  // the widest vector: its integer sums fit 32 bits
constexpr int64_t kTableLevels = 64;   // of the table that is looked up: six bits index it

struct Codebook {
    int bits = 0;
    float unit = 1.f;                // of level 1 where coordinates have variance 1
    alignas(64) int8_t levels[256];  // below 6 bits repeated up to kTableLevels; at 8 bits all signed bytes
    float bounds[256];               // between neighbouring levels
    float spacing = 0.f;             // of the bounds where they are equally spaced, else 0

    int count() const { return 1 << bits; }
    int64_t row_bytes(int64_t width) const { return width * bits / 8; }
};

// Packed vectors (b, g, j): codes at batch, head and row strides in bytes, scales (bfloat16) at strides in elements.
struct PackedRows {
    const Codebook* book = nullptr;
    HeadRows codes, scales;

    const uint8_t* codes_of(int64_t batch, int64_t group, int64_t token) const {
        return static_cast<const uint8_t*>(codes.data) + batch * codes.batch + group * codes.head + token * codes.row;
    }
    const uint16_t* scale_of(int64_t batch, int64_t group, int64_t token) const {
        return static_cast<const uint16_t*>(scales.data) + batch * scales.batch + group * scales.head + token * scales.row;
    }
};

// How the vectors of one head become codes.
// How the scale that is stored is found, and for the last one the codes; see optiq.kernels.packed.
enum class Scaling { norm, fit, exact, search };
constexpr float kTrials[] = {1.f, 0.9f, 1.1f};  // TRIALS there

struct PackForm {
    const Codebook* book = nullptr;
    int64_t width = 0;
    const float* diagonal = nullptr;  // [D]
    Scaling scaling = Scaling::norm;
};

struct Packing {
    // One vector x[D] of `type`.
    void (*pack)(const PackForm& form, const void* x, Float type, uint8_t* codes, uint16_t* scale);
    // factor (H y') + mean, where a mean is given; out[D] of `type`.
    void (*unpack)(const Codebook& book, int64_t width, const uint8_t* codes, uint16_t scale, const float* factor, const float* mean,
                   void* out, Float type);
};

struct PackedAttention {
    Attention full;  // queries, full-precision tokens (there may be none), their part of the mask, result
    int64_t tokens = 0;
    PackedRows keys, values;
    const float* key_undo = nullptr;    // these three [G, D]
    const float* value_undo = nullptr;
    const float* mean = nullptr;        // of values, or null
    const int32_t* starts = nullptr;    // [B], the first token that a row sees, or null
    HeadRows mask;                      // of packed tokens, boolean, where full.mask_kind says so
};

inline int64_t packed_rows(const PackedAttention& a) { return a.full.queries * (a.full.heads / a.full.groups); }
inline int64_t packed_blocks(const PackedAttention& a) { return (a.tokens + kPackedKeys - 1) / kPackedKeys; }
inline int64_t full_blocks(const PackedAttention& a) { return (a.full.keys + kFewKeys - 1) / kFewKeys; }

// Partial results are those of FewAttention: per block and row of the group m, l, o[D], of packed tokens with o rotated.
struct PackedFew {
    size_t (*query_bytes)(const PackedAttention& a);
    void (*prepare)(const PackedAttention& a, int64_t batch, int64_t group, void* queries);
    size_t (*scratch)(const PackedAttention& a);
    // `next`: the same caller goes on with the next block.
    void (*block)(const PackedAttention& a, int64_t batch, int64_t group, int64_t block, bool next, const void* queries, float* partial,
                  void* scratch);
    // One row's result from the partials of its group: of packed blocks, then of full-precision ones.
    void (*combine)(const PackedAttention& a, int64_t batch, int64_t group, int64_t row, const float* partial);
};

OPTIQ_FAMILY(Packing, packing)
OPTIQ_FAMILY(PackedFew, packed_few)

}  // namespace optiq
