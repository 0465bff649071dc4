// rms_norm and its fused forms, as MLX operations on the CPU.

#include "kernels/norm.h"
#include "kernels/sums.h"

#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// Which inputs an operation has; they follow x in this order.
struct Parts {
    bool add, weight, gate;
    int at_add() const { return 1; }
    int at_weight() const { return 1 + add; }
    int at_gate() const { return 1 + add + weight; }
};

constexpr int64_t kPartials = 64;  // at most so many partial sums of a weight's gradient

void forward(const Arrays& in, Arrays& out, Parts parts, float eps) {
    const Rows x(in[0]);
    const std::unique_ptr<Rows> add(parts.add ? new Rows(in[parts.at_add()]) : nullptr);
    const std::unique_ptr<Rows> gate(parts.gate ? new Rows(in[parts.at_gate()]) : nullptr);
    const Rows weight(parts.weight ? in[parts.at_weight()] : in[0]);
    const void* w = parts.weight ? weight.at(0) : nullptr;
    const Float type = float_of(in[0]);
    const int64_t n = x.width(), bytes = n * float_bytes(type);
    char* total = parts.add ? data<char>(out[0]) : nullptr;
    char* y = data<char>(out[parts.add]);
    by_rows(x.count(), bytes, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
            norm().rms(x.at(r), add ? add->at(r) : nullptr, w, gate ? gate->at(r) : nullptr, n, eps, type,
                       total ? total + r * bytes : nullptr, y + r * bytes);
    });
}

// Inputs: x, g, then weight, gate and what flows around the norm, where there are such. Outputs: dx, then dgate and dweight;
// a weight that is held fixed costs no sum over rows.
void backward(const Arrays& in, Arrays& out, Parts parts, bool learn, float eps) {
    const Rows x(in[0]), g(in[1]);
    int next = 2;
    const Rows weight(parts.weight ? in[next++] : in[0]);
    const std::unique_ptr<Rows> gate(parts.gate ? new Rows(in[next++]) : nullptr);
    const std::unique_ptr<Rows> more(parts.add ? new Rows(in[next++]) : nullptr);
    const void* w = parts.weight ? weight.at(0) : nullptr;
    const Float type = float_of(in[0]);
    const int64_t n = x.width(), bytes = n * float_bytes(type);
    char* dx = data<char>(out[0]);
    char* dgate = parts.gate ? data<char>(out[1]) : nullptr;
    const int64_t least = std::max<int64_t>(1, kTaskData / bytes);
    const int64_t step = std::max(least, (x.count() + kPartials - 1) / kPartials), tasks = (x.count() + step - 1) / step;
    Scratch scratch(size_t(tasks * n * 8) + 64);
    float* partial = scratch.as<float>();
    parallel(tasks, [&](int64_t task) {
        float* dweight = learn ? partial + task * n : nullptr;
        float* gated = partial + (tasks + task) * n;
        if (dweight) std::memset(dweight, 0, size_t(n) * 4);
        for (int64_t r = task * step; r < std::min(x.count(), (task + 1) * step); r++)
            norm().rms_vjp(x.at(r), w, gate ? gate->at(r) : nullptr, g.at(r), more ? more->at(r) : nullptr, n, eps, type,
                           dx + r * bytes, dweight, dgate ? dgate + r * bytes : nullptr, gated);
    });
    if (!learn) return;
    for (int64_t task = 1; task < tasks; task++) sums().add(partial + task * n, n, Float::f32, partial);
    sums().convert(partial, n, type, data(out.back()));
}

// Derivatives for x, then gate and weight, those that there are.
Arrays derivatives(const mx::array& x, const mx::array& g, const mx::array* weight, const mx::array* gate, const mx::array* more,
                   bool learn, float eps) {
    const Parts parts{more != nullptr, weight != nullptr, gate != nullptr};
    Arrays inputs{x, g};
    std::vector<mx::Shape> shapes{x.shape()};
    if (weight) inputs.push_back(*weight);
    if (gate) inputs.push_back(*gate), shapes.push_back(gate->shape());
    if (more) inputs.push_back(*more);
    if (learn) shapes.push_back(weight->shape());
    const std::vector<mx::Dtype> types(shapes.size(), x.dtype());
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqRmsNormVjp",
                                   [=](const Arrays& in, Arrays& out) { backward(in, out, parts, learn, eps); });
    return make(shapes, types, op, inputs);
}

