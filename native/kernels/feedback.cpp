// Compiled with -ffp-contract=off (native/CMakeLists.txt).
#include "kernels/feedback.h"

#include "kernels/square.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

inline vf nearest(vf x) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)x, how);
#else
    __m256 half[2];
    std::memcpy(half, &x, 64);
    for (auto& y : half) y = _mm256_round_ps(y, how);
    std::memcpy(&x, half, 64);
    return x;
#endif
}

// What is not a number stays so, as with MLX's clip.
inline vf clip(vf x, float top) {
    const vf zero{}, most = splat(top);
    x = x < zero ? zero : x;
    return x > most ? most : x;
}

// Sixteen rows as columns of vectors, one lane a row; rows that do not exist are zeros, and what comes of them is
// not stored.
inline void gather(const float* const* rows, int count, int64_t width, vf* columns) {
    for (int64_t j = 0; j < width; j += 16) {
        vf square[16]{};
        const int here = int(width - j < 16 ? width - j : 16);
        for (int i = 0; i < count; i++) square[i] = load_part(rows[i] + j, here);
        transpose(square);
        for (int i = 0; i < here; i++) columns[j + i] = square[i];
    }
}

inline void scatter(const vf* columns, int count, int64_t width, float* rows) {
    for (int64_t j = 0; j < width; j += 16) {
        vf square[16]{};
        const int here = int(width - j < 16 ? width - j : 16);
        for (int i = 0; i < here; i++) square[i] = columns[j + i];
        transpose(square);
        for (int i = 0; i < count; i++) store_part(rows + i * width + j, square[i], here);
    }
}

void round(const float* const* w, const float* s, const float* b, int rows, const float* t, const float* p, int64_t width, float top,
           float* codes, float* errors) {
    vf x[kFeedbackWidth], q[kFeedbackWidth];
    gather(w, rows, width, x);
    const vf scale = load_part(s, rows), bias = load_part(b, rows);
    for (int64_t j = 0; j < width; j++) {
        q[j] = clip(nearest((x[j] - bias) / scale), top);
        const vf error = (x[j] - (q[j] * scale + bias)) * splat(p[j]);
        for (int64_t m = j + 1; m < width; m++) x[m] = x[m] - error * splat(t[j * width + m]);
        x[j] = error;  // the column is done, its place free
    }
    scatter(q, rows, width, codes);
    scatter(x, rows, width, errors);
}

void step(const float* const* old, const float* const* r, const float* s, int rows, const float* h, int64_t width, float top,
          float* codes, float* residuals) {
    vf x[kFeedbackWidth], q[kFeedbackWidth];
    gather(r, rows, width, x);
    gather(old, rows, width, q);
    const vf scale = load_part(s, rows);
    for (int64_t j = 0; j < width; j++) {
        const vf found = clip(nearest(q[j] + x[j] / (splat(h[j * width + j]) * scale)), top);
        const vf change = (found - q[j]) * scale;
        q[j] = found;
        for (int64_t m = 0; m < width; m++) x[m] = x[m] - change * splat(h[j * width + m]);
    }
    scatter(q, rows, width, codes);
    scatter(x, rows, width, residuals);
}

}  // namespace

const FeedbackKernels feedback_table{round, step};

}  // namespace optiq::OPTIQ_LEVEL
