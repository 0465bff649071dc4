// The gated delta rule token by token, each row of the state held in registers; formulas in delta.h.
#pragma once

#include "kernels/delta_chunk.h"

namespace optiq::OPTIQ_LEVEL {

// What the rows of one head's state go through, token by token.
struct Steps {
    int64_t tokens, Dk, Dv;
    const float *q, *k;  // [tokens, key_row], zero beyond Dk
    int64_t key_row;
    const float* v;  // [tokens, value_row]
    float* o;        // the same shape
    int64_t value_row;
    const float *decay, *beta, *kq;  // [tokens]; kq is k . q
};

// ROWS rows of S from `from` to `to`, held in N registers each (N = 0: in `room`, [ROWS, lanes_up(Dk)]).
// S_t k and S_t q come from one pass: both are taken from S_{t-1}, and u_t (k . q) is added to the second.
template <int N, int ROWS>
inline void step_rows(const Steps& s, const float* from, float* to, int64_t r, float* room) {
    const int n = N ? N : int(lanes_up(s.Dk) / kLanes);
    const int rest = int(s.Dk - (n - 1) * kLanes);
    vf held[ROWS][N ? N : 1];
    const auto row = [&](int i, int j) -> vf& {
        if constexpr (N > 0) return held[i][j];
        else return *reinterpret_cast<vf*>(room + (i * n + j) * kLanes);
    };
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < n; j++) {
            const float* place = from + (r + i) * s.Dk + j * kLanes;
            row(i, j) = !from ? vf{} : j + 1 < n || rest == kLanes ? load(place) : load_part(place, rest);
        }
    for (int64_t t = 0; t < s.tokens; t++) {
        const float *k = s.k + t * s.key_row, *q = s.q + t * s.key_row;
        vf by_k[ROWS]{}, by_q[ROWS]{};
        for (int j = 0; j < n; j++) {
            const vf kj = load(k + j * kLanes), qj = load(q + j * kLanes);
            for (int i = 0; i < ROWS; i++) {
                by_k[i] = fma(row(i, j), kj, by_k[i]);
                by_q[i] = fma(row(i, j), qj, by_q[i]);
            }
        }
        vf u[ROWS];
        const vf decay = splat(s.decay[t]);
        for (int i = 0; i < ROWS; i++) {
            const float update = s.beta[t] * (s.v[t * s.value_row + r + i] - s.decay[t] * sum(by_k[i]));
            s.o[t * s.value_row + r + i] = s.decay[t] * sum(by_q[i]) + update * s.kq[t];
            u[i] = splat(update);
        }
        for (int j = 0; j < n; j++) {
            const vf kj = load(k + j * kLanes);
            for (int i = 0; i < ROWS; i++) row(i, j) = fma(u[i], kj, decay * row(i, j));
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < n; j++) {
            float* place = to + (r + i) * s.Dk + j * kLanes;
            if (j + 1 < n || rest == kLanes) store(place, row(i, j));
            else store_part(place, row(i, j), rest);
        }
}

template <int N>
void step_head(const Steps& s, const float* from, float* to, float* room) {
    int64_t r = 0;
    for (; r + 2 <= s.Dv; r += 2) step_rows<N, 2>(s, from, to, r, room);
    if (r < s.Dv) step_rows<N, 1>(s, from, to, r, room);
}

inline void step(const Steps& s, const float* from, float* to, float* room) {
    switch (lanes_up(s.Dk) / kLanes) {
        case 1: return step_head<1>(s, from, to, room);
        case 2: return step_head<2>(s, from, to, room);
        case 4: return step_head<4>(s, from, to, room);
        case 6: return step_head<6>(s, from, to, room);
        case 8: return step_head<8>(s, from, to, room);
        default: return step_head<0>(s, from, to, room);
    }
}

}  // namespace optiq::OPTIQ_LEVEL
