// The mixer of Gated DeltaNet, as MLX operations on the CPU.

#include "kernels/delta_run.h"
#include "mlx/bind.h"
#include "mlx/delta.h"
#include "mlx/view.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// [B, L, channels] with a dense last axis, where it lies or as a copy.
struct TokensView {
    Tokens view;
    std::vector<char> held;

    explicit TokensView(const mx::array& x) {
        view.type = float_of(x);
        if (x.strides(2) == 1 || x.shape(2) == 1) {
            view.start = data(x);
            view.batch = x.strides(0);
            view.token = x.strides(1);
            return;
        }
        held = packed(x);
        view.start = held.data();
        view.token = x.shape(2);
        view.batch = int64_t(x.shape(1)) * x.shape(2);
    }
    TokensView(const TokensView&) = delete;
    TokensView& operator=(const TokensView&) = delete;
};

enum MixerInput { kQkv, kZ, kA, kB, kTaps, kALog, kDtBias, kNorm, kFirstOptional };

// Which of the optional inputs are there, and where.
struct Optional {
    int tail = -1, state = -1, mask = -1, ends = -1;
};

void run_mixer(const Arrays& in, Arrays& out, const DeltaShape& shape, Optional given, float eps) {
    const TokensView qkv(in[kQkv]), z(in[kZ]), a(in[kA]), b(in[kB]);
    const Dense taps(in[kTaps]);
    const Floats a_log(in[kALog]), dt_bias(in[kDtBias]), norm(in[kNorm]);
    std::optional<TokensView> tail;
    std::optional<Floats> state;
    std::optional<Dense> mask, ends;
    if (given.tail >= 0) tail.emplace(in[given.tail]);
    if (given.state >= 0) state.emplace(in[given.state]);
    if (given.mask >= 0) mask.emplace(in[given.mask]);
    if (given.ends >= 0) ends.emplace(in[given.ends]);
    Mixer m;
    m.shape = shape;
    m.taps_count = in[kTaps].shape(1);
    m.eps = eps;
    m.qkv = qkv.view, m.z = z.view, m.a = a.view, m.b = b.view;
    if (tail) m.tail = tail->view;
    m.taps = taps.start(), m.taps_type = float_of(in[kTaps]);
    m.a_log = a_log.start(), m.dt_bias = dt_bias.start(), m.norm = norm.start();
    if (mask) m.mask = mask->start<uint8_t>();
    if (ends) m.ends = ends->start<int32_t>();
    if (state) m.state = state->start();
    m.y = data(out[0]), m.new_tail = data(out[1]), m.new_state = data<float>(out[2]);
    run_mix(m);
}

// The same results from differentiable operations: what the derivative goes through.
Arrays composed(const Arrays& in, const DeltaShape& shape, Optional given, float eps) {
    const auto stream = cpu_stream();
    const int B = in[kQkv].shape(0), L = in[kQkv].shape(1), C = in[kQkv].shape(2), K = in[kTaps].shape(1);
    const auto number = [&](float x) { return mx::array(x); };
    auto x = in[kQkv];
    auto g = mx::exp(mx::negative(mx::multiply(
        mx::exp(mx::astype(in[kALog], mx::float32, stream), stream),
        mx::logaddexp(mx::add(mx::astype(in[kA], mx::float32, stream), mx::astype(in[kDtBias], mx::float32, stream), stream),
                      number(0.f), stream), stream), stream), stream);
    auto beta = mx::sigmoid(mx::astype(in[kB], mx::float32, stream), stream);
    if (given.mask >= 0) {
        const auto mask = mx::expand_dims(in[given.mask], -1, stream);
        x = mx::where(mask, x, mx::zeros_like(x, stream), stream);
        g = mx::where(mask, g, number(1.f), stream);
        beta = mx::where(mask, beta, number(0.f), stream);
    }
    const auto tail = given.tail >= 0 ? in[given.tail] : mx::zeros({B, K - 1, C}, x.dtype(), stream);
    const auto state = given.state >= 0
                           ? in[given.state]
                           : mx::zeros({B, int(shape.Hv), int(shape.Dv), int(shape.Dk)}, mx::float32, stream);
    const auto [convolved, new_tail] = causal_conv_silu(x, tail, in[kTaps]);
    const auto [o, new_state] = gated_delta_packed(convolved, g, beta, state, int(shape.Hk), int(shape.Dk));
    const auto gates = mx::reshape(in[kZ], {B, L, int(shape.Hv), int(shape.Dv)}, stream);
    const auto y = mx::reshape(gated_norm(o, gates, in[kNorm], eps), {B, L, int(shape.Hv * shape.Dv)}, stream);
    if (given.ends < 0) return {y, new_tail, new_state};
    const auto whole = mx::concatenate({tail, x}, 1, stream);
    const auto ends = mx::clip(in[given.ends], mx::array(0), mx::array(L), stream);
    const auto positions = mx::add(mx::expand_dims(ends, -1, stream), mx::arange(K - 1, stream), stream);
    const auto rows = mx::broadcast_to(mx::expand_dims(positions, -1, stream), {B, K - 1, C}, stream);
    return {y, mx::take_along_axis(whole, rows, 1, stream), new_state};
}