bool wants(const std::vector<int>& argnums, int index) {
    return std::find(argnums.begin(), argnums.end(), index) != argnums.end();
}

void check(const mx::array& x, const std::optional<mx::array>& weight, const char* name) {
    if (x.ndim() == 0) throw std::invalid_argument(std::string(name) + ": x has no axis");
    if (weight && (weight->ndim() != 1 || weight->shape(0) != x.shape(-1)))
        throw std::invalid_argument(std::string(name) + ": the weight must be one row of x");
}

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float eps) {
    check(x, weight, "rms_norm");
    const auto type = float_type(x, weight ? *weight : x);
    const Parts parts{false, weight.has_value(), false};
    Arrays inputs{as(x, type)};
    if (weight) inputs.push_back(as(*weight, type));
    auto op = std::make_shared<Op>(
        cpu_stream(), "OptiqRmsNorm", [=](const Arrays& in, Arrays& out) { forward(in, out, parts, eps); },
        [=](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays&) {
            const bool learn = wants(argnums, 1);
            return choose(derivatives(in[0], g[0], parts.weight ? &in[1] : nullptr, nullptr, nullptr, learn, eps), argnums);
        });
    return make_one(x.shape(), type, op, inputs);
}

std::pair<mx::array, mx::array> add_rms_norm(const mx::array& x, const mx::array& residual,
                                             const std::optional<mx::array>& weight, float eps) {
    check(x, weight, "add_rms_norm");
    if (x.shape() != residual.shape()) throw std::invalid_argument("add_rms_norm: x and residual differ in shape");
    const auto type = float_type(x, residual);
    const Parts parts{true, weight.has_value(), false};
    if (weight && float_type(x, *weight) != type) throw std::invalid_argument("add_rms_norm: the weight is wider than x");
    Arrays inputs{as(x, type), as(residual, type)};
    if (weight) inputs.push_back(as(*weight, type));
    auto op = std::make_shared<Op>(
        cpu_stream(), "OptiqAddRmsNorm", [=](const Arrays& in, Arrays& out) { forward(in, out, parts, eps); },
        [=](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays& out) {
            const bool learn = wants(argnums, 2);
            const auto d = derivatives(out[0], g[1], parts.weight ? &in[2] : nullptr, nullptr, &g[0], learn, eps);
            return choose({d[0], d[0], d.back()}, argnums);
        });
    const auto both = make({x.shape(), x.shape()}, {type, type}, op, inputs);
    return {both[0], both[1]};
}

mx::array gated_rms_norm(const mx::array& x, const mx::array& gate, const mx::array& weight, float eps) {
    check(x, weight, "gated_rms_norm");
    if (x.shape() != gate.shape()) throw std::invalid_argument("gated_rms_norm: x and gate differ in shape");
    const Parts parts{false, true, true};
    const auto type = float_type(x, x);
    auto op = std::make_shared<Op>(
        cpu_stream(), "OptiqGatedRmsNorm", [=](const Arrays& in, Arrays& out) { forward(in, out, parts, eps); },
        [=](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays&) {
            const auto d = derivatives(in[0], g[0], &in[1], &in[2], nullptr, wants(argnums, 1), eps);
            return choose({d[0], d.back(), d[1]}, argnums);
        });
    return make_one(x.shape(), type, op, {x, as(weight, type), as(gate, type)});
}

}  // namespace

void bind_norm(nb::module_& m) {
    m.def("rms_norm", &rms_norm, "x"_a, "weight"_a.none(), "eps"_a, "x [..., D] over its root mean square, times weight [D].");
    m.def("add_rms_norm", &add_rms_norm, "x"_a, "residual"_a, "weight"_a.none(), "eps"_a,
          "(x + residual, rms_norm(x + residual)), both [..., D].");
    m.def("gated_rms_norm", &gated_rms_norm, "x"_a, "gate"_a, "weight"_a, "eps"_a,
          "silu(gate) rms_norm(x), in the type of x [..., D].");
}

}  // namespace optiq
