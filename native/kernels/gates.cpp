#include "kernels/gates.h"

#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

struct Value {
    vf f, slope;
};

template <Gate GATE>
inline Value value(vf a) {
    const vf one = splat(1.f);
    if constexpr (GATE == Gate::gelu) {
        const vf c = splat(1.5957691216f), square = a * a;  // 2 sqrt(2 / pi)
        const vf s = sigmoid(c * a * fma(square, splat(0.044715f), one));
        return {a * s, s + a * s * (one - s) * c * fma(square, splat(3.f * 0.044715f), one)};
    } else {
        const vf s = sigmoid(a);
        if constexpr (GATE == Gate::sigmoid) return {s, s * (one - s)};
        return {a * s, s * fma(a, one - s, one)};
    }
}

template <Gate GATE, class T>
void forward_of(const T* a, const T* u, int64_t n, T* y) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const vf f = value<GATE>(load(a + i)).f;
        store(y + i, u ? f * load(u + i) : f);
    }
    if (i < n) {
        const vf f = value<GATE>(load_part(a + i, int(n - i))).f;
        store_part(y + i, u ? f * load_part(u + i, int(n - i)) : f, int(n - i));
    }
}

template <Gate GATE, class T>
void backward_of(const T* a, const T* u, const T* g, int64_t n, T* da, T* du) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const Value v = value<GATE>(load(a + i));
        const vf gs = load(g + i);
        store(da + i, u ? gs * load(u + i) * v.slope : gs * v.slope);
        if (du) store(du + i, gs * v.f);
    }
    if (const int left = int(n - i); left > 0) {
        const Value v = value<GATE>(load_part(a + i, left));
        const vf gs = load_part(g + i, left);
        store_part(da + i, u ? gs * load_part(u + i, left) * v.slope : gs * v.slope, left);
        if (du) store_part(du + i, gs * v.f, left);
    }
}

// Calls f with an integral constant that holds the gate.
template <Gate GATE>
struct Is {
    static constexpr Gate gate = GATE;
};

template <class F>
inline void with_gate(Gate gate, F&& f) {
    switch (gate) {
        case Gate::silu: return f(Is<Gate::silu>());
        case Gate::sigmoid: return f(Is<Gate::sigmoid>());
        case Gate::gelu: return f(Is<Gate::gelu>());
    }
}

void forward(Gate gate, const void* a, const void* u, int64_t n, Float type, void* y) {
    with_gate(gate, [&](auto is) {
        with_float(type, [&]<class T>(T*) { forward_of<is.gate>((const T*)a, (const T*)u, n, (T*)y); });
    });
}

void backward(Gate gate, const void* a, const void* u, const void* g, int64_t n, Float type, void* da, void* du) {
    with_gate(gate, [&](auto is) {
        with_float(type, [&]<class T>(T*) {
            backward_of<is.gate>((const T*)a, (const T*)u, (const T*)g, n, (T*)da, (T*)du);
        });
    });
}

}  // namespace

const GateKernels gates_table{forward, backward};

}  // namespace optiq::OPTIQ_LEVEL
