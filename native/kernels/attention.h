// Attention, out = softmax(scale q k^T + mask) v, without a score matrix in memory.
//
// Shapes: q [B, H, L, D], k [B, G, S, D], v [B, G, S, Dv], out [B, H, L, Dv]; query head h reads key/value head h / R with
// R = H / G. The last query stands at the last key: row l is position S - L + l. The R heads of a group are worked on
// together as L R rows, position by position, so keys and values are read once per group.
//
// One pass over keys keeps per row the largest score m, l = sum exp(s - m) and o = sum exp(s - m) v, and rescales when m
// grows (online softmax: Milakov and Gimelshein, arXiv 1805.02867; in blocks: Dao et al., arXiv 2205.14135). For few rows
// the keys are cut into blocks of kFewKeys, each with its own (m, l, o), combined in the order of the blocks.
//
// Arithmetic is float32. Where the processor multiplies pairs of bfloat16 (levels vnni and amx) and the inputs are bfloat16,
// q k^T takes exact products of the inputs, and the weights exp(s - m) in [0, 1] are rounded to bfloat16 before they meet v
// (relative error 2^-9 each); for few rows on amx to two bfloat16 parts (2^-17).
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/half.h"
#include "core/level.h"

namespace optiq {

constexpr int64_t kFewQueries = 16;  // up to here a row's bits depend on its own query, keys and mask alone
constexpr int64_t kFewKeys = 256;    // keys per block of the few-rows form
constexpr int64_t kBlockRows = 64;   // rows per task of the many-rows form

// Rows of numbers: element (b, h, r, d) lies at data + b batch + h head + r row + d, in elements.
struct HeadRows {
    const void* data = nullptr;
    int64_t batch = 0;
    int64_t head = 0;
    int64_t row = 0;
};

enum class MaskKind { none, boolean, additive };

struct Attention {
    Float type = Float::f32;  // of q, k, v and out
    int64_t batches = 0, heads = 0, groups = 0, queries = 0, keys = 0, width = 0, value_width = 0;
    float scale = 1.f;
    HeadRows q, k, v;

    bool causal = false;      // a row sees keys up to its position
    int64_t window = 0;       // and only the last `window` of them; 0: all
    MaskKind mask_kind = MaskKind::none;
    Float mask_type = Float::f32;  // of an additive mask; a boolean one has bytes, not 0 where the key is seen
    HeadRows mask;                 // [B, H, L, S]; strides may be 0

    const float* sinks = nullptr;  // [H]: one more score per head that has no value, or null

    void* out = nullptr;        // dense
    float* logsumexp = nullptr;  // [B, H, L]; -infinity where no key was seen
};

// Few rows. `partial` holds, per row of the group and block: m, l, o[Dv].
struct FewAttention {
    size_t (*scratch)(const Attention& a);
    // `next`: the same thread goes on with the next block.
    void (*block)(const Attention& a, int64_t batch, int64_t group, int64_t block, bool next, float* partial, void* scratch);
    void (*combine)(const Attention& a, int64_t batch, int64_t group, int64_t blocks, const float* partial);
};

// Many rows. Values (and keys, where their width needs padding) are first brought into the order that the products want,
// where that is not their own: `packed_bytes` per (batch, group), 0 if nothing is to be done.
struct ManyAttention {
    size_t (*packed_bytes)(const Attention& a);
    void (*pack)(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, void* packed);
    size_t (*scratch)(const Attention& a);
    void (*rows)(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, const void* packed, void* scratch);
};

// The derivative. With P = e^(s - logsumexp) and D_i = dout_i . out_i (Dao et al., algorithm 4):
//
//     dv_j = sum_i P_ij dout_i     dS_ij = P_ij (dout_i . v_j - D_i)     dq_i = scale sum_j dS_ij k_j     dk_j = scale sum_i dS_ij q_i
//
// Scores are computed again, block by block, in float32 throughout.
struct AttentionGradient {
    Attention forward;  // `out` and `logsumexp` are read
    HeadRows dout;      // [B, H, L, Dv]
    void* dq = nullptr;  // these three dense, in the type of q
    void* dk = nullptr;
    void* dv = nullptr;
};

// Sums over rows have rows of whole vectors.
inline int64_t padded_width(int64_t width) { return (width + 15) / 16 * 16; }

struct GradientAttention {
    size_t (*scratch)(const Attention& a);
    // Blocks `part`, part + parts, .. of a group's rows against all keys: their dq, and their shares of dk [S, padded D] and
    // dv [S, padded Dv], which begin at zero.
    void (*block)(const AttentionGradient& a, int64_t batch, int64_t group, int64_t part, int64_t parts, float* dk, float* dv,
                  void* scratch);
    // Sums `parts` arrays of rows, `part_stride` floats apart, in their order; `rows` rows of `width` (padded) become dense rows
    // of `type`.
    void (*add_parts)(const float* from, int64_t parts, int64_t part_stride, int64_t rows, int64_t width, void* to, Float type);
    // dsink = -sum_i e^(sink - logsumexp_i) D_i over the batch.
    float (*sink)(const AttentionGradient& a, int64_t head);
};

OPTIQ_FAMILY(FewAttention, few_attention)
OPTIQ_FAMILY(ManyAttention, many_attention)
OPTIQ_FAMILY(GradientAttention, gradient_attention)

}  // namespace optiq
