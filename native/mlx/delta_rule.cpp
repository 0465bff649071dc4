// The gated delta rule, the short convolution and the gated norm, as differentiable MLX operations on the CPU.

#include "kernels/delta_rule.h"

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/mixing.h"
#include "mlx/bind.h"
#include "mlx/delta.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

void need(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// Those of all gradients that were asked for.
Arrays chosen(const Arrays& all, const std::vector<int>& argnums) {
    Arrays some;
    for (int i : argnums) some.push_back(all.at(size_t(i)));
    return some;
}

// How queries, keys and values lie in the inputs: three arrays, or one.
struct Layout {
    DeltaShape shape;
    bool packed;
    int inputs() const { return packed ? 1 : 3; }
    int64_t chunks() const { return (shape.L + kChunk - 1) / kChunk; }
    int64_t channels() const { return 2 * shape.Hk * shape.Dk + shape.Hv * shape.Dv; }
};

template <class P>
void place(const Layout& layout, P* const* starts, P*& q, P*& k, P*& v) {
    const auto& s = layout.shape;
    q = starts[0];
    k = layout.packed ? q + s.Hk * s.Dk : starts[1];
    v = layout.packed ? q + 2 * s.Hk * s.Dk : starts[2];
}

// Inputs: q, k, v (or all in one), g, beta, state.
Rule rule_of(const Layout& layout, const Arrays& in) {
    const int n = layout.inputs();
    Rule r;
    r.shape = layout.shape;
    const float* starts[3];
    for (int i = 0; i < n; i++) starts[i] = data<float>(in[i]);
    place(layout, starts, r.q, r.k, r.v);
    r.key_row = layout.packed ? layout.channels() : r.shape.Hk * r.shape.Dk;
    r.value_row = layout.packed ? layout.channels() : r.shape.Hv * r.shape.Dv;
    r.normalise = layout.packed;
    r.g = data<float>(in[n]);
    r.beta = data<float>(in[n + 1]);
    r.state = data<float>(in[n + 2]);
    return r;
}

template <class F>
void each_task(const Rule& r, bool backward, const F& call) {
    const size_t bytes = size_t(rule().floats(r, backward)) * sizeof(float);
    parallel(r.shape.B * r.shape.Hk, [&](int64_t task) {
        Scratch scratch(bytes);
        call(task / r.shape.Hk, task % r.shape.Hk, scratch.as<float>());
    });
}

Arrays delta_rule(const Layout& layout, const Arrays& inputs, bool keep);

// Inputs: those of the rule, the states that its chunks start from, the cotangents of y and of the new state.
Arrays delta_rule_gradients(const Layout& layout, const Arrays& primals, const Arrays& cotangents, const mx::array& starts) {
    const int n = layout.inputs();
    const auto run = [=](const Arrays& in, Arrays& out) {
        Rule r = rule_of(layout, in);
        r.starts = const_cast<float*>(data<float>(in[n + 3]));
        RuleGradients g;
        g.dy = data<float>(in[n + 4]);
        g.d_new_state = data<float>(in[n + 5]);
        float* firsts[3];
        for (int i = 0; i < n; i++) firsts[i] = data<float>(out[i]);
        place(layout, firsts, g.dq, g.dk, g.dv);
        g.dg = data<float>(out[n]);
        g.d_beta = data<float>(out[n + 1]);
        g.d_state = data<float>(out[n + 2]);
        each_task(r, true, [&](int64_t b, int64_t hk, float* scratch) { rule().backward(r, g, b, hk, scratch); });
    };
    Arrays inputs = primals;
    std::vector<mx::Shape> shapes;
    for (const auto& x : primals) shapes.push_back(x.shape());
    for (const auto& x : {starts, cotangents[0], cotangents[1]}) inputs.push_back(dense(x));
    return make(shapes, std::vector<mx::Dtype>(shapes.size(), mx::float32),
                std::make_shared<Op>(cpu_stream(), "OptiqGatedDeltaGradients", run), inputs);
}

Arrays delta_rule(const Layout& layout, const Arrays& inputs, bool keep) {
    const auto& s = layout.shape;
    const auto run = [=](const Arrays& in, Arrays& out) {
        Rule r = rule_of(layout, in);
        r.y = data<float>(out[0]);
        r.new_state = data<float>(out[1]);
        r.starts = keep ? data<float>(out[2]) : nullptr;
        each_task(r, false, [&](int64_t b, int64_t hk, float* scratch) { rule().forward(r, b, hk, scratch); });
    };
    const auto vjp = [=](const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
                         const Arrays& outputs) {
        const auto starts = keep ? outputs[2] : delta_rule(layout, primals, true)[2];
        return chosen(delta_rule_gradients(layout, primals, cotangents, starts), argnums);
    };
    const auto i = [](int64_t n) { return mx::ShapeElem(n); };
    std::vector<mx::Shape> shapes{{i(s.B), i(s.L), i(s.Hv), i(s.Dv)}, {i(s.B), i(s.Hv), i(s.Dv), i(s.Dk)}};
    if (keep) shapes.push_back({i(s.B), i(s.Hv), i(layout.chunks()), i(s.Dk), i(padded(s.Dv))});
    return make(shapes, std::vector<mx::Dtype>(shapes.size(), mx::float32),
                std::make_shared<Op>(cpu_stream(), "OptiqGatedDelta", run, vjp), inputs);
}

std::pair<mx::array, mx::array> run_rule(const Layout& layout, Arrays inputs) {
    bool traced = false;  // someone may ask for the derivative: keep what it needs
    for (auto& x : inputs) {
        x = dense(x, mx::float32);
        traced = traced || x.is_tracer();
    }
    const Arrays out = delta_rule(layout, inputs, traced);
    return {out[0], out[1]};
}

Conv conv_of(const mx::array& x, const mx::array& y, int64_t K, bool silu, bool causal) {
    return {y.shape(0), y.shape(1), y.shape(2), K, silu, float_of(x), float_of(y), causal};
}

int64_t conv_tasks(int64_t channels) { return (channels + kConvChannels - 1) / kConvChannels; }

// Adds the cotangent of the last K - 1 rows of tail and x to theirs.
void add_tail_cotangent(const Conv& f, const mx::array& cotangent, mx::array& dx, mx::array& d_tail) {
    const auto add = [&]<class T>(T* to, const T* from) {
        for (int64_t i = 0; i < f.C; i++) to[i] = to[i] + from[i];
    };
    const int64_t before = f.K - 1;
    for (int64_t b = 0; b < f.B; b++)
        for (int64_t j = 0; j < before; j++) {
            const int64_t p = f.L + j, from = (b * before + j) * f.C;
            auto& place = p < before ? d_tail : dx;
            const int64_t at = (p < before ? b * before + p : b * f.L + p - before) * f.C;
            if (f.type == Float::f32) add(data<float>(place) + at, data<float>(cotangent) + from);
            else if (f.type == Float::f16) add(data<mx::float16_t>(place) + at, data<mx::float16_t>(cotangent) + from);
            else add(data<mx::bfloat16_t>(place) + at, data<mx::bfloat16_t>(cotangent) + from);
        }
}

// Inputs: x, taps [C, K] float32 and, if causal, the tail; then the new tail is the second output.
Arrays convolution(const Arrays& inputs, const mx::Shape& shape, mx::Dtype type, bool silu) {
    const bool causal = inputs.size() == 3;
    const int64_t K = inputs[1].shape(1);
    const auto view = [=](const Arrays& in, const mx::array& y) {
        Conv f = conv_of(in[0], y, K, silu, causal);
        f.x = data(in[0]);
        f.w = data<float>(in[1]);
        f.tail = causal ? data(in[2]) : nullptr;
        return f;
    };
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Conv f = view(in, out[0]);
        parallel(conv_tasks(f.C), [&](int64_t task) { mixing().conv(f, task, data(out[0])); });
        if (!causal) return;
        const int64_t before = K - 1, bytes = f.C * float_bytes(f.type);
        for (int64_t b = 0; b < f.B; b++)
            for (int64_t j = 0; j < before; j++) {
                const int64_t p = f.L + j;
                const char* from = p < before ? data<char>(in[2]) + (b * before + p) * bytes
                                              : data<char>(in[0]) + (b * f.L + p - before) * bytes;
                std::memcpy(data<char>(out[1]) + (b * before + j) * bytes, from, size_t(bytes));
            }
    };
    const auto vjp = [=](const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
        const size_t dy = primals.size();
        const auto run = [=](const Arrays& in, Arrays& out) {
            const Conv f = view(in, in[dy]);
            parallel(conv_tasks(f.C), [&](int64_t task) {
                mixing().conv_backward(f, task, data(in[dy]), data(out[0]), causal ? data(out[2]) : nullptr, data<float>(out[1]));
            });
            if (causal) add_tail_cotangent(f, in[dy + 1], out[0], out[2]);
        };
        Arrays all = primals;
        std::vector<mx::Shape> shapes;
        std::vector<mx::Dtype> types;
        for (const auto& x : primals) shapes.push_back(x.shape()), types.push_back(x.dtype());
        for (const auto& x : cotangents) all.push_back(dense(x));
        return chosen(make(shapes, types, std::make_shared<Op>(cpu_stream(), "OptiqShortConvGradients", run), all), argnums);
    };
    std::vector<mx::Shape> shapes{shape};
    std::vector<mx::Dtype> types{type};
    if (causal) shapes.push_back(inputs[2].shape()), types.push_back(inputs[0].dtype());
    return make(shapes, types, std::make_shared<Op>(cpu_stream(), "OptiqShortConv", run, vjp), inputs);
}

