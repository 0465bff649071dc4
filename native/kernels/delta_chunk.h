// One chunk of the gated delta rule for one head, as products in cache; formulas in delta.h.
#pragma once

#include "kernels/delta.h"
#include "kernels/matrix.h"

namespace optiq::OPTIQ_LEVEL {

constexpr int64_t kScoreRow = kChunk + 16;

inline int64_t lanes_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Hands out parts of a working memory; counts alone when it has none.
struct Carver {
    float* start;
    int64_t used = 0;
    float* take(int64_t floats) {
        float* part = start + used;
        used += lanes_up(floats);
        return part;
    }
};

// x <- x scale / sqrt(|x|^2 + 1e-6) for every row, whose end is padded with zeros; `inverse` receives the roots' inverses.
inline void normalise(float* x, int64_t row, int64_t count, int64_t width, float scale, float* inverse) {
    constexpr float kEps = 1e-6f;  // mlx-lm models/gated_delta.py, normalize_qk
    for (int64_t t = 0; t < count; t++, x += row) {
        vf squares{};
        for (int64_t c = 0; c < width; c += kLanes) squares = fma(load(x + c), load(x + c), squares);
        const float root = 1.f / __builtin_sqrtf(sum(squares) + kEps);
        if (inverse) inverse[t] = root;
        for (int64_t c = 0; c < width; c += kLanes) store(x + c, load(x + c) * splat(scale * root));
    }
}

// Keys and queries of one chunk, and their products with each other; rows beyond the chunk's tokens are zero.
struct Keys {
    int64_t row;     // floats from token to token, padded(Dk)
    float *q, *k;    // [kChunk, Dk]
    float* kt;       // [Dk, kScoreRow]
    float *qk, *kk;  // [kChunk, kScoreRow], lower triangle

    Keys(Carver& memory, int64_t Dk)
        : row(padded(Dk)), q(memory.take(kChunk * row)), k(memory.take(kChunk * row)), kt(memory.take(Dk * kScoreRow)),
          qk(memory.take(kChunk * kScoreRow)), kk(memory.take(kChunk * kScoreRow)) {}

    // From q and k, for `rows` tokens, a multiple of 16.
    void multiply(int64_t rows, int64_t Dk) {
        transpose(k, row, kt, kScoreRow, rows, Dk);
        product_lower(plain(q, row), kt, kScoreRow, qk, kScoreRow, rows, Dk);
        product_lower(plain(k, row), kt, kScoreRow, kk, kScoreRow, rows, Dk);
    }
};

// What one value head adds.
struct Values {
    int64_t row;   // padded(Dv)
    float *p, *a;  // [kChunk, kScoreRow]
    float* u;      // [kChunk, Dv]: the values, then U
    float* y;      // [kChunk, Dv]
    // log g and its sum up to each token, with what float32 rounds off the sum; exp(total); beta.
    alignas(64) float log_decay[kChunk], total[kChunk], lost[kChunk], decay[kChunk], beta[kChunk];

    Values(Carver& memory, int64_t Dv)
        : row(padded(Dv)), p(memory.take(kChunk * kScoreRow)), a(memory.take(kChunk * kScoreRow)),
          u(memory.take(kChunk * row)), y(memory.take(kChunk * row)) {}
};

// exp(total_t - total_s): exact to float32 rounding however long the sums have grown.
inline vf ratio(const Values& v, int64_t t, int64_t s) {
    return exp((splat(v.total[t]) - load(v.total + s)) + (splat(v.lost[t]) - load(v.lost + s)));
}

// total, decay, P and A from log_decay, beta and the products of keys and queries.
inline void weigh(const Keys& keys, Values& v, int64_t rows) {
    double sum = 0.;
    for (int64_t t = 0; t < rows; t++) {
        sum += double(v.log_decay[t]);
        v.total[t] = float(sum);
        v.lost[t] = float(sum - double(v.total[t]));
    }
    for (int64_t t = 0; t < rows; t += kLanes) store(v.decay + t, exp(load(v.total + t)));
    vi lane;
    for (int i = 0; i < kLanes; i++) lane[i] = i;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t s = 0; s <= t; s += kLanes) {
            const vf gamma = ratio(v, t, s);
            const vi ahead = lane + int(s) - int(t);
            const vi seen = ahead <= 0, before = ahead < 0;
            const int64_t at = t * kScoreRow + s;
            store(v.p + at, (vf)((vi)(gamma * load(keys.qk + at)) & seen));
            store(v.a + at, (vf)((vi)(gamma * splat(v.beta[t]) * load(keys.kk + at)) & before));
        }
}

