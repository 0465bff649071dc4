#include "kernels/delta_rule.h"

#include "kernels/delta_step.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// `count` rows of `width` floats, `from_row` apart, into rows that end in zeros; further rows up to `rows` are zero.
void load_rows(const float* from, int64_t from_row, int64_t count, int64_t width, float* to, int64_t to_row, int64_t rows) {
    const int64_t whole = lanes_up(width);
    for (int64_t t = 0; t < rows; t++) {
        float* row = to + t * to_row;
        const int64_t filled = t < count && from ? width : 0;
        if (filled && t + kRowsAhead < count) prefetch(from + (t + kRowsAhead) * from_row, width * int64_t(sizeof(float)));
        if (filled) std::memcpy(row, from + t * from_row, size_t(width) * sizeof(float));
        std::memset(row + filled, 0, size_t(whole - filled) * sizeof(float));
    }
}

void store_rows(const float* from, int64_t from_row, int64_t count, int64_t width, float* to, int64_t to_row) {
    for (int64_t t = 0; t < count; t++) std::memcpy(to + t * to_row, from + t * from_row, size_t(width) * sizeof(float));
}

inline float dot(const float* x, const float* y, int64_t width) {
    vf total{};
    for (int64_t c = 0; c < width; c += kLanes) total = fma(load(x + c), load(y + c), total);
    return sum(total);
}

// to = x scale[t] for every row t.
inline void scale_rows(const float* x, const float* scale, float* to, int64_t row, int64_t rows, int64_t width) {
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < width; c += kLanes) store(to + t * row + c, splat(scale[t]) * load(x + t * row + c));
}

// Where one head's rows lie in [B, L, heads, width], `row` floats from token to token.
struct Head {
    int64_t offset, row;
    Head(const DeltaShape& s, int64_t batch, int64_t head, int64_t width, int64_t row)
        : offset(batch * s.L * row + head * width), row(row) {}
    template <class T>
    T* rows(T* start, int64_t first) const {
        return start ? start + offset + first * row : nullptr;
    }
};

inline Head key_head(const Rule& r, int64_t batch, int64_t hk) { return {r.shape, batch, hk, r.shape.Dk, r.key_row}; }
inline Head value_head(const Rule& r, int64_t batch, int64_t hv) { return {r.shape, batch, hv, r.shape.Dv, r.value_row}; }
inline Head output_head(const DeltaShape& s, int64_t batch, int64_t hv) { return {s, batch, hv, s.Dv, s.Hv * s.Dv}; }
inline Head gate_head(const DeltaShape& s, int64_t batch, int64_t hv) { return {s, batch, hv, 1, s.Hv}; }

inline float query_scale(const DeltaShape& s) { return 1.f / __builtin_sqrtf(float(s.Dk)); }

inline int64_t chunks(const DeltaShape& s) { return (s.L + kChunk - 1) / kChunk; }

inline int64_t state_floats(const DeltaShape& s) { return s.Dk * padded(s.Dv); }

// Queries and keys of `count` tokens, zero up to `rows`; `inverse` [2, kChunk] receives their inverse lengths.
void load_keys(const Rule& r, int64_t batch, int64_t hk, int64_t first, int64_t count, int64_t rows, float* q, float* k,
               int64_t row, float* inverse) {
    const auto& s = r.shape;
    const Head head = key_head(r, batch, hk);
    load_rows(head.rows(r.q, first), head.row, count, s.Dk, q, row, rows);
    load_rows(head.rows(r.k, first), head.row, count, s.Dk, k, row, rows);
    if (!r.normalise) return;
    normalise(q, row, rows, s.Dk, query_scale(s), inverse);
    normalise(k, row, rows, s.Dk, 1.f, inverse ? inverse + kChunk : nullptr);
}

// The cotangents of rows x from those of y = x scale inverse, in place.
void through_norm(const float* y, const float* inverse, float scale, float* dy, int64_t row, int64_t count, int64_t width) {
    for (int64_t t = 0; t < count; t++, y += row, dy += row) {
        const vf factor = splat(scale * inverse[t]), share = splat(dot(y, dy, width) * inverse[t] / scale);
        for (int64_t c = 0; c < width; c += kLanes) store(dy + c, factor * load(dy + c) - share * load(y + c));
    }
}

