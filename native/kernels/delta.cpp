#include "kernels/delta.h"

#include "kernels/delta_chunk.h"
#include "kernels/delta_step.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// exp of it is zero in float32, and sums of it stay finite.
constexpr float kLeastLogDecay = -100.f;

inline float at(const Tokens& x, int64_t batch, int64_t token, int64_t channel) {
    if (!x.start) return 0.f;
    const int64_t place = batch * x.batch + token * x.token + channel;
    return with_float(x.type, [&]<class T>(T*) { return widen(static_cast<const T*>(x.start)[place]); });
}

inline bool masked(const Mixer& m, int64_t batch, int64_t token) { return m.mask && !m.mask[batch * m.shape.L + token]; }

// Position p of the tail followed by the new tokens, from channel c0 on; null stands for zeros.
template <class T>
inline const T* input_row(const Mixer& m, int64_t batch, int64_t p, int64_t c0) {
    const int64_t before = m.taps_count - 1;
    const Tokens& x = p < before ? m.tail : m.qkv;
    const int64_t token = p < before ? p : p - before;
    if (!x.start || (p >= before && masked(m, batch, token))) return nullptr;
    return static_cast<const T*>(x.start) + batch * x.batch + token * x.token + c0;
}

// The taps of channels [c0, c0 + width) as [K, lanes_up(width)] float32, zero beyond.
void load_taps(const Mixer& m, int64_t c0, int64_t width, float* taps) {
    const int64_t row = lanes_up(width), K = m.taps_count;
    with_float(m.taps_type, [&]<class T>(T*) {
        const T* from = static_cast<const T*>(m.taps) + c0 * K;
        for (int64_t j = 0; j < K; j++) {
            for (int64_t c = 0; c < width; c++) taps[j * row + c] = widen(from[c * K + j]);
            for (int64_t c = width; c < row; c++) taps[j * row + c] = 0.f;
        }
    });
}

// silu of the convolution for tokens [first, first + count) of VECTORS registers of channels from c0 + c. The window slides
// in registers; two registers of 16-bit values are a cache line, which is then read once.
template <class T, int K, int VECTORS>
inline void convolve_columns(const Mixer& m, int64_t batch, int64_t c0, int64_t c, int64_t width, const float* taps,
                             int64_t first, int64_t count, float* out, int64_t out_row) {
    const int64_t row = lanes_up(width), channel = c0 + c;
    const int64_t here = width - c < VECTORS * kLanes ? width - c : VECTORS * kLanes;
    vf window[K][VECTORS], by[K][VECTORS];
    const auto fill = [&](int64_t p, vf* to) {
        const T* from = input_row<T>(m, batch, p, channel);
        for (int i = 0; i < VECTORS; i++) {
            const int64_t left = here - i * kLanes;
            to[i] = !from ? vf{} : left >= kLanes ? load(from + i * kLanes) : load_part(from + i * kLanes, int(left));
        }
    };
    for (int j = 0; j < K; j++) {
        if (j) fill(first + j - 1, window[j]);
        for (int i = 0; i < VECTORS; i++) by[j][i] = load(taps + j * row + c + i * kLanes);
    }
    for (int64_t t = 0; t < count; t++) {
        for (int j = 1; j < K; j++)
            for (int i = 0; i < VECTORS; i++) window[j - 1][i] = window[j][i];
        fill(first + t + K - 1, window[K - 1]);
        if (const int64_t ahead = first + t + kRowsAhead; c == 0 && ahead < m.shape.L)
            prefetch(static_cast<const T*>(m.qkv.start) + batch * m.qkv.batch + ahead * m.qkv.token + c0,
                     width * int64_t(sizeof(T)));
        for (int i = 0; i < VECTORS; i++) {
            vf x{};
            for (int j = 0; j < K; j++) x = fma(window[j][i], by[j][i], x);
            store(out + t * out_row + c + i * kLanes, quick_silu(x));
        }
    }
}