void need(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("delta_mixer: ") + what);
}

Arrays delta_mixer(const mx::array& qkv, const mx::array& z, const mx::array& a, const mx::array& b, const mx::array& taps,
                   const mx::array& a_log, const mx::array& dt_bias, const mx::array& norm, int key_heads, int key_dim,
                   float eps, const Maybe& tail, const Maybe& state, const Maybe& mask, const Maybe& ends) {
    need(qkv.ndim() == 3 && z.ndim() == 3 && a.ndim() == 3 && b.ndim() == 3, "qkv, z, a and b have three axes");
    const int B = qkv.shape(0), L = qkv.shape(1), C = qkv.shape(2), Hv = int(a_log.size()), Dv = int(norm.size());
    const int K = taps.ndim() >= 2 ? taps.shape(1) : 0;
    const DeltaShape shape{B, L, key_heads, Hv, key_dim, Dv};
    need(key_heads > 0 && Hv > 0 && Hv % key_heads == 0, "value heads are a multiple of key heads");
    need(C == 2 * key_heads * key_dim + Hv * Dv, "qkv has 2 Hk Dk + Hv Dv channels");
    need(z.shape() == mx::Shape{B, L, Hv * Dv} && a.shape() == mx::Shape{B, L, Hv} && b.shape() == a.shape(),
         "z is [B, L, Hv Dv], a and b are [B, L, Hv]");
    need(K >= 1 && K <= kMaxTaps && taps.shape(0) == C && int64_t(taps.size()) == int64_t(C) * K, "taps are [C, K, 1], K <= 8");
    need(int(dt_bias.size()) == Hv, "dt_bias is [Hv]");
    need(B > 0 && L > 0, "there is at least one token");
    const auto type = qkv.dtype();
    Arrays inputs{qkv, mx::astype(z, type, cpu_stream()), a, b, taps, a_log, dt_bias, norm};
    Optional given;
    const auto add = [&](const Maybe& x, mx::Shape wanted, mx::Dtype as, const char* what) {
        if (!x) return -1;
        need(x->shape() == wanted, what);
        inputs.push_back(mx::astype(*x, as, cpu_stream()));
        return int(inputs.size()) - 1;
    };
    given.tail = add(tail, {B, K - 1, C}, type, "the tail is [B, K - 1, C]");
    given.state = add(state, {B, Hv, Dv, key_dim}, mx::float32, "the state is [B, Hv, Dv, Dk]");
    given.mask = add(mask, {B, L}, mx::bool_, "the mask is [B, L]");
    given.ends = add(ends, {B}, mx::int32, "ends are [B]");
    const auto run = [=](const Arrays& in, Arrays& out) { run_mixer(in, out, shape, given, eps); };
    const auto vjp = [=](const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays&) {
        Arrays wanted;
        for (int i : argnums) wanted.push_back(primals[size_t(i)]);
        const auto function = [&](const Arrays& some) {
            Arrays all = primals;
            for (size_t i = 0; i < argnums.size(); i++) all[size_t(argnums[i])] = some[i];
            return composed(all, shape, given, eps);
        };
        return mx::vjp(function, wanted, cotangents).second;
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqDeltaMixer", run, vjp, Reuse{given.state, given.state < 0 ? -1 : 2});
    return make({{B, L, Hv * Dv}, {B, K - 1, C}, {B, Hv, Dv, key_dim}}, {type, type, mx::float32}, op, inputs);
}

}  // namespace

void bind_delta(nb::module_& m) {
    m.def("delta_mixer", &delta_mixer, "qkv"_a, "z"_a, "a"_a, "b"_a, "taps"_a, "a_log"_a, "dt_bias"_a, "norm"_a, "key_heads"_a,
          "key_dim"_a, "eps"_a, "tail"_a.none() = nb::none(), "state"_a.none() = nb::none(), "mask"_a.none() = nb::none(),
          "ends"_a.none() = nb::none(),
          "Convolution, gated delta rule and gated norm: (y [B, L, Hv Dv], tail [B, K - 1, C], state [B, Hv, Dv, Dk]).");
}

}  // namespace optiq