void load_values(const Rule& r, int64_t batch, int64_t hv, int64_t first, int64_t count, int64_t rows, Values& v) {
    const Head head = value_head(r, batch, hv), gate = gate_head(r.shape, batch, hv);
    load_rows(head.rows(r.v, first), head.row, count, r.shape.Dv, v.u, v.row, rows);
    const float *g = gate.rows(r.g, first), *beta = gate.rows(r.beta, first);
    for (int64_t t = 0; t < rows; t++) {
        const float decay = t < count ? g[t * gate.row] : 1.f;
        v.log_decay[t] = __builtin_logf(decay < kLeastDecay ? kLeastDecay : decay);
        v.beta[t] = t < count ? beta[t * gate.row] : 0.f;
    }
}

int64_t step_task(const Rule& r, int64_t batch, int64_t hk, float* scratch) {
    const auto& s = r.shape;
    Carver memory{scratch};
    const int64_t key_row = lanes_up(s.Dk), value_row = lanes_up(s.Dv);
    float *q = memory.take(s.L * key_row), *k = memory.take(s.L * key_row), *room = memory.take(2 * key_row);
    float *v = memory.take(s.L * value_row), *o = memory.take(s.L * value_row);
    if (!scratch) return memory.used;
    load_keys(r, batch, hk, 0, s.L, s.L, q, k, key_row, nullptr);
    alignas(64) float decay[kStepTokens], beta[kStepTokens], kq[kStepTokens];
    for (int64_t t = 0; t < s.L; t++) kq[t] = dot(k + t * key_row, q + t * key_row, key_row);
    for (int64_t hv = hk * s.group(); hv < (hk + 1) * s.group(); hv++) {
        const Head head = value_head(r, batch, hv), gate = gate_head(s, batch, hv), out = output_head(s, batch, hv);
        load_rows(head.rows(r.v, 0), head.row, s.L, s.Dv, v, value_row, s.L);
        for (int64_t t = 0; t < s.L; t++) {
            decay[t] = gate.rows(r.g, t)[0];
            beta[t] = gate.rows(r.beta, t)[0];
        }
        const int64_t at = (batch * s.Hv + hv) * s.Dv * s.Dk;
        const Steps steps{s.L, s.Dk, s.Dv, q, k, key_row, v, o, value_row, decay, beta, kq};
        step(steps, r.state ? r.state + at : nullptr, r.new_state + at, room);
        store_rows(o, value_row, s.L, s.Dv, out.rows(r.y, 0), out.row);
    }
    return memory.used;
}

int64_t forward_task(const Rule& r, int64_t batch, int64_t hk, float* scratch) {
    const auto& s = r.shape;
    if (s.L <= kStepTokens && !r.starts) return step_task(r, batch, hk, scratch);
    Carver memory{scratch};
    Keys keys(memory, s.Dk);
    Values v(memory, s.Dv);
    const int64_t floats = state_floats(s), n = chunks(s);
    float* states = memory.take(s.group() * floats);
    if (!scratch) return memory.used;
    std::memset(states, 0, size_t(s.group() * floats) * sizeof(float));
    for (int64_t i = 0; i < s.group() && r.state; i++)
        transpose(r.state + (batch * s.Hv + hk * s.group() + i) * s.Dv * s.Dk, s.Dk, states + i * floats, v.row, s.Dv, s.Dk);
    for (int64_t c = 0; c < n; c++) {
        const int64_t first = c * kChunk, count = s.L - first < kChunk ? s.L - first : kChunk, rows = lanes_up(count);
        load_keys(r, batch, hk, first, count, rows, keys.q, keys.k, keys.row, nullptr);
        keys.multiply(rows, s.Dk);
        for (int64_t i = 0; i < s.group(); i++) {
            const int64_t hv = hk * s.group() + i;
            float* state = states + i * floats;
            if (r.starts)
                std::memcpy(r.starts + ((batch * s.Hv + hv) * n + c) * floats, state, size_t(floats) * sizeof(float));
            load_values(r, batch, hv, first, count, rows, v);
            chunk_forward(keys, v, state, rows, s.Dk, s.Dv);
            const Head head = output_head(s, batch, hv);
            store_rows(v.y, v.row, count, s.Dv, head.rows(r.y, first), head.row);
        }
    }
    for (int64_t i = 0; i < s.group(); i++)
        transpose(states + i * floats, v.row, r.new_state + (batch * s.Hv + hk * s.group() + i) * s.Dv * s.Dk, s.Dk, s.Dk, s.Dv);
    return memory.used;
}

