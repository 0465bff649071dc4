#include "kernels/norm.h"

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// The next n values, or sixteen.
template <class T>
inline vf get(const T* p, int64_t n) {
    return n >= kLanes ? load(p) : load_part(p, int(n));
}

template <class T>
inline void put(T* p, vf x, int64_t n) {
    n >= kLanes ? store(p, x) : store_part(p, x, int(n));
}

inline vf rounded(vf x, const float*) { return x; }
inline vf rounded(vf x, const bf16*) { return widen_bf16(narrow_bf16(x)); }
inline vf rounded(vf x, const f16*) { return widen_f16(narrow_f16(x)); }

template <class T>
inline float factor(const T* x, int64_t n, float eps) {
    vf even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        const vf a = load(x + i), b = load(x + i + kLanes);
        even = fma(a, a, even);
        odd = fma(b, b, odd);
    }
    for (; i < n; i += kLanes) {
        const vf a = get(x + i, n - i);
        even = fma(a, a, even);
    }
    return 1.f / __builtin_sqrtf(sum(even + odd) / float(n) + eps);
}

template <class T>
void rms_row(const T* x, const T* add, const T* weight, const T* gate, int64_t n, float eps, T* total, T* y) {
    if (add) {
        for (int64_t i = 0; i < n; i += kLanes) put(total + i, get(x + i, n - i) + get(add + i, n - i), n - i);
        x = total;
    }
    const vf r = splat(factor(x, n, eps));
    for (int64_t i = 0; i < n; i += kLanes) {
        const int64_t left = n - i;
        vf v = rounded(get(x + i, left) * r, x);
        if (weight) v *= get(weight + i, left);
        if (gate) v = rounded(v, x) * silu(get(gate + i, left));
        put(y + i, v, left);
    }
}

template <class T>
void rms_vjp_row(const T* x, const T* weight, const T* gate, const T* g, const T* more, int64_t n, float eps, T* dx,
                 float* dweight, T* dgate, float* scratch) {
    const float factor_r = factor(x, n, eps);
    const vf r = splat(factor_r);
    vf inner{};
    for (int64_t i = 0; i < n; i += kLanes) {
        const int64_t left = n - i;
        const vf xs = get(x + i, left);
        vf gs = get(g + i, left);
        vf w = weight ? get(weight + i, left) : splat(1.f);
        if (gate) {
            const vf z = get(gate + i, left), s = sigmoid(z);
            put(dgate + i, gs * (xs * r * w) * (s * (splat(1.f) + z * (splat(1.f) - s))), left);
            gs *= z * s;
            put(scratch + i, gs, left);
        }
        if (dweight) put(dweight + i, fma(gs, xs * r, get(dweight + i, left)), left);
        inner = fma(gs * w, xs, inner);
    }
    const vf t = splat(sum(inner) / float(n) * factor_r * factor_r * factor_r);
    for (int64_t i = 0; i < n; i += kLanes) {
        const int64_t left = n - i;
        vf gs = gate ? get(scratch + i, left) : get(g + i, left);
        if (weight) gs *= get(weight + i, left);
        vf d = gs * r - get(x + i, left) * t;
        if (more) d += get(more + i, left);
        put(dx + i, d, left);
    }
}

void rms(const void* x, const void* add, const void* weight, const void* gate, int64_t n, float eps, Float type, void* total,
         void* y) {
    with_float(type, [&]<class T>(T*) {
        rms_row((const T*)x, (const T*)add, (const T*)weight, (const T*)gate, n, eps, (T*)total, (T*)y);
    });
}

void rms_vjp(const void* x, const void* weight, const void* gate, const void* g, const void* more, int64_t n, float eps,
             Float type, void* dx, float* dweight, void* dgate, float* scratch) {
    with_float(type, [&]<class T>(T*) {
        rms_vjp_row((const T*)x, (const T*)weight, (const T*)gate, (const T*)g, (const T*)more, n, eps, (T*)dx, dweight,
                    (T*)dgate, scratch);
    });
}

}  // namespace

const NormKernels norm_table{rms, rms_vjp};

}  // namespace optiq::OPTIQ_LEVEL
