// Activations and gated products, as MLX operations on the CPU.

#include "kernels/gates.h"

#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// Calls f(pieces, offset in elements, n): pieces of rows of the inputs, n values of each.
template <class F>
void pieces(const Arrays& in, const F& f) {
    std::unique_ptr<Rows> rows[3];
    const size_t count = in.size();
    bool flat = true;
    for (size_t i = 0; i < count; i++) {
        rows[i] = std::make_unique<Rows>(in[i]);
        flat = flat && rows[i]->flat();
    }
    const int64_t item = in[0].itemsize(), size = in[0].size(), width = rows[0]->width();
    if (flat) {
        const int64_t step = kTaskData / item;
        parallel((size + step - 1) / step, [&](int64_t task) {
            const char* at[3];
            for (size_t i = 0; i < count; i++) at[i] = rows[i]->at(0) + task * step * item;
            f(at, task * step, std::min(step, size - task * step));
        });
        return;
    }
    by_rows(rows[0]->count(), width * item, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            const char* at[3];
            for (size_t i = 0; i < count; i++) at[i] = rows[i]->at(r);
            f(at, r * width, width);
        }
    });
}

void forward(Gate gate, const Arrays& in, Arrays& out) {
    const Float type = float_of(in[0]);
    char* y = data<char>(out[0]);
    pieces(in, [&](const char* const* at, int64_t offset, int64_t n) {
        gates().forward(gate, at[0], in.size() > 1 ? at[1] : nullptr, n, type, y + offset * float_bytes(type));
    });
}

// Inputs a, g and perhaps u; outputs da and, with u, du.
void backward(Gate gate, const Arrays& in, Arrays& out) {
    const Float type = float_of(in[0]);
    const bool two = in.size() > 2;
    char *da = data<char>(out[0]), *du = two ? data<char>(out[1]) : nullptr;
    pieces(in, [&](const char* const* at, int64_t offset, int64_t n) {
        const int64_t byte = offset * float_bytes(type);
        gates().backward(gate, at[0], two ? at[2] : nullptr, at[1], n, type, da + byte, two ? du + byte : nullptr);
    });
}

mx::array gated(Gate gate, const char* name, const char* vjp_name, Arrays inputs) {
    const auto shape = inputs[0].shape();
    const auto type = inputs[0].dtype();
    auto op = std::make_shared<Op>(
        cpu_stream(), name, [=](const Arrays& in, Arrays& out) { forward(gate, in, out); },
        [=](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays&) {
            auto vjp = std::make_shared<Op>(cpu_stream(), vjp_name,
                                            [=](const Arrays& in, Arrays& out) { backward(gate, in, out); });
            Arrays all{in[0], g[0]};
            if (in.size() > 1) all.push_back(in[1]);
            return choose(make(std::vector<mx::Shape>(in.size(), in[0].shape()),
                               std::vector<mx::Dtype>(in.size(), in[0].dtype()), vjp, all), argnums);
        });
    return make_one(shape, type, op, std::move(inputs));
}

mx::array product(Gate gate, const char* name, const char* vjp_name, const mx::array& a, const mx::array& u) {
    const auto type = float_type(a, u);
    if (a.shape() == u.shape()) return gated(gate, name, vjp_name, {as(a, type), as(u, type)});
    const auto both = mx::broadcast_arrays({as(a, type), as(u, type)}, cpu_stream());
    return gated(gate, name, vjp_name, {both[0], both[1]});
}

}  // namespace

void bind_gates(nb::module_& m) {
    m.def("silu", [](const mx::array& x) { return gated(Gate::silu, "OptiqSilu", "OptiqSiluVjp", {as(x, float_type(x, x))}); },
          "x"_a, "x sigmoid(x).");
    m.def("swiglu", [](const mx::array& gate, const mx::array& up) {
        return product(Gate::silu, "OptiqSwiglu", "OptiqSwigluVjp", gate, up);
    }, "gate"_a, "up"_a, "silu(gate) up.");
    m.def("geglu", [](const mx::array& gate, const mx::array& up) {
        return product(Gate::gelu, "OptiqGeglu", "OptiqGegluVjp", gate, up);
    }, "gate"_a, "up"_a, "gelu_approx(gate) up.");
    m.def("gelu", [](const mx::array& x) { return gated(Gate::gelu, "OptiqGelu", "OptiqGeluVjp", {as(x, float_type(x, x))}); },
          "x"_a, "GELU of x, tanh form.");
    m.def("sigmoid_gate", [](const mx::array& x, const mx::array& gate) {
        return product(Gate::sigmoid, "OptiqSigmoidGate", "OptiqSigmoidGateVjp", gate, x);
    }, "x"_a, "gate"_a, "x sigmoid(gate).");
}

}  // namespace optiq
