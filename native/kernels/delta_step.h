// The gated delta rule token by token, each row of the state held in registers (AVX2: in L1); formulas in delta.h.
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

#if defined(__AVX512F__)
inline vr load_rest(const float* p, int n) { return load_part(p, n); }
inline void store_rest(float* p, vr x, int n) { store_part(p, x, n); }
#else
inline vr load_rest(const float* p, int n) { return load_register_part(p, n); }
inline void store_rest(float* p, vr x, int n) { std::memcpy(p, &x, size_t(n) * sizeof(float)); }
#endif

// ROWS rows of S from `from` to `to` (null: they are not kept), held in N registers each; or, with N = 0, in `room` [ROWS, lanes_up(Dk)].
// S_t k and S_t q come from one pass: both are taken from S_{t-1}, and u_t (k . q) is added to the second.
template <int N, int ROWS>
inline void step_rows(const Steps& s, const float* from, float* to, int64_t r, float* room) {
    const int n = N ? N : int(lanes_up(s.Dk) / kRegister);
    const int rest = int(s.Dk - (n - 1) * kRegister);  // of the last register, where N > 0
    vr held[ROWS][N ? N : 1];
    const auto row = [&](int i, int j) -> vr& {
        if constexpr (N > 0) return held[i][j];
        else return *reinterpret_cast<vr*>(room + (i * n + j) * kRegister);
    };
    for (int i = 0; i < ROWS; i++) {
        const float* place = from + (r + i) * s.Dk;
        if constexpr (N > 0) {
            for (int j = 0; j < n; j++)
                row(i, j) = !from ? vr{} : j + 1 < n || rest == kRegister ? load_register(place + j * kRegister)
                                                                         : load_rest(place + j * kRegister, rest);
        } else {
            std::memset(&row(i, 0), 0, size_t(n) * sizeof(vr));
            if (from) std::memcpy(&row(i, 0), place, size_t(s.Dk) * sizeof(float));
        }
    }
    for (int64_t t = 0; t < s.tokens; t++) {
        const float *k = s.k + t * s.key_row, *q = s.q + t * s.key_row;
        vr by_k[ROWS]{}, by_q[ROWS]{};
        for (int j = 0; j < n; j++) {
            const vr kj = load_register(k + j * kRegister), qj = load_register(q + j * kRegister);
            for (int i = 0; i < ROWS; i++) {
                by_k[i] = fused(row(i, j), kj, by_k[i]);
                by_q[i] = fused(row(i, j), qj, by_q[i]);
            }
        }
        vr u[ROWS];
        const vr decay = spread(s.decay[t]);
        for (int i = 0; i < ROWS; i++) {
            const float update = s.beta[t] * (s.v[t * s.value_row + r + i] - s.decay[t] * sum_register(by_k[i]));
            s.o[t * s.value_row + r + i] = s.decay[t] * sum_register(by_q[i]) + update * s.kq[t];
            u[i] = spread(update);
        }
        for (int j = 0; j < n; j++) {
            const vr kj = load_register(k + j * kRegister);
            for (int i = 0; i < ROWS; i++) row(i, j) = fused(u[i], kj, decay * row(i, j));
        }
    }
    for (int i = 0; i < ROWS && to; i++) {
        float* place = to + (r + i) * s.Dk;
        if constexpr (N > 0) {
            for (int j = 0; j < n; j++) {
                if (j + 1 < n || rest == kRegister) store_register(place + j * kRegister, row(i, j));
                else store_rest(place + j * kRegister, row(i, j), rest);
            }
        } else {
            std::memcpy(place, &row(i, 0), size_t(s.Dk) * sizeof(float));
        }
    }
}

template <int N>
void step_head(const Steps& s, const float* from, float* to, float* room) {
    int64_t r = 0;
    for (; r + 2 <= s.Dv; r += 2) step_rows<N, 2>(s, from, to, r, room);
    if (r < s.Dv) step_rows<N, 1>(s, from, to, r, room);
}

inline void step(const Steps& s, const float* from, float* to, float* room) {
#if defined(__AVX512F__)
    switch (lanes_up(s.Dk) / kLanes) {
        case 1: return step_head<1>(s, from, to, room);
        case 2: return step_head<2>(s, from, to, room);
        case 4: return step_head<4>(s, from, to, room);
        case 6: return step_head<6>(s, from, to, room);
        case 8: return step_head<8>(s, from, to, room);
        default: break;
    }
#endif
    step_head<0>(s, from, to, room);
}

}  // namespace optiq::OPTIQ_LEVEL
