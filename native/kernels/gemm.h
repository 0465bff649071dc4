// Products of matrices with many rows, and of dense matrices with few.
//
//     C[p, q] = sum_k P[p, k] A[q, k]
//
// P is packed once, in panels of sixteen vectors whose numbers of one k lie together; A (coded weights always, of two dense sides
// see multiply.h) is brought block by block into rows that the arithmetic reads as they are, codes being decoded on the way. C is summed in
// float32 in the order of k, whatever the number of vectors: an element's bits do not depend on what else is in the product.
//
// Arithmetic, by level and by the type of the activations:
//
//   bf16        pairs of bfloat16 with float32 sums (AMX tiles, or vdpbf16ps); float32 below that level
//   f16, f32    float32, except with AMX, where a number is the sum of bfloat16 parts, x = h + m (f16) or h + m + l (f32)
//               and the products of parts down to 2^-16 (h h + h m + m h) or 2^-24 (h h + h m + m h + m m + h l + l h) are
//               summed. A float32 is exactly three such parts, a float16 two. What is left out is below 2^-21 |x| |w| a
//               product, for f16 below 2^-16. An input that is not finite gives NaN there.
//
// Parts: Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
// arXiv 1904.06376. Blocking: Goto, van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 34(3), 2008.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/level.h"
#include "kernels/quantized.h"

namespace optiq {

// One factor: `count` vectors of `depth` numbers.
struct Side {
    const void* data = nullptr;
    Float type = Float::f32;
    int64_t count = 0;
    int64_t depth = 0;
    int64_t stride = 0;           // elements from one vector to the next; with `across`, from one k to the next
    bool across = false;          // vectors lie side by side: number k of vector i is data[k * stride + i]
    const Coded* coded = nullptr;  // instead of data: the rows of a coded matrix or, with `across`, its columns
};

// Where C lies: C[p, q] at p * p_step + q * a_step elements; one of the steps is 1.
struct Target {
    void* data = nullptr;
    Float type = Float::f32;
    int64_t p_step = 0, a_step = 1;
};

constexpr int64_t kPanel = 16;      // vectors of P in a panel
constexpr int64_t kTaskPanels = 64;  // at most, in a task

struct GemmKernels {
    // How many numbers deep a block is, how many vectors of A a task takes, and the bytes of one packed panel of one block,
    // for activations of `type`.
    int64_t (*depth)(Float type);
    int64_t (*width)(Float type);
    int64_t (*panel_bytes)(Float type);
    // Whether C has the same bits when P and A change places.
    bool (*commutes)(Float type);
    // Working memory of one task.
    int64_t (*scratch_bytes)(Float type);
    // Pack panel `panel` of P, block `block` of its depth.
    void (*pack)(const Side& p, Float type, int64_t panel, int64_t block, void* out);
    // C[p, first + q] for q < count <= width and the `panels` panels from first_panel on (at most kTaskPanels); P is packed
    // as [block][panel of all].
    void (*task)(const Side& a, Float type, int64_t first, int64_t count, const Side& p, const void* packed, int64_t first_panel,
                 int64_t panels, const Target& c, void* scratch);
    // C[p, q] for q in [first, last) and all p < count <= 16, where P is float32 [count, depth] and A lies row by row.
    void (*few)(const Side& a, int64_t first, int64_t last, const float* p, int64_t count, void* c, Float c_type, int64_t stride);
    // Numbers of any type as float32.
    void (*widen)(const void* x, Float type, int64_t count, float* out);
};

OPTIQ_FAMILY(GemmKernels, gemm)

}  // namespace optiq