// The 16 rows of one diagonal block of (I + A), or of its transpose, in registers, one register of columns at a time.
template <bool TRANSPOSED>
inline void solve_block(const float* a, float* x, int64_t row, int64_t columns) {
    for (int64_t c = 0; c < columns; c += kRegister) {
        vr rows[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; r++) rows[r] = load_register(x + r * row + c);
#pragma GCC unroll 16
        for (int n = 0; n < kLanes; n++) {
            const int s = TRANSPOSED ? kLanes - 1 - n : n;  // this one is solved: take it out of the others
            store_register(x + s * row + c, rows[s]);
#pragma GCC unroll 16
            for (int m = n + 1; m < kLanes; m++) {
                const int r = TRANSPOSED ? kLanes - 1 - m : m;
                rows[r] = fused(spread(-(TRANSPOSED ? a[s * kScoreRow + r] : a[r * kScoreRow + s])), rows[s], rows[r]);
            }
        }
    }
}

// Solve (I + A) U = R in place; R in v.u.
inline void solve(const Values& v, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += kLanes) {
        // U_i = R_i - A_i U_before: the sign goes through keep = -1 twice.
        float* block = v.u + i * v.row;
        if (i) {
            product(plain(v.a + i * kScoreRow, kScoreRow), v.u, v.row, block, v.row, kLanes, columns, i, -1.f);
            for (int64_t r = 0; r < kLanes; r++)
                for (int64_t c = 0; c < columns; c += kLanes) store(block + r * v.row + c, -load(block + r * v.row + c));
        }
        solve_block<false>(v.a + i * kScoreRow + i, block, v.row, columns);
    }
}

// One chunk: v.u holds the values, v.y receives the outputs; `state` is S^T [Dk, v.row] and is replaced.
inline void chunk_forward(const Keys& keys, Values& v, float* state, int64_t rows, int64_t Dk, int64_t Dv) {
    const int64_t columns = lanes_up(Dv);
    weigh(keys, v, rows);
    product(plain(keys.k, keys.row), state, v.row, v.y, v.row, rows, columns, Dk, 0.f);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < columns; c += kLanes) {
            const int64_t at = t * v.row + c;
            store(v.u + at, splat(v.beta[t]) * (load(v.u + at) - splat(v.decay[t]) * load(v.y + at)));
        }
    solve(v, rows, columns);
    product(plain(keys.q, keys.row), state, v.row, v.y, v.row, rows, columns, Dk, 0.f);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < columns; c += kLanes) {
            const int64_t at = t * v.row + c;
            store(v.y + at, splat(v.decay[t]) * load(v.y + at));
        }
    for (int64_t i = 0; i < rows; i += kLanes)
        product(plain(v.p + i * kScoreRow, kScoreRow), v.u, v.row, v.y + i * v.row, v.row, kLanes, columns, i + kLanes, 1.f);
    alignas(64) float left[kChunk];
    for (int64_t s = 0; s < rows; s += kLanes) store(left + s, ratio(v, rows - 1, s));
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < columns; c += kLanes) store(v.u + t * v.row + c, splat(left[t]) * load(v.u + t * v.row + c));
    product(transposed(keys.k, keys.row), v.u, v.row, state, v.row, Dk, columns, rows, v.decay[rows - 1]);
}

}  // namespace optiq::OPTIQ_LEVEL