mx::array flat_taps(const mx::array& taps) {
    return dense(mx::reshape(taps, {taps.shape(0), taps.shape(1)}, cpu_stream()), mx::float32);
}

mx::array short_conv(const mx::array& x, const mx::array& taps, bool silu) {
    const int K = taps.ndim() >= 2 ? taps.shape(1) : 0;
    need(x.ndim() == 3 && K >= 1 && K <= kMostTaps && int(taps.size()) == x.shape(2) * K && taps.shape(0) == x.shape(2) &&
             x.shape(1) >= K,
         "short_conv: x is [B, L + K - 1, C] and the taps are [C, K, 1], K <= 8");
    return convolution({dense(x), flat_taps(taps)}, {x.shape(0), x.shape(1) - K + 1, x.shape(2)}, x.dtype(), silu)[0];
}

int64_t norm_tasks(int64_t rows) { return (rows + kNormRows - 1) / kNormRows; }

GatedNorm norm_of(const Arrays& in, float eps) {
    const int64_t D = in[0].shape(-1);
    return {int64_t(in[0].size()) / D, D, eps, float_of(in[1]), data<float>(in[0]), data(in[1]), data<float>(in[2])};
}

}  // namespace

std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& g,
                                            const mx::array& beta, const Maybe& state) {
    need(q.ndim() == 4 && v.ndim() == 4 && q.shape() == k.shape(),
         "gated_delta: q and k are [B, L, Hk, Dk], v is [B, L, Hv, Dv]");
    const int B = q.shape(0), L = q.shape(1), Hk = q.shape(2), Dk = q.shape(3), Hv = v.shape(2), Dv = v.shape(3);
    need(v.shape(0) == B && v.shape(1) == L && Hv % Hk == 0, "gated_delta: v has value heads in a multiple of the key heads");
    need(g.shape() == mx::Shape{B, L, Hv} && beta.shape() == g.shape(), "gated_delta: g and beta are [B, L, Hv]");
    const mx::Shape state_shape{B, Hv, Dv, Dk};
    need(!state || state->shape() == state_shape, "gated_delta: the state is [B, Hv, Dv, Dk]");
    const Layout layout{{B, L, Hk, Hv, Dk, Dv}, false};
    return run_rule(layout, {q, k, v, g, beta, state ? *state : mx::zeros(state_shape, mx::float32, cpu_stream())});
}

