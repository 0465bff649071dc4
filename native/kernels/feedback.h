// Rounding of the columns of a group of weights, one after another, each error carried on:
//
//     round    q_j = clip(nearest((w_j - b) / s)),  e_j = (w_j - (q_j s + b)) p_j,   w_m -= e_j t_jm          for m > j
//     step     q_j = clip(nearest(q_j + r_j / (h_jj s))),  change = (q_j - old q_j) s,   r_m -= change h_jm   for all m
//
// Rows are independent; each operation rounds once, in the order of the formulas and without contraction, so that the bits are
// those of the definitions in plain array operations.
#pragma once

#include <cstdint>

#include "core/level.h"

namespace optiq {

constexpr int kFeedbackRows = 16;        // at most, per call
constexpr int64_t kFeedbackWidth = 128;  // columns, at most

struct FeedbackKernels {
    // w[row] has `width` columns, s and b one number a row; t is [width, width], p [width]. Codes and errors are [rows, width].
    void (*round)(const float* const* w, const float* s, const float* b, int rows, const float* t, const float* p, int64_t width,
                  float top, float* codes, float* errors);
    // old[row] and r[row] have `width` columns; h is [width, width]. Codes and residuals are [rows, width].
    void (*step)(const float* const* old, const float* const* r, const float* s, int rows, const float* h, int64_t width, float top,
                 float* codes, float* residuals);
};

OPTIQ_FAMILY(FeedbackKernels, feedback)

}  // namespace optiq