// Solve (I + A)^T M = R in place, from the last block of rows to the first.
void solve_transposed(const Values& v, float* m, int64_t rows, int64_t columns) {
    for (int64_t i = rows - kLanes; i >= 0; i -= kLanes) {
        float* block = m + i * v.row;
        const int64_t after = i + kLanes;
        if (after < rows) {
            product({v.a + after * kScoreRow + i, 1, kScoreRow}, m + after * v.row, v.row, block, v.row, kLanes, columns,
                    rows - after, -1.f);
            for (int64_t r = 0; r < kLanes; r++)
                for (int64_t c = 0; c < columns; c += kLanes) store(block + r * v.row + c, -load(block + r * v.row + c));
        }
        solve_block<true>(v.a + i * kScoreRow + i, block, v.row, columns);
    }
}

// C = keep C + X B, or X^T B, for a lower triangular X [rows, rows].
void lower_by(const float* x, const float* b, float* c, int64_t row, int64_t rows, int64_t columns, float keep) {
    for (int64_t i = 0; i < rows; i += kLanes)
        product(plain(x + i * kScoreRow, kScoreRow), b, row, c + i * row, row, kLanes, columns, i + kLanes, keep);
}

void upper_by(const float* x, const float* b, float* c, int64_t row, int64_t rows, int64_t columns, float keep) {
    for (int64_t i = 0; i < rows; i += kLanes)
        product({x + i * kScoreRow + i, 1, kScoreRow}, b + i * row, row, c + i * row, row, kLanes, columns, rows - i, keep);
}

// Working memory of the backward pass of one value head's chunk; [kChunk, width] where not said otherwise.
struct Gradients {
    float *dy, *d, *m, *z;        // width Dv: cotangent of Y; V - G K S^T; cotangent of R; keys by S1's cotangent, then rho U
    float *ut, *dp, *da;          // [Dv, kScoreRow], [kChunk, kScoreRow] twice
    float *dq, *plus, *minus;     // width Dk: cotangents of queries and keys
    float *all_dq, *all_dk;       // width Dk: summed over the value heads of the group
    float *start, *d_end_t;       // S [Dv, key row]; cotangent of S1 as [Dk, value row]
    float* d_states;              // [group, Dv, key row]: cotangents of the state
    alignas(64) float left[kChunk], factor[kChunk], d_total[kChunk], d_beta[kChunk], inverse[2 * kChunk];

    Gradients(Carver& memory, const DeltaShape& s, int64_t key_row, int64_t value_row) {
        for (float** x : {&dy, &d, &m, &z}) *x = memory.take(kChunk * value_row);
        ut = memory.take(lanes_up(s.Dv) * kScoreRow);
        dp = memory.take(kChunk * kScoreRow);
        da = memory.take(kChunk * kScoreRow);
        for (float** x : {&dq, &plus, &minus, &all_dq, &all_dk}) *x = memory.take(kChunk * key_row);
        start = memory.take(s.Dv * key_row);
        d_end_t = memory.take(s.Dk * value_row);
        d_states = memory.take(s.group() * s.Dv * key_row);
    }
};

// dp <- Gamma dP, da <- beta Gamma dA (dA is minus what da holds), d_beta gets A's part.
void unweigh(const Keys& keys, const Values& v, Gradients& d, int64_t rows) {
    vi lane;
    for (int i = 0; i < kLanes; i++) lane[i] = i;
    for (int64_t t = 0; t < rows; t++) {
        vf by_beta{};
        for (int64_t s = 0; s <= t; s += kLanes) {
            const vf gamma = ratio(v, t, s);
            const vi ahead = lane + int(s) - int(t);
            const vi seen = ahead <= 0, before = ahead < 0;
            const int64_t at = t * kScoreRow + s;
            store(d.dp + at, (vf)((vi)(gamma * load(d.dp + at)) & seen));
            const vf da = (vf)((vi)(-gamma * load(d.da + at)) & before);
            by_beta = fma(da, (vf)((vi)load(keys.kk + at) & before), by_beta);
            store(d.da + at, splat(v.beta[t]) * da);
        }
        d.d_beta[t] += sum(by_beta);
    }
}