// The same for all `width` channels; rows end in zeros.
template <class T>
void convolve_rows(const Mixer& m, int64_t batch, int64_t c0, int64_t width, const float* taps, int64_t first, int64_t count,
                   float* out, int64_t out_row) {
    for (int64_t c = 0; c < width;) {
        const auto part = [&]<int VECTORS>(std::integral_constant<int, VECTORS>) {
            const auto by = [&]<int K>(std::integral_constant<int, K>) {
                convolve_columns<T, K, VECTORS>(m, batch, c0, c, width, taps, first, count, out, out_row);
            };
            switch (m.taps_count) {
                case 1: return by(std::integral_constant<int, 1>());
                case 2: return by(std::integral_constant<int, 2>());
                case 3: return by(std::integral_constant<int, 3>());
                case 4: return by(std::integral_constant<int, 4>());
                case 5: return by(std::integral_constant<int, 5>());
                case 6: return by(std::integral_constant<int, 6>());
                case 7: return by(std::integral_constant<int, 7>());
                default: return by(std::integral_constant<int, 8>());
            }
        };
        if (width - c > kLanes) part(std::integral_constant<int, 2>()), c += 2 * kLanes;
        else part(std::integral_constant<int, 1>()), c += kLanes;
    }
}

void convolve(const Mixer& m, int64_t batch, int64_t c0, int64_t width, const float* taps, int64_t first, int64_t count,
              float* out, int64_t out_row) {
    with_float(m.qkv.type, [&]<class T>(T*) { convolve_rows<T>(m, batch, c0, width, taps, first, count, out, out_row); });
}

// The last K - 1 inputs of these channels, unchanged.
void keep_tail(const Mixer& m, int64_t batch, int64_t c0, int64_t width, int64_t channels) {
    const int64_t before = m.taps_count - 1, L = m.shape.L;
    const int64_t end = !m.ends ? L : m.ends[batch] < 0 ? 0 : m.ends[batch] > L ? L : m.ends[batch];
    with_float(m.qkv.type, [&]<class T>(T*) {
        for (int64_t j = 0; j < before; j++) {
            T* to = static_cast<T*>(m.new_tail) + (batch * before + j) * channels + c0;
            const T* from = input_row<T>(m, batch, end + j, c0);
            if (from) std::memcpy(to, from, size_t(width) * sizeof(T));
            else std::memset((void*)to, 0, size_t(width) * sizeof(T));
        }
    });
}

// log g and beta of one token and value head.
inline void gate(const Mixer& m, int64_t batch, int64_t token, int64_t hv, float rate, float* log_decay, float* beta) {
    if (masked(m, batch, token)) {
        *log_decay = *beta = 0.f;
        return;
    }
    const float a = at(m.a, batch, token, hv) + m.dt_bias[hv], b = at(m.b, batch, token, hv);
    const float softplus = (a > 0.f ? a : 0.f) + __builtin_log1pf(__builtin_expf(a > 0.f ? -a : a));
    const float log_g = -rate * (a == a ? softplus : a);
    *log_decay = log_g < kLeastLogDecay ? kLeastLogDecay : log_g;
    *beta = 1.f / (1.f + __builtin_expf(-b));
}

// norm o / rms(o) silu(z) for `count` tokens from `first` of one value head.
void write_out(const Mixer& m, int64_t batch, int64_t hv, int64_t first, int64_t count, const float* o, int64_t o_row) {
    const int64_t Dv = m.shape.Dv;
    with_float(m.qkv.type, [&]<class T>(T*) {
        for (int64_t t = 0; t < count; t++, o += o_row) {
            vf squares{};
            for (int64_t c = 0; c < Dv; c += kLanes) squares = fma(load(o + c), load(o + c), squares);
            const vf factor = splat(1.f / __builtin_sqrtf(sum(squares) / float(Dv) + m.eps));
            const T* z = static_cast<const T*>(m.z.start) + batch * m.z.batch + (first + t) * m.z.token + hv * Dv;
            if (first + t + kRowsAhead < m.shape.L) prefetch(z + kRowsAhead * m.z.token, Dv * int64_t(sizeof(T)));
            T* y = static_cast<T*>(m.y) + ((batch * m.shape.L + first + t) * m.shape.Hv + hv) * Dv;
            int64_t c = 0;
            for (; c + kLanes <= Dv; c += kLanes)
                store(y + c, load(o + c) * factor * load(m.norm + c) * quick_silu(load(z + c)));
            if (const int rest = int(Dv - c))
                store_part(y + c, load(o + c) * factor * load_part(m.norm + c, rest) * quick_silu(load_part(z + c, rest)), rest);
        }
    });
}

