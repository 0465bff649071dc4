// A layer of Qwen3.5 for the few rows of a decoding step: one operation, or, around its attention, two.
//
// The arithmetic and the places where it rounds are those of the single operations, so the bits are the same; what is saved is
// some twenty nodes of the graph per layer, each a walk through MLX's scheduler, and the pool's waiting between them.
//
//     linear   h = x + mixer(norm(x)) W_out         y = h + mlp(norm(h))
//     enter    q, gate, k, v = norm(x) W            q, k = rope(norm(q)), rope(norm(k))
//     leave    h = x + (o sigmoid(gate)) W_o        y = h + mlp(norm(h))

#include <cmath>
#include <variant>

#include <nanobind/stl/variant.h>

#include "kernels/delta_run.h"
#include "kernels/gates.h"
#include "kernels/norm.h"
#include "kernels/rotary.h"
#include "kernels/sums.h"
#include "mlx/bind.h"
#include "mlx/delta.h"
#include "mlx/products.h"
#include "mlx/rows.h"
#include "mlx/step_block.h"
#include "mlx/view.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

using Found = std::optional<std::vector<mx::array>>;

// A layer of Gated DeltaNet. `in`: qkv, z, a, b.
class LinearLayer {
  public:
    LinearLayer(Block block, std::vector<Weight> in, Weight out, mx::array taps, const mx::array& a_log, const mx::array& dt_bias,
                const mx::array& norm, int key_heads, int key_dim, float eps)
        : block_(std::move(block)), in_(std::move(in)), out_(std::move(out)), taps_(std::move(taps)), kept_{a_log, dt_bias, norm},
          a_log_(kept_[0]), dt_bias_(kept_[1]), norm_(kept_[2]), eps_(eps) {
        check_block(block_);
        shape_ = {0, 0, key_heads, int64_t(a_log.size()), key_dim, int64_t(norm.size())};
        const int64_t values = shape_.Hv * shape_.Dv, width = block_.width();
        if (in_.size() != 4 || taps_.ndim() < 2 || taps_.shape(0) != channels() || taps_.shape(1) > kMaxTaps ||
            int64_t(taps_.size()) != channels() * taps_.shape(1) || shape_.Hv % key_heads || int64_t(dt_bias.size()) != shape_.Hv)
            throw std::invalid_argument("the parts of the layer do not fit each other");
        const int64_t rows[4] = {channels(), values, shape_.Hv, shape_.Hv};
        for (int i = 0; i < 4; i++) check_weight(in_[size_t(i)], rows[i], width);
        check_weight(out_, width, values);
    }

    // y [B, L, E], the new tail and the new state; nothing where this form does not fit. tail [B, K - 1, C], state [B, Hv, Dv, Dk].
    static Found run(const Held<LinearLayer>& layer, const mx::array& x, const mx::array& tail, const mx::array& state) {
        if (!layer->fits(x, tail, state)) return {};
        const auto run = [layer](const Arrays& in, Arrays& out) {
            layer->compute(in, data(out[0]), nullptr, [&](Mixer& m) {
                layer->from(in, m);
                m.new_tail = data(out[1]), m.new_state = data<float>(out[2]);
                run_mix(m);
            });
        };
        auto op = std::make_shared<Op>(cpu_stream(), "OptiqLinearLayer", run, Op::Vjp{}, Reuse{2, 2});
        return make({x.shape(), tail.shape(), state.shape()}, {x.dtype(), x.dtype(), mx::float32}, op,
                    {dense(x), dense(tail), dense(state)});
    }

