#include "kernels/loss.h"

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// Calls f(offset, count) for each vector of n values; count is 16 but for the last.
template <class F>
inline void each(int64_t n, F&& f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
    if (i < n) f(i, int(n - i));
}

template <class T>
inline vf get(const T* p, int n) {
    return n == kLanes ? load(p) : load_part(p, n);
}

template <class T>
inline void put(T* p, vf x, int n) {
    n == kLanes ? store(p, x) : store_part(p, x, n);
}

constexpr float kInfinity = __builtin_huge_valf();

template <class T>
void piece_of(const T* x, int64_t n, float* most, float* total) {
    vf top = splat(-kInfinity);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) top = max(load(x + i), top);
    float m = largest(top);
    for (; i < n; i++) m = widen(x[i]) > m ? widen(x[i]) : m;
    *most = m;
    const vf shift = splat(m == -kInfinity ? 0.f : m);
    vf even{}, odd{};
    for (i = 0; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even += exp(load(x + i) - shift);
        odd += exp(load(x + i + kLanes) - shift);
    }
    for (; i + kLanes <= n; i += kLanes) even += exp(load(x + i) - shift);
    if (const int left = int(n - i); left > 0) {
        vf last = exp(load_part(x + i, left) - shift);
        for (int k = left; k < kLanes; k++) last[k] = 0.f;
        odd += last;
    }
    *total = sum(even + odd);
}

template <class T>
void softmax_vjp_of(const T* y, const T* g, int64_t n, T* dx) {
    vf even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even = fma(load(y + i), load(g + i), even);
        odd = fma(load(y + i + kLanes), load(g + i + kLanes), odd);
    }
    each(n - i, [&](int64_t k, int count) { even = fma(get(y + i + k, count), get(g + i + k, count), even); });
    const vf inner = splat(sum(even + odd));
    each(n, [&](int64_t k, int count) { put(dx + k, get(y + k, count) * (get(g + k, count) - inner), count); });
}

void piece(const void* x, int64_t n, Float type, float* most, float* total) {
    with_float(type, [&]<class T>(T*) { piece_of((const T*)x, n, most, total); });
}

void exponentials(const void* x, int64_t n, float shift, float scale, Float type, void* y) {
    with_float(type, [&]<class T>(T*) {
        const vf down = splat(shift), factor = splat(scale);
        each(n, [&](int64_t i, int count) { put((T*)y + i, exp(get((const T*)x + i, count) - down) * factor, count); });
    });
}

float divergence(const void* x, const void* y, int64_t n, float x_shift, float y_shift, Float type) {
    float total = 0.f;
    with_float(type, [&]<class T>(T*) {
        const vf down = splat(x_shift), other = splat(y_shift);
        vf all{};
        each(n, [&](int64_t i, int count) {
            const vf log_p = get((const T*)x + i, count) - down, log_q = get((const T*)y + i, count) - other;
            const vf p = exp(log_p);
            vf term = p == splat(0.f) ? vf{} : p * (log_p - log_q);
            for (int k = count; k < kLanes; k++) term[k] = 0.f;
            all += term;
        });
        total = sum(all);
    });
    return total;
}

void softmax_vjp(const void* y, const void* g, int64_t n, Float type, void* dx) {
    with_float(type, [&]<class T>(T*) { softmax_vjp_of((const T*)y, (const T*)g, n, (T*)dx); });
}

}  // namespace

const LossKernels loss_table{piece, exponentials, divergence, softmax_vjp};

}  // namespace optiq::OPTIQ_LEVEL
