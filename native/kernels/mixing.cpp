#include "kernels/mixing.h"

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

template <class T>
inline vf load_some(const T* p, int64_t left) {
    return left >= kLanes ? load(p) : load_part(p, int(left));
}

template <class T>
inline void store_some(T* p, vf x, int64_t left) {
    if (left >= kLanes) store(p, x);
    else store_part(p, x, int(left));
}

// Derivative of silu where sigmoid is s.
inline vf silu_slope(vf x, vf s) { return s * (splat(1.f) + x * (splat(1.f) - s)); }

// The taps of sixteen channels from c on, one register per tap.
inline void load_taps(const Conv& f, int64_t c, vf* taps) {
    for (int64_t j = 0; j < f.K; j++) {
        taps[j] = vf{};
        for (int i = 0; i < kLanes && c + i < f.C; i++) taps[j][i] = f.w[(c + i) * f.K + j];
    }
}

// Calls each(b, c) for the rows and vectors of channels of one task.
template <class F>
inline void each_vector(const Conv& f, int64_t task, const F& each) {
    const int64_t end = (task + 1) * kConvChannels < f.C ? (task + 1) * kConvChannels : f.C;
    for (int64_t c = task * kConvChannels; c < end; c += kLanes)
        for (int64_t b = 0; b < f.B; b++) each(b, c);
}

// Row p < L + K - 1 of what the convolution runs over, from channel c on; null stands for zeros.
template <class T>
inline T* row_of(const Conv& f, T* x, T* tail, int64_t b, int64_t p, int64_t c) {
    if (!f.causal) return x + (b * (f.L + f.K - 1) + p) * f.C + c;
    if (p >= f.K - 1) return x + (b * f.L + p - (f.K - 1)) * f.C + c;
    return tail ? tail + (b * (f.K - 1) + p) * f.C + c : nullptr;
}

template <class T>
inline vf load_row(const Conv& f, int64_t b, int64_t p, int64_t c) {
    const T* row = row_of(f, static_cast<const T*>(f.x), static_cast<const T*>(f.tail), b, p, c);
    return row ? load_some(row, f.C - c) : vf{};
}

// The last K rows in a window of registers; K = 0: any number.
template <int K, class T>
struct Window {
    vf rows[K ? K : kMostTaps];
    int64_t count;
    const Conv& f;
    const int64_t b, c;

    Window(const Conv& f, int64_t b, int64_t c) : count(K ? K : f.K), f(f), b(b), c(c) {
        for (int64_t j = 1; j < count; j++) rows[j] = load_row<T>(f, b, j - 1, c);
    }
    void move_to(int64_t t) {
        for (int64_t j = 1; j < count; j++) rows[j - 1] = rows[j];
        rows[count - 1] = load_row<T>(f, b, t + count - 1, c);
        const int64_t ahead = t + count - 1 + kRowsAhead;
        if (t + kRowsAhead < f.L) prefetch(row_of(f, static_cast<const T*>(f.x), static_cast<const T*>(f.tail), b, ahead, c), 64);
    }
    vf sum(const vf* taps) const {
        vf total{};
        for (int64_t j = 0; j < count; j++) total = fma(rows[j], taps[j], total);
        return total;
    }
};

template <int K, class T, class Y>
void conv_of(const Conv& f, int64_t task, Y* y) {
    each_vector(f, task, [&](int64_t b, int64_t c) {
        vf taps[kMostTaps];
        load_taps(f, c, taps);
        Window<K, T> window(f, b, c);
        for (int64_t t = 0; t < f.L; t++) {
            window.move_to(t);
            const vf sum = window.sum(taps);
            store_some(y + (b * f.L + t) * f.C + c, f.silu ? quick_silu(sum) : sum, f.C - c);
        }
    });
}

// Calls g with null pointers to the types of x and y.
template <class G>
inline void with_types(const Conv& f, const G& g) {
    with_float(f.type, [&]<class T>(T* x) {
        if (f.y_type == f.type) g(x, x);
        else g(x, (float*)nullptr);
    });
}

void conv(const Conv& f, int64_t task, void* y) {
    with_types(f, [&]<class T, class Y>(T*, Y*) {
        if (f.K == 4) conv_of<4, T>(f, task, static_cast<Y*>(y));
        else conv_of<0, T>(f, task, static_cast<Y*>(y));
    });
}