// The channels and the memory of one task.
struct Task {
    int64_t channels, q0, k0, v0, group, first_head;
    float *q_taps, *k_taps, *v_taps;

    Task(const Mixer& m, int64_t hk, Carver& memory) {
        const auto& s = m.shape;
        channels = 2 * s.Hk * s.Dk + s.Hv * s.Dv;
        group = s.group();
        first_head = hk * group;
        q0 = hk * s.Dk;
        k0 = s.Hk * s.Dk + q0;
        v0 = 2 * s.Hk * s.Dk + first_head * s.Dv;
        q_taps = memory.take(m.taps_count * lanes_up(s.Dk));
        k_taps = memory.take(m.taps_count * lanes_up(s.Dk));
        v_taps = memory.take(group * m.taps_count * lanes_up(s.Dv));
    }
};

void begin(const Mixer& m, const Task& task, int64_t batch) {
    const auto& s = m.shape;
    load_taps(m, task.q0, s.Dk, task.q_taps);
    load_taps(m, task.k0, s.Dk, task.k_taps);
    for (int64_t i = 0; i < task.group; i++)
        load_taps(m, task.v0 + i * s.Dv, s.Dv, task.v_taps + i * m.taps_count * lanes_up(s.Dv));
    if (!m.new_tail) return;
    keep_tail(m, batch, task.q0, s.Dk, task.channels);
    keep_tail(m, batch, task.k0, s.Dk, task.channels);
    keep_tail(m, batch, task.v0, task.group * s.Dv, task.channels);
}

void keys_of(const Mixer& m, const Task& task, int64_t batch, int64_t first, int64_t count, float* q, float* k, int64_t row) {
    const int64_t Dk = m.shape.Dk;
    convolve(m, batch, task.q0, Dk, task.q_taps, first, count, q, row);
    convolve(m, batch, task.k0, Dk, task.k_taps, first, count, k, row);
    normalise(q, row, count, Dk, 1.f / __builtin_sqrtf(float(Dk)), nullptr);
    normalise(k, row, count, Dk, 1.f, nullptr);
}

void values_of(const Mixer& m, const Task& task, int64_t batch, int64_t i, int64_t first, int64_t count, float* v, int64_t row) {
    const int64_t Dv = m.shape.Dv;
    convolve(m, batch, task.v0 + i * Dv, Dv, task.v_taps + i * m.taps_count * lanes_up(Dv), first, count, v, row);
}

inline const float* state_of(const Mixer& m, int64_t batch, int64_t hv) {
    return m.state ? m.state + (batch * m.shape.Hv + hv) * m.shape.Dv * m.shape.Dk : nullptr;
}

inline float* new_state_of(const Mixer& m, int64_t batch, int64_t hv) {
    return m.new_state ? m.new_state + (batch * m.shape.Hv + hv) * m.shape.Dv * m.shape.Dk : nullptr;
}