    // A step that may be taken back. Tail and state are first brought up to date by the tokens that count of an earlier such step,
    // what it kept: qkv [B, P, C], a and b [B, P, Hv], and how many of each row, [B] int32; this step's tokens leave them alone.
    // y, then what this step keeps, and where there was an earlier one the tail and the state.
    static Found look(const Held<LinearLayer>& layer, const mx::array& x, const mx::array& tail, const mx::array& state, const Arrays& before) {
        if (!layer->fits(x, tail, state)) return {};
        const DeltaShape& s = layer->shape_;
        const int B = x.shape(0), L = x.shape(1), C = int(layer->channels()), Hv = int(s.Hv);
        std::vector<mx::Shape> shapes{x.shape(), {B, L, C}, {B, L, Hv}, {B, L, Hv}};
        std::vector<mx::Dtype> types(4, x.dtype());
        Arrays inputs{dense(x), dense(tail), dense(state)};
        if (!before.empty()) {
            const int P = before.size() == 4 && before[0].ndim() == 3 ? before[0].shape(1) : 0;
            const mx::Shape gates{B, P, Hv};
            if (P < 1 || P > kStepTokens || before[0].shape() != mx::Shape{B, P, C} || before[1].shape() != gates || before[2].shape() != gates ||
                before[3].shape() != mx::Shape{B})
                throw std::invalid_argument("what an earlier step kept does not fit the layer");
            for (int i = 0; i < 3; i++) inputs.push_back(dense(before[size_t(i)], x.dtype()));
            inputs.push_back(dense(before[3], mx::int32));
            shapes.insert(shapes.end(), {tail.shape(), state.shape()});
            types.insert(types.end(), {x.dtype(), mx::float32});
        }
        const auto run = [layer](const Arrays& in, Arrays& out) {
            layer->compute(in, data(out[0]), &out, [&](Mixer& m) {
                if (in.size() == 3) {
                    layer->from(in, m);
                    return run_mix(m);
                }
                layer->catch_up(in, out);
                m.tail = layer->tail_of(out[4]), m.state = data<float>(out[5]);
                run_mix(m);
            });
        };
        const Reuse reuse = before.empty() ? Reuse{} : Reuse{2, 5};
        return make(shapes, types, std::make_shared<Op>(cpu_stream(), "OptiqLookLinearLayer", run, Op::Vjp{}, reuse), std::move(inputs));
    }

  private:
    int64_t channels() const { return 2 * shape_.Hk * shape_.Dk + shape_.Hv * shape_.Dv; }

    bool fits(const mx::array& x, const mx::array& tail, const mx::array& state) const {
        return block_.fits(x) && tail.dtype() == x.dtype() && state.dtype() == mx::float32 && !tail.is_tracer() && !state.is_tracer() &&
               tail.shape() == mx::Shape{x.shape(0), taps_.shape(1) - 1, int(channels())} &&
               state.shape() == mx::Shape{x.shape(0), int(shape_.Hv), int(shape_.Dv), int(shape_.Dk)};
    }

    // The layer around `mixing`, which gets a mixer that knows the tokens of this step; `kept` has room for qkv, a and b from 1 on.
    template <class Mixing>
    void compute(const Arrays& in, void* result, Arrays* kept, const Mixing& mixing) const {
        const int64_t B = in[0].shape(0), L = in[0].shape(1), M = B * L, E = block_.width(), C = channels(), V = shape_.Hv * shape_.Dv;
        const Float type = float_of(in[0]);
        const int64_t item = float_bytes(type);
        Parts parts(size_t(M * item) * size_t(2 * E + C + 2 * V + 2 * shape_.Hv));
        const auto take = [&](int64_t width, size_t i) { return kept ? data<char>((*kept)[i]) : parts.take(M * width * item); };
        char *normed = parts.take(M * E * item), *qkv = take(C, 1), *z = parts.take(M * V * item);
        char *a = take(shape_.Hv, 2), *b = take(shape_.Hv, 3), *y = parts.take(M * V * item);
        char* r = parts.take(M * E * item);
        block_.before(data(in[0]), type, M, normed);
        std::vector<int> groups;
        std::vector<Product> products;
        char* const to[4] = {qkv, z, a, b};
        for (size_t i = 0; i < 4; i++) {
            products.push_back({view(in_[i]), to[i], type});
            groups.push_back(products.back().w.group);
        }
        run_products(products, Prepared(normed, type, M, E, groups), M);
        Mixer m = mixer(B, L, type, qkv, a, b);
        m.z = {z, type, L * V, V};
        m.y = y;
        mixing(m);
        const Coded w = view(out_);
        run_products({{w, r, type}}, Prepared(y, type, M, V, {w.group}), M);
        block_.after(data(in[0]), r, type, M, result);
    }