template <int K, class T, class Y>
void conv_backward_of(const Conv& f, int64_t task, const Y* dy, T* dx, T* d_tail, float* dw) {
    vf d_taps[kMostTaps];
    each_vector(f, task, [&](int64_t b, int64_t c) {
        const int64_t left = f.C - c;
        vf taps[kMostTaps], due[K ? K : kMostTaps];
        load_taps(f, c, taps);
        Window<K, T> window(f, b, c);
        for (int64_t j = 0; j < window.count; j++) {
            due[j] = vf{};
            if (b == 0) d_taps[j] = vf{};
        }
        const auto put = [&](int64_t p, vf x) {
            if (T* row = row_of(f, dx, d_tail, b, p, c)) store_some(row, x, left);
        };
        // due[j] gathers the cotangent of row t + j; after token t, that of row t is complete.
        for (int64_t t = 0; t < f.L; t++) {
            window.move_to(t);
            if (t + kRowsAhead < f.L) prefetch(dy + (b * f.L + t + kRowsAhead) * f.C + c, 64);
            vf slope = load_some(dy + (b * f.L + t) * f.C + c, left);
            if (f.silu) {
                const vf x = window.sum(taps);
                slope *= silu_slope(x, quick_sigmoid(x));
            }
            for (int64_t j = 0; j < window.count; j++) {
                due[j] = fma(slope, taps[j], due[j]);
                d_taps[j] = fma(slope, window.rows[j], d_taps[j]);
            }
            put(t, due[0]);
            for (int64_t j = 1; j < window.count; j++) due[j - 1] = due[j];
            due[window.count - 1] = vf{};
        }
        for (int64_t j = 0; j + 1 < window.count; j++) put(f.L + j, due[j]);
        if (b + 1 == f.B)
            for (int64_t j = 0; j < window.count; j++)
                for (int i = 0; i < kLanes && c + i < f.C; i++) dw[(c + i) * f.K + j] = d_taps[j][i];
    });
}

void conv_backward(const Conv& f, int64_t task, const void* dy, void* dx, void* d_tail, float* dw) {
    with_types(f, [&]<class T, class Y>(T*, Y*) {
        const auto run = [&]<int K>(std::integral_constant<int, K>) {
            conv_backward_of<K>(f, task, static_cast<const Y*>(dy), static_cast<T*>(dx), static_cast<T*>(d_tail), dw);
        };
        if (f.K == 4) run(std::integral_constant<int, 4>());
        else run(std::integral_constant<int, 0>());
    });
}

template <class T>
inline float squares(const T* x, int64_t D) {
    vf total{};
    for (int64_t c = 0; c < D; c += kLanes) {
        const vf v = load_some(x + c, D - c);
        total = fma(v, v, total);
    }
    return sum(total);
}

template <class F>
inline void each_row(const GatedNorm& f, int64_t task, const F& each) {
    const int64_t end = (task + 1) * kNormRows < f.rows ? (task + 1) * kNormRows : f.rows;
    for (int64_t r = task * kNormRows; r < end; r++) each(r * f.D);
}

void gated_norm(const GatedNorm& f, int64_t task, void* y) {
    with_float(f.type, [&]<class T>(T*) {
        each_row(f, task, [&](int64_t at) {
            const float* x = f.x + at;
            const T* z = static_cast<const T*>(f.z) + at;
            T* to = static_cast<T*>(y) + at;
            const vf factor = splat(1.f / __builtin_sqrtf(squares(x, f.D) / float(f.D) + f.eps));
            for (int64_t c = 0; c < f.D; c += kLanes) {
                const int64_t left = f.D - c;
                const vf n = load_some(x + c, left) * factor * load_some(f.w + c, left);
                store_some(to + c, n * quick_silu(load_some(z + c, left)), left);
            }
        });
    });
}

void gated_norm_backward(const GatedNorm& f, int64_t task, const void* dy, float* dx, void* dz, float* dw) {
    for (int64_t c = 0; c < f.D; c++) dw[c] = 0.f;
    with_float(f.type, [&]<class T>(T*) {
        each_row(f, task, [&](int64_t at) {
            const float* x = f.x + at;
            const T* z = static_cast<const T*>(f.z) + at;
            const T* from = static_cast<const T*>(dy) + at;
            float* to = dx + at;
            T* to_z = static_cast<T*>(dz) + at;
            const vf factor = splat(1.f / __builtin_sqrtf(squares(x, f.D) / float(f.D) + f.eps));
            vf along{};  // dn . n
            for (int64_t c = 0; c < f.D; c += kLanes) {
                const int64_t left = f.D - c;
                const vf n = load_some(x + c, left) * factor, w = load_some(f.w + c, left), gate = load_some(z + c, left);
                const vf cotangent = load_some(from + c, left), s = quick_sigmoid(gate), dn = cotangent * w * gate * s;
                along = fma(dn, n, along);
                store_some(to_z + c, cotangent * n * w * silu_slope(gate, s), left);
                store_some(dw + c, load_some(dw + c, left) + cotangent * n * gate * s, left);
            }
            const vf share = splat(sum(along) / float(f.D));
            for (int64_t c = 0; c < f.D; c += kLanes) {
                const int64_t left = f.D - c;
                const vf n = load_some(x + c, left) * factor, gate = load_some(z + c, left);
                const vf dn = load_some(from + c, left) * load_some(f.w + c, left) * quick_silu(gate);
                store_some(to + c, factor * (dn - n * share), left);
            }
        });
    });
}

}  // namespace

const MixingKernels mixing_table{conv, conv_backward, gated_norm, gated_norm_backward};

}  // namespace optiq::OPTIQ_LEVEL