// One chunk of one value head, backwards. `state` is S_0^T; d.dy holds the cotangent of Y, `d_state` that of S_1 [Dv, key row]
// and afterwards that of S_0. Leaves beta M in d.m, the cotangents of q and k in d.dq and d.plus, d.d_total and d.d_beta.
//
// With M the cotangent of R = beta (V - G K S_0^T), N = -beta G M, rho_s = G_C / G_s and dS the cotangent of S_1:
//
//     (I + A)^T M = P^T dY + rho K dS^T,   dP = dY U^T,   dA = -M U^T   (lower triangles)
//     dQ = (Gamma dP) K + (G dY) S_0
//     dK = E K + N S_0  +  E^T K + (Gamma dP)^T Q + rho U dS,   E = beta Gamma dA
//     dS_0 = G_C dS + N^T K + (G dY)^T Q,   dV = beta M
//
// Each of q and k enters with a power of its token's total decay: +1 in dQ and the first two parts of dK, -1 in the others, so
// the cotangent of log G_t is q . dq + k . (the first two) - k . (the others), and of the last one also that of G_C, rho.
void chunk_backward(const Keys& keys, Values& v, Gradients& d, const float* state, float* d_state, int64_t rows, int64_t Dk,
                    int64_t Dv) {
    const int64_t wide = lanes_up(Dv), deep = lanes_up(Dk), last = rows - 1;
    weigh(keys, v, rows);
    for (int64_t s = 0; s < rows; s += kLanes) store(d.left + s, ratio(v, last, s));
    product(plain(keys.k, keys.row), state, v.row, d.d, v.row, rows, wide, Dk, 0.f);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < wide; c += kLanes) {
            const int64_t at = t * v.row + c;
            const vf fresh = load(v.u + at) - splat(v.decay[t]) * load(d.d + at);
            store(d.d + at, fresh);
            store(v.u + at, splat(v.beta[t]) * fresh);
        }
    solve(v, rows, wide);
    for (int64_t r = 0; r < Dk; r++) std::memset(d.d_end_t + r * v.row, 0, size_t(wide) * sizeof(float));
    transpose(d_state, keys.row, d.d_end_t, v.row, Dv, Dk);
    product(plain(keys.k, keys.row), d.d_end_t, v.row, d.z, v.row, rows, wide, Dk, 0.f);
    float end = 0.f;  // cotangent of log G_C
    for (int64_t t = 0; t < rows; t++) end += d.left[t] * dot(v.u + t * v.row, d.z + t * v.row, wide);
    transpose(state, v.row, d.start, keys.row, Dk, Dv);
    float kept = 0.f;
    for (int64_t r = 0; r < Dv; r++) {
        std::memset(d.start + r * keys.row + Dk, 0, size_t(deep - Dk) * sizeof(float));
        kept += dot(d_state + r * keys.row, d.start + r * keys.row, deep);
    }
    end += v.decay[last] * kept;
    scale_rows(d.z, d.left, d.m, v.row, rows, wide);
    upper_by(v.p, d.dy, d.m, v.row, rows, wide, 1.f);
    solve_transposed(v, d.m, rows, wide);
    transpose(v.u, v.row, d.ut, kScoreRow, rows, wide);
    product_lower(plain(d.dy, v.row), d.ut, kScoreRow, d.dp, kScoreRow, rows, Dv);
    product_lower(plain(d.m, v.row), d.ut, kScoreRow, d.da, kScoreRow, rows, Dv);
    for (int64_t t = 0; t < rows; t++) d.d_beta[t] = dot(d.m + t * v.row, d.d + t * v.row, wide);
    unweigh(keys, v, d, rows);

    lower_by(d.dp, keys.k, d.dq, keys.row, rows, deep, 0.f);
    lower_by(d.da, keys.k, d.plus, keys.row, rows, deep, 0.f);
    scale_rows(v.u, d.left, d.z, v.row, rows, wide);
    product(plain(d.z, v.row), d_state, keys.row, d.minus, keys.row, rows, deep, Dv, 0.f);
    upper_by(d.dp, keys.q, d.minus, keys.row, rows, deep, 1.f);
    upper_by(d.da, keys.k, d.minus, keys.row, rows, deep, 1.f);
    // N takes the place of D, G dY that of dY, beta M that of M.
    for (int64_t t = 0; t < rows; t++) d.factor[t] = -v.beta[t] * v.decay[t];
    scale_rows(d.m, d.factor, d.d, v.row, rows, wide);
    scale_rows(d.dy, v.decay, d.dy, v.row, rows, wide);
    scale_rows(d.m, v.beta, d.m, v.row, rows, wide);
    product(plain(d.dy, v.row), d.start, keys.row, d.dq, keys.row, rows, deep, Dv, 1.f);
    product(plain(d.d, v.row), d.start, keys.row, d.plus, keys.row, rows, deep, Dv, 1.f);
    product(transposed(d.d, v.row), keys.k, keys.row, d_state, keys.row, Dv, deep, rows, v.decay[last]);
    product(transposed(d.dy, v.row), keys.q, keys.row, d_state, keys.row, Dv, deep, rows, 1.f);

    for (int64_t t = 0; t < rows; t++) {
        const int64_t at = t * keys.row;
        d.d_total[t] = dot(keys.q + at, d.dq + at, deep) + dot(keys.k + at, d.plus + at, deep) -
                       dot(keys.k + at, d.minus + at, deep);
        for (int64_t c = 0; c < deep; c += kLanes) store(d.plus + at + c, load(d.plus + at + c) + load(d.minus + at + c));
    }
    d.d_total[last] += end;
}

