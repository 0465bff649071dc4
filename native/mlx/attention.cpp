// Attention as an MLX operation on the CPU.

#include "kernels/attention.h"

#include "kernels/attention_run.h"
#include "mlx/bind.h"
#include "mlx/heads.h"
#include "mlx/op.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

using Optional = std::optional<mx::array>;

struct Form {
    float scale;
    bool causal;
    int64_t window;
    bool masked, sunk;
};

Attention shapes(const mx::array& q, const mx::array& k, const mx::array& v, const Form& form) {
    Attention a;
    a.type = float_of(q);
    a.batches = q.shape(0), a.heads = q.shape(1), a.groups = k.shape(1), a.queries = q.shape(2), a.keys = k.shape(2);
    a.width = q.shape(3), a.value_width = v.shape(3);
    a.scale = form.scale, a.causal = form.causal, a.window = form.window;
    return a;
}

// What a call reads, while it lasts. Inputs: q, k, v, then the mask [B, H, L, S] and the sinks [H] where there are some.
class Call {
  public:
    Call(const Form& form, const Arrays& in) : q_(in[0]), k_(in[1]), v_(in[2]) {
        a = shapes(in[0], in[1], in[2], form);
        a.q = q_.view(), a.k = k_.view(), a.v = v_.view();
        if (form.masked) {
            mask_.emplace(in[3]);
            a.mask = mask_->view();
            a.mask_kind = in[3].dtype() == mx::bool_ ? MaskKind::boolean : MaskKind::additive;
            if (a.mask_kind == MaskKind::additive) a.mask_type = float_of(in[3]);
        }
        if (form.sunk) a.sinks = data<float>(in[form.masked ? 4 : 3]);
    }

    Attention a;

  private:
    Rows4 q_, k_, v_;
    std::optional<Rows4> mask_;
};

void forward(const Form& form, const Arrays& in, Arrays& out) {
    Call call(form, in);
    call.a.out = data(out[0]);
    call.a.logsumexp = data<float>(out[1]);
    run_attention(call.a);
}

// Inputs as `forward`, then out, its logsumexp and dout. Outputs: dq, dk, dv and, where there are sinks, theirs.
void backward(const Form& form, const Arrays& in, Arrays& out) {
    Call call(form, in);
    const size_t last = in.size();
    const Rows4 dout(in[last - 1]);
    Attention& a = call.a;
    a.out = const_cast<void*>(data(in[last - 3]));
    a.logsumexp = const_cast<float*>(data<float>(in[last - 2]));
    AttentionGradient g;
    g.forward = a;
    g.dout = dout.view();
    g.dq = data(out[0]), g.dk = data(out[1]), g.dv = data(out[2]);
    run_attention_gradient(g);
    if (form.sunk) parallel(a.heads, [&](int64_t head) { data<float>(out[3])[head] = gradient_attention().sink(g, head); });
}

// The derivative for an additive mask has the size of the scores; it is left to stock MLX.
mx::array mask_gradient(const Form& form, const Arrays& primals, const mx::array& dout) {
    if (form.causal) throw std::invalid_argument("attention: a causal mask has no derivative");
    const auto stock = [&](const Arrays& mask) -> Arrays {
        const Optional sinks = form.sunk ? Optional(primals.back()) : Optional();
        return {mx::fast::scaled_dot_product_attention(primals[0], primals[1], primals[2], form.scale, "", mask[0], sinks)};
    };
    return mx::vjp(stock, {primals[3]}, {dout}).second[0];
}

Arrays gradients(const Form& form, const Arrays& primals, const mx::array& dout, const std::vector<int>& argnums, const Arrays& outputs) {
    Arrays inputs = primals;
    inputs.insert(inputs.end(), {outputs[0], outputs[1], dout});
    std::vector<mx::Shape> shapes{primals[0].shape(), primals[1].shape(), primals[2].shape()};
    std::vector<mx::Dtype> types(3, primals[0].dtype());
    if (form.sunk) shapes.push_back(primals.back().shape()), types.push_back(mx::float32);
    const auto run = [form](const Arrays& in, Arrays& out) { backward(form, in, out); };
    const Arrays found = make(shapes, types, std::make_shared<Op>(cpu_stream(), "OptiqAttentionGradient", run), inputs);
    Arrays wanted;
    for (const int i : argnums)
        wanted.push_back(i < 3 ? found[size_t(i)] : form.masked && i == 3 ? mask_gradient(form, primals, dout) : found[3]);
    return wanted;
}

void check(bool good, const char* what) {
    if (!good) throw std::invalid_argument(std::string("attention: ") + what);
}

// out [B, H, L, Dv] in the type of q.
mx::array attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale, const Optional& mask, bool causal,
                    int64_t window, const Optional& sinks) {
    check(q.ndim() == 4 && k.ndim() == 4 && v.ndim() == 4, "expected q [B, H, L, D], k [B, G, S, D], v [B, G, S, Dv]");
    check(k.shape(0) == q.shape(0) && v.shape(0) == q.shape(0) && k.shape(1) == v.shape(1) && k.shape(2) == v.shape(2) &&
              k.shape(3) == q.shape(3) && q.shape(1) % k.shape(1) == 0 && q.size() && k.size() && v.size(),
          "shapes of q, k and v do not fit");
    check(k.dtype() == q.dtype() && v.dtype() == q.dtype(), "q, k and v must have one type");
    float_of(q);
    const Form form{scale, causal, window, mask.has_value(), sinks.has_value()};
    Arrays inputs{q, k, v};
    const auto stream = cpu_stream();
    if (mask) {
        // The last axis is read as it lies; the others repeat without a copy.
        mx::array full = dense(*mask);
        if (full.ndim() == 0 || full.shape(-1) != k.shape(2)) {
            auto shape = full.shape();
            if (shape.empty()) shape.push_back(1);
            shape.back() = k.shape(2);
            full = dense(mx::broadcast_to(full, shape, stream));
        }
        inputs.push_back(mx::broadcast_to(full, {q.shape(0), q.shape(1), q.shape(2), k.shape(2)}, stream));
        if (full.dtype() != mx::bool_) float_of(full);
    }
    if (sinks) inputs.push_back(dense(*sinks, mx::float32));
    const auto run = [form](const Arrays& in, Arrays& out) { forward(form, in, out); };
    const auto derivative = [form](const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
                                   const Arrays& outputs) { return gradients(form, primals, cotangents[0], argnums, outputs); };
    auto shape = q.shape();
    shape.back() = v.shape(3);
    return make({shape, {q.shape(0), q.shape(1), q.shape(2)}}, {q.dtype(), mx::float32},
                std::make_shared<Op>(stream, "OptiqAttention", run, derivative), inputs)[0];
}

}  // namespace

void bind_attention(nb::module_& m) {
    m.def("attention", &attention, "q"_a, "k"_a, "v"_a, "scale"_a, "mask"_a.none() = nb::none(), "causal"_a = false,
          "window"_a = 0, "sinks"_a.none() = nb::none(),
          "softmax(scale q k^T + mask) v for q [B, H, L, D], k [B, G, S, D], v [B, G, S, Dv]; see optiq.kernels.attention.");
}

}  // namespace optiq
