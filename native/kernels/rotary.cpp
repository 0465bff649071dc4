#include "kernels/rotary.h"

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// Cosine and sine from n = round(x 2 / pi) and the rest of x in [-pi/4, pi/4], found with pi/2 in three parts; each step is
// one fused multiply-add, so that only the last digits of n pi/2 are rounded. Polynomials: minimax, Cephes sinf and cosf.
inline void cosine_sine(vf x, vf* cosine, vf* sine) {
    const vf shifted = fma(x, splat(0.636619772f), splat(12582912.f));  // rounds to an integer, see exp
    const vf n = shifted - splat(12582912.f);
    vf r = fma(n, splat(-1.57079637e0f), x);
    r = fma(n, splat(4.37113883e-8f), r);
    r = fma(n, splat(1.71512489e-15f), r);
    const vf z = r * r;
    vf s = fma(z, splat(-1.9515295891e-4f), splat(8.3321608736e-3f));
    s = fma(z, s, splat(-1.6666654611e-1f));
    s = fma(s * z, r, r);
    vf c = fma(z, splat(2.443315711809948e-5f), splat(-1.388731625493765e-3f));
    c = fma(z, c, splat(4.166664568298827e-2f));
    c = fma(c * z, z, fma(z, splat(-0.5f), splat(1.f)));
    const vi quarter = __builtin_convertvector(n, vi);
    const vi swap = (quarter & 1) != 0;
    const vi sine_sign = (quarter & 2) << 30, cosine_sign = ((quarter + 1) & 2) << 30;
    *sine = (vf)(((swap & (vi)c) | (~swap & (vi)s)) ^ sine_sign);
    *cosine = (vf)(((swap & (vi)s) | (~swap & (vi)c)) ^ cosine_sign);
}

void angles(float position, const float* inverse, int64_t half, float turn, float* cosine, float* sine) {
    for (int64_t i = 0; i < half; i += kLanes) {
        const int left = half - i < kLanes ? int(half - i) : kLanes;
        vf c, s;
        cosine_sine(splat(position) * (left < kLanes ? load_part(inverse + i, left) : load(inverse + i)), &c, &s);
        s *= splat(turn);
        if (left < kLanes) {
            store_part(cosine + i, c, left);
            store_part(sine + i, s, left);
        } else {
            store(cosine + i, c);
            store(sine + i, s);
        }
    }
}

template <class T>
void rotate_halves(const T* x, const float* cosine, const float* sine, int64_t half, T* y) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const vf a = load(x + i), b = load(x + half + i), c = load(cosine + i), s = load(sine + i);
        store(y + i, a * c - b * s);
        store(y + half + i, a * s + b * c);
    }
    if (const int left = int(half - i); left > 0) {
        const vf a = load_part(x + i, left), b = load_part(x + half + i, left);
        const vf c = load_part(cosine + i, left), s = load_part(sine + i, left);
        store_part(y + i, a * c - b * s, left);
        store_part(y + half + i, a * s + b * c, left);
    }
}

template <class T>
void rotate_pairs(const T* x, const float* cosine, const float* sine, int64_t half, T* y) {
    for (int64_t i = 0; i < half; i++) {
        const float a = widen(x[2 * i]), b = widen(x[2 * i + 1]);
        narrow(a * cosine[i] - b * sine[i], y + 2 * i);
        narrow(a * sine[i] + b * cosine[i], y + 2 * i + 1);
    }
}

void rotate(const void* x, const float* cosine, const float* sine, int64_t half, int64_t width, bool traditional, Float type,
            void* y) {
    with_float(type, [&]<class T>(T*) {
        const T* from = (const T*)x;
        T* to = (T*)y;
        if (traditional)
            rotate_pairs(from, cosine, sine, half, to);
        else
            rotate_halves(from, cosine, sine, half, to);
        std::memcpy(to + 2 * half, from + 2 * half, size_t(width - 2 * half) * sizeof(T));
    });
}

}  // namespace

const RotaryKernels rotary_table{angles, rotate};

}  // namespace optiq::OPTIQ_LEVEL