int64_t backward_task(const Rule& r, const RuleGradients& out, int64_t batch, int64_t hk, float* scratch) {
    const auto& s = r.shape;
    Carver memory{scratch};
    Keys keys(memory, s.Dk);
    Values v(memory, s.Dv);
    Gradients d(memory, s, keys.row, v.row);
    if (!scratch) return memory.used;
    const int64_t n = chunks(s), floats = state_floats(s), deep = lanes_up(s.Dk);
    const Head keyed = key_head(r, batch, hk);
    for (int64_t i = 0; i < s.group(); i++) {
        const int64_t at = (batch * s.Hv + hk * s.group() + i) * s.Dv * s.Dk;
        load_rows(out.d_new_state ? out.d_new_state + at : nullptr, s.Dk, s.Dv, s.Dk, d.d_states + i * s.Dv * keys.row, keys.row,
                  s.Dv);
    }
    for (int64_t c = n - 1; c >= 0; c--) {
        const int64_t first = c * kChunk, count = s.L - first < kChunk ? s.L - first : kChunk, rows = lanes_up(count);
        load_keys(r, batch, hk, first, count, rows, keys.q, keys.k, keys.row, d.inverse);
        keys.multiply(rows, s.Dk);
        for (int64_t i = 0; i < s.group(); i++) {
            const int64_t hv = hk * s.group() + i;
            const Head head = value_head(r, batch, hv), one = gate_head(s, batch, hv), output = output_head(s, batch, hv);
            load_values(r, batch, hv, first, count, rows, v);
            load_rows(output.rows(out.dy, first), output.row, count, s.Dv, d.dy, v.row, rows);
            chunk_backward(keys, v, d, r.starts + ((batch * s.Hv + hv) * n + c) * floats, d.d_states + i * s.Dv * keys.row, rows,
                           s.Dk, s.Dv);
            for (int64_t t = 0; t < rows; t++)
                for (int64_t k = 0; k < deep; k += kLanes) {
                    const int64_t at = t * keys.row + k;
                    store(d.all_dq + at, i ? load(d.all_dq + at) + load(d.dq + at) : load(d.dq + at));
                    store(d.all_dk + at, i ? load(d.all_dk + at) + load(d.plus + at) : load(d.plus + at));
                }
            store_rows(d.m, v.row, count, s.Dv, head.rows(out.dv, first), head.row);
            double later = 0.;
            for (int64_t t = rows - 1; t >= 0; t--) {
                later += double(d.d_total[t]);
                if (t >= count) continue;
                const float g = one.rows(r.g, first)[t * one.row];
                one.rows(out.dg, first)[t * one.row] = g > kLeastDecay ? float(later) / g : 0.f;
                one.rows(out.d_beta, first)[t * one.row] = d.d_beta[t];
            }
        }
        if (r.normalise) {
            through_norm(keys.q, d.inverse, query_scale(s), d.all_dq, keys.row, count, deep);
            through_norm(keys.k, d.inverse + kChunk, 1.f, d.all_dk, keys.row, count, deep);
        }
        store_rows(d.all_dq, keys.row, count, s.Dk, keyed.rows(out.dq, first), keyed.row);
        store_rows(d.all_dk, keys.row, count, s.Dk, keyed.rows(out.dk, first), keyed.row);
    }
    for (int64_t i = 0; i < s.group(); i++)
        store_rows(d.d_states + i * s.Dv * keys.row, keys.row, s.Dv, s.Dk,
                   out.d_state + (batch * s.Hv + hk * s.group() + i) * s.Dv * s.Dk, s.Dk);
    return memory.used;
}

int64_t floats(const Rule& r, bool backward) {
    return backward ? backward_task(r, {}, 0, 0, nullptr) : forward_task(r, 0, 0, nullptr);
}

void forward(const Rule& r, int64_t batch, int64_t hk, float* scratch) { forward_task(r, batch, hk, scratch); }

void backward(const Rule& r, const RuleGradients& out, int64_t batch, int64_t hk, float* scratch) {
    backward_task(r, out, batch, hk, scratch);
}

}  // namespace

const RuleKernels rule_table{floats, forward, backward};

}  // namespace optiq::OPTIQ_LEVEL