    Mixer mixer(int64_t B, int64_t L, Float type, const void* qkv, const void* a, const void* b) const {
        const auto tokens = [&](const void* start, int64_t width) { return Tokens{start, type, L * width, width}; };
        Mixer m;
        m.shape = shape_;
        m.shape.B = B, m.shape.L = L;
        m.taps_count = taps_.shape(1);
        m.eps = eps_;
        m.qkv = tokens(qkv, channels()), m.a = tokens(a, shape_.Hv), m.b = tokens(b, shape_.Hv);
        m.taps = data(taps_), m.taps_type = float_of(taps_);
        m.a_log = a_log_.start(), m.dt_bias = dt_bias_.start(), m.norm = norm_.start();
        return m;
    }

    Tokens tail_of(const mx::array& tail) const {
        return {data(tail), float_of(tail), int64_t(taps_.shape(1) - 1) * channels(), channels()};
    }

    // A step's mixer begins where its inputs say.
    void from(const Arrays& in, Mixer& m) const {
        m.tail = tail_of(in[1]);
        m.state = data<float>(in[2]);
    }

    // Tail and state, outputs 4 and 5, after the tokens that count of an earlier step: inputs 3 to 6.
    void catch_up(const Arrays& in, Arrays& out) const {
        const int64_t B = in[3].shape(0), P = in[3].shape(1);
        const int32_t* counts = data<int32_t>(in[6]);
        Mixer m = mixer(B, P, float_of(in[3]), data(in[3]), data(in[4]), data(in[5]));
        std::vector<uint8_t> mask(size_t(B * P));
        for (int64_t i = 0; i < B * P; i++) mask[size_t(i)] = i % P < counts[i / P];
        m.mask = mask.data(), m.ends = counts;
        from(in, m);
        m.new_tail = data(out[4]), m.new_state = data<float>(out[5]);
        run_mix(m);
    }

    Block block_;
    std::vector<Weight> in_;
    Weight out_;
    mx::array taps_;
    Arrays kept_;  // what the views after it may look into
    Floats a_log_, dt_bias_, norm_;
    float eps_;
    DeltaShape shape_{};
};

// A layer of gated full attention. `in`: queries and gates side by side per head, keys, values.
class AttentionLayer {
  public:
    AttentionLayer(Block block, std::vector<Weight> in, Weight out, mx::array q_norm, mx::array k_norm, float eps, int dims, float base,
                   float scale)
        : block_(std::move(block)), in_(std::move(in)), out_(std::move(out)), q_norm_(std::move(q_norm)), k_norm_(std::move(k_norm)),
          eps_(eps), scale_(scale) {
        check_block(block_);
        D_ = q_norm_.shape(0);
        if (in_.size() != 3 || k_norm_.shape(0) != D_ || dims <= 0 || dims % 2 || dims > D_ || std::get<0>(in_[0]).shape(0) % (2 * D_) ||
            std::get<0>(in_[1]).shape(0) % D_)
            throw std::invalid_argument("the parts of the layer do not fit each other");
        H_ = std::get<0>(in_[0]).shape(0) / (2 * D_), G_ = std::get<0>(in_[1]).shape(0) / D_;
        const int64_t rows[3] = {2 * H_ * D_, G_ * D_, G_ * D_};
        for (int i = 0; i < 3; i++) check_weight(in_[size_t(i)], rows[i], block_.width());
        check_weight(out_, block_.width(), H_ * D_);
        inverse_ = inverse_frequencies(base, dims / 2);
    }