std::pair<mx::array, mx::array> gated_delta_packed(const mx::array& qkv, const mx::array& g, const mx::array& beta,
                                                   const mx::array& state, int key_heads, int key_dim) {
    const int Hv = g.shape(2), Dv = (qkv.shape(2) - 2 * key_heads * key_dim) / Hv;
    return run_rule({{qkv.shape(0), qkv.shape(1), key_heads, Hv, key_dim, Dv}, true}, {qkv, g, beta, state});
}

std::pair<mx::array, mx::array> causal_conv_silu(const mx::array& x, const mx::array& tail, const mx::array& taps) {
    const Arrays out = convolution({dense(x), flat_taps(taps), dense(tail)}, x.shape(), mx::float32, true);
    return {out[0], out[1]};
}

mx::array gated_norm(const mx::array& x, const mx::array& z, const mx::array& weight, float eps) {
    const auto run = [=](const Arrays& in, Arrays& out) {
        const GatedNorm f = norm_of(in, eps);
        parallel(norm_tasks(f.rows), [&](int64_t task) { mixing().gated_norm(f, task, data(out[0])); });
    };
    const auto vjp = [=](const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
        const auto run = [=](const Arrays& in, Arrays& out) {
            const GatedNorm f = norm_of(in, eps);
            const int64_t tasks = norm_tasks(f.rows);
            Scratch parts(size_t(tasks * f.D) * sizeof(float));
            parallel(tasks, [&](int64_t task) {
                mixing().gated_norm_backward(f, task, data(in[3]), data<float>(out[0]), data(out[1]),
                                             parts.as<float>() + task * f.D);
            });
            for (int64_t i = 0; i < f.D; i++) {
                float sum = 0.f;
                for (int64_t task = 0; task < tasks; task++) sum += parts.as<float>()[task * f.D + i];
                data<float>(out[2])[i] = sum;
            }
        };
        Arrays all = primals;
        all.push_back(dense(cotangents[0]));
        auto op = std::make_shared<Op>(cpu_stream(), "OptiqGatedNormGradients", run);
        return chosen(make({primals[0].shape(), primals[1].shape(), primals[2].shape()},
                           {primals[0].dtype(), primals[1].dtype(), primals[2].dtype()}, op, all),
                      argnums);
    };
    return make_one(x.shape(), z.dtype(), std::make_shared<Op>(cpu_stream(), "OptiqGatedNorm", run, vjp),
                    {dense(x, mx::float32), dense(z), dense(weight, mx::float32)});
}

void bind_delta_rule(nb::module_& m) {
    m.def("gated_delta", &gated_delta, "q"_a, "k"_a, "v"_a, "g"_a, "beta"_a, "state"_a.none() = nb::none(),
          "The gated delta rule: (y [B, L, Hv, Dv], state [B, Hv, Dv, Dk]), float32, differentiable.");
    m.def("short_conv", &short_conv, "x"_a, "taps"_a, "silu"_a = false,
          "Depthwise convolution of x [B, L + K - 1, C] with [C, K, 1], then perhaps silu: [B, L, C], differentiable.");
}

}  // namespace optiq