int64_t mix_steps(const Mixer& m, int64_t batch, int64_t hk, float* scratch) {
    const auto& s = m.shape;
    Carver memory{scratch};
    const Task task(m, hk, memory);
    const int64_t key_row = lanes_up(s.Dk), value_row = lanes_up(s.Dv);
    float *q = memory.take(s.L * key_row), *k = memory.take(s.L * key_row), *room = memory.take(2 * key_row);
    float *v = memory.take(s.L * value_row), *o = memory.take(s.L * value_row);
    if (!scratch) return memory.used;
    begin(m, task, batch);
    keys_of(m, task, batch, 0, s.L, q, k, key_row);
    alignas(64) float decay[kStepTokens], beta[kStepTokens], kq[kStepTokens];
    for (int64_t t = 0; t < s.L; t++) {
        vf dot{};
        for (int64_t c = 0; c < key_row; c += kLanes) dot = fma(load(k + t * key_row + c), load(q + t * key_row + c), dot);
        kq[t] = sum(dot);
    }
    std::memset(o, 0, size_t(s.L * value_row) * sizeof(float));
    for (int64_t i = 0; i < task.group; i++) {
        const int64_t hv = task.first_head + i;
        values_of(m, task, batch, i, 0, s.L, v, value_row);
        const float rate = __builtin_expf(m.a_log[hv]);
        for (int64_t t = 0; t < s.L; t++) {
            gate(m, batch, t, hv, rate, decay + t, beta + t);
            decay[t] = __builtin_expf(decay[t]);
        }
        step({s.L, s.Dk, s.Dv, q, k, key_row, v, o, value_row, decay, beta, kq}, state_of(m, batch, hv),
             new_state_of(m, batch, hv), room);
        if (m.y) write_out(m, batch, hv, 0, s.L, o, value_row);
    }
    return memory.used;
}

int64_t mix_chunks(const Mixer& m, int64_t batch, int64_t hk, float* scratch) {
    const auto& s = m.shape;
    Carver memory{scratch};
    const Task task(m, hk, memory);
    Keys keys(memory, s.Dk);
    Values values(memory, s.Dv);
    const int64_t state_floats = s.Dk * values.row;
    float* states = memory.take(task.group * state_floats);
    if (!scratch) return memory.used;
    begin(m, task, batch);
    std::memset(states, 0, size_t(task.group * state_floats) * sizeof(float));
    for (int64_t i = 0; i < task.group && m.state; i++)
        transpose(state_of(m, batch, task.first_head + i), s.Dk, states + i * state_floats, values.row, s.Dv, s.Dk);
    for (int64_t first = 0; first < s.L; first += kChunk) {
        const int64_t count = s.L - first < kChunk ? s.L - first : kChunk, rows = lanes_up(count);
        keys_of(m, task, batch, first, count, keys.q, keys.k, keys.row);
        std::memset(keys.q + count * keys.row, 0, size_t((rows - count) * keys.row) * sizeof(float));
        std::memset(keys.k + count * keys.row, 0, size_t((rows - count) * keys.row) * sizeof(float));
        keys.multiply(rows, s.Dk);
        for (int64_t i = 0; i < task.group; i++) {
            const int64_t hv = task.first_head + i;
            values_of(m, task, batch, i, first, count, values.u, values.row);
            std::memset(values.u + count * values.row, 0, size_t((rows - count) * values.row) * sizeof(float));
            const float rate = __builtin_expf(m.a_log[hv]);
            for (int64_t t = 0; t < count; t++) gate(m, batch, first + t, hv, rate, values.log_decay + t, values.beta + t);
            for (int64_t t = count; t < rows; t++) values.log_decay[t] = values.beta[t] = 0.f;
            chunk_forward(keys, values, states + i * state_floats, rows, s.Dk, s.Dv);
            write_out(m, batch, hv, first, count, values.y, values.row);
        }
    }
    for (int64_t i = 0; i < task.group; i++)
        transpose(states + i * state_floats, values.row, new_state_of(m, batch, task.first_head + i), s.Dk, s.Dk, s.Dv);
    return memory.used;
}

int64_t mix_floats(const Mixer& m) {
    return m.shape.L <= kStepTokens ? mix_steps(m, 0, 0, nullptr) : mix_chunks(m, 0, 0, nullptr);
}

void mix(const Mixer& m, int64_t batch, int64_t hk, float* scratch) {
    m.shape.L <= kStepTokens ? mix_steps(m, batch, hk, scratch) : mix_chunks(m, batch, hk, scratch);
}

}  // namespace

const DeltaKernels delta_table{mix_floats, mix};

}  // namespace optiq::OPTIQ_LEVEL