    // q [B, H, L, D], k and v [B, G, L, D], gate [B, L, H D]; nothing where this form does not fit.
    static Found enter(const Held<AttentionLayer>& layer, const mx::array& x, const std::variant<int, mx::array>& offset) {
        const bool one = layer->q_norm_.dtype() == x.dtype() && layer->k_norm_.dtype() == x.dtype();
        if (!layer->block_.fits(x) || !one) return {};
        Arrays inputs{dense(x)};
        int start = 0;
        if (const auto* number = std::get_if<int>(&offset)) {
            start = *number;
        } else {
            const auto& offsets = std::get<mx::array>(offset);
            if (offsets.ndim() > 1 || (offsets.size() != 1 && int64_t(offsets.size()) != x.shape(0))) return {};
            inputs.push_back(dense(offsets, mx::int32));
        }
        const int B = x.shape(0), L = x.shape(1), H = int(layer->H_), G = int(layer->G_), D = int(layer->D_);
        const auto run = [layer, start](const Arrays& in, Arrays& out) { layer->compute(in, out, start); };
        const auto type = x.dtype();
        return make({{B, H, L, D}, {B, G, L, D}, {B, G, L, D}, {B, L, H * D}}, {type, type, type, type},
                    std::make_shared<Op>(cpu_stream(), "OptiqEnterAttention", run), std::move(inputs));
    }

    // y [B, L, E] from o [B, H, L, D], x and gate as `enter` gave it.
    static Found leave(const Held<AttentionLayer>& layer, const mx::array& x, const mx::array& o, const mx::array& gate) {
        if (!layer->block_.fits(x) || o.dtype() != x.dtype() || gate.dtype() != x.dtype() ||
            o.shape() != mx::Shape{x.shape(0), int(layer->H_), x.shape(1), int(layer->D_)})
            return {};
        const auto run = [layer](const Arrays& in, Arrays& out) { layer->finish(in, out); };
        return make({x.shape()}, {x.dtype()}, std::make_shared<Op>(cpu_stream(), "OptiqLeaveAttention", run),
                    {dense(x), dense(o), dense(gate)});
    }

  private:
    void compute(const Arrays& in, Arrays& out, int start) const {
        const int64_t B = in[0].shape(0), L = in[0].shape(1), M = B * L, E = block_.width(), half = int64_t(inverse_.size());
        const Float type = float_of(in[0]);
        const int64_t item = float_bytes(type), head = D_ * item;
        Parts parts(size_t(M * item) * size_t(E + 2 * H_ * D_ + 2 * G_ * D_) + size_t(M * half * 8 + 2 * head));
        char *normed = parts.take(M * E * item), *both = parts.take(M * 2 * H_ * head), *k = parts.take(M * G_ * head);
        char *v = parts.take(M * G_ * head), *turning = parts.take(head);
        float *cosine = reinterpret_cast<float*>(parts.take(M * half * 4)), *sine = reinterpret_cast<float*>(parts.take(M * half * 4));
        block_.before(data(in[0]), type, M, normed);
        const std::vector<Product> products{{view(in_[0]), both, type}, {view(in_[1]), k, type}, {view(in_[2]), v, type}};
        run_products(products, Prepared(normed, type, M, E, {products[0].w.group, products[1].w.group, products[2].w.group}), M);
        const auto turn = [&](const char* from, const mx::array& weight, int64_t m, char* to) {
            norm().rms(from, nullptr, data(weight), nullptr, D_, eps_, type, nullptr, turning);
            rotary().rotate(turning, cosine + m * half, sine + m * half, half, D_, false, type, to);
        };
        for (int64_t m = 0; m < M; m++) {
            const int64_t b = m / L, l = m % L;
            const int first = in.size() > 1 ? data<int32_t>(in[1])[in[1].size() > 1 ? b : 0] : start;
            rotary().angles((float(l) + float(first)) * scale_, inverse_.data(), half, 1.f, cosine + m * half, sine + m * half);
            for (int64_t h = 0; h < H_; h++) {
                const char* from = both + (m * H_ + h) * 2 * head;
                turn(from, q_norm_, m, data<char>(out[0]) + ((b * H_ + h) * L + l) * head);
                std::memcpy(data<char>(out[3]) + (m * H_ + h) * head, from + head, size_t(head));
            }
            for (int64_t g = 0; g < G_; g++) {
                turn(k + (m * G_ + g) * head, k_norm_, m, data<char>(out[1]) + ((b * G_ + g) * L + l) * head);
                std::memcpy(data<char>(out[2]) + ((b * G_ + g) * L + l) * head, v + (m * G_ + g) * head, size_t(head));
            }
        }
    }

    void finish(const Arrays& in, Arrays& out) const {
        const int64_t B = in[0].shape(0), L = in[0].shape(1), M = B * L, E = block_.width();
        const Float type = float_of(in[0]);
        const int64_t item = float_bytes(type), head = D_ * item;
        Parts parts(size_t(M * item) * size_t(H_ * D_ + E));
        char *gated = parts.take(M * H_ * head), *r = parts.take(M * E * item);
        for (int64_t m = 0; m < M; m++)
            for (int64_t h = 0; h < H_; h++)
                gates().forward(Gate::sigmoid, data<char>(in[2]) + (m * H_ + h) * head,
                                data<char>(in[1]) + ((m / L * H_ + h) * L + m % L) * head, D_, type, gated + (m * H_ + h) * head);
        const Coded w = view(out_);
        run_products({{w, r, type}}, Prepared(gated, type, M, H_ * D_, {w.group}), M);
        block_.after(data(in[0]), r, type, M, data(out[0]));
    }

    Block block_;
    std::vector<Weight> in_;
    Weight out_;
    mx::array q_norm_, k_norm_;
    float eps_, scale_;
    int64_t H_ = 0, G_ = 0, D_ = 0;
    std::vector<float> inverse_;
};

}  // namespace

void bind_step(nb::module_& m) {
    nb::class_<Held<LinearLayer>>(m, "LinearLayer", "A Gated DeltaNet layer for at most 16 rows; holds its weights.");
    nb::class_<Held<AttentionLayer>>(m, "AttentionLayer", "A gated attention layer for at most 16 rows; holds its weights.");
    m.def("linear_layer", [](mx::array first, mx::array second, float eps, const std::vector<Weight>& mlp, std::vector<Weight> in, Weight out,
                             mx::array taps, const mx::array& a_log, const mx::array& dt_bias, const mx::array& norm, int key_heads,
                             int key_dim, float mixer_eps) {
        return Held<LinearLayer>{std::make_shared<LinearLayer>(block_of(first, second, eps, mlp), held(in), held(out), held(taps), held(a_log), held(dt_bias), held(norm),
                                             key_heads, key_dim, mixer_eps)};
    });
    m.def("attention_layer", [](mx::array first, mx::array second, float eps, const std::vector<Weight>& mlp, std::vector<Weight> in,
                                Weight out, mx::array q_norm, mx::array k_norm, float head_eps, int dims, float base, float scale) {
        return Held<AttentionLayer>{std::make_shared<AttentionLayer>(block_of(first, second, eps, mlp), held(in), held(out), held(q_norm), held(k_norm), head_eps,
                                                dims, base, scale)};
    });
    m.def("run_linear_layer", &LinearLayer::run, "layer"_a, "x"_a, "tail"_a, "state"_a,
          "(y, tail, state), or None where this form does not fit.");
    m.def("look_linear_layer", &LinearLayer::look, "layer"_a, "x"_a, "tail"_a, "state"_a, "before"_a,
          "(y, qkv, a, b), and (tail, state) where `before` (qkv, a, b, counts) is not empty; or None where this form does not fit.");
    m.def("enter_attention", &AttentionLayer::enter, "layer"_a, "x"_a, "offset"_a, "(q, k, v, gate), or None where this form does not fit.");
    m.def("leave_attention", &AttentionLayer::leave, "layer"_a, "x"_a, "o"_a, "gate"_a, "(y,), or None where this form does not fit.");
}

}  // namespace optiq
