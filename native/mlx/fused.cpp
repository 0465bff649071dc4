// Several products in one operation, for the few rows of a decoding step: projections of the same x, and a gated MLP.
//
// A token passes some hundred products that take tens of microseconds each; one operation for those that belong together
// quantizes the activations once and wakes the pool once.

#include "mlx/bind.h"
#include "mlx/products.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// The weight whose three arrays begin at `at`.
Coded coded_at(const Arrays& in, size_t at, int group, int bits) { return coded(in[at], in[at + 1], in[at + 2], group, bits); }

mx::array product(const mx::array& x, const Weight& w) {
    const auto& [codes, scales, biases, group, bits] = w;
    return quantized_matmul(x, codes, scales, biases, group, bits, true);
}

// The derivative by x alone, of the same function composed of single products.
Op::Vjp by_composition(std::function<Arrays(const mx::array&)> function) {
    return [=](const Arrays& primals, const Arrays& cotangents, const std::vector<int>& wanted, const Arrays&) {
        if (wanted.size() != 1 || wanted[0] != 0) throw std::invalid_argument("coded weights have no derivative");
        return mx::vjp([&](const Arrays& x) { return function(x[0]); }, Arrays{primals[0]}, cotangents).second;
    };
}

// Checked against the width of what it multiplies, as the single product does.
void append(Arrays& inputs, const Weight& weight, int64_t width) {
    const auto& [codes, scales, biases, group, bits] = weight;
    check_coded(codes, scales, biases, group, bits, width, true);
    inputs.push_back(dense(std::get<0>(weight)));
    inputs.push_back(dense(std::get<1>(weight)));
    inputs.push_back(dense(std::get<2>(weight)));
}

std::vector<mx::array> project(const mx::array& x, const std::vector<Weight>& weights) {
    const int64_t rows = int64_t(x.size()) / x.shape(-1);
    if (rows > kFewRows) throw std::invalid_argument("project takes at most 16 rows");
    Arrays inputs{dense(x)};
    std::vector<mx::Shape> shapes;
    std::vector<int> groups, bits;
    for (const auto& weight : weights) {
        append(inputs, weight, x.shape(-1));
        groups.push_back(std::get<3>(weight));
        bits.push_back(std::get<4>(weight));
        shapes.push_back(x.shape());
        shapes.back().back() = std::get<0>(weight).shape(0);
    }
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Float type = float_of(in[0]);
        const Prepared prepared(data(in[0]), type, rows, in[0].shape(-1), groups);
        std::vector<Product> parts;
        for (size_t i = 0; i < groups.size(); i++) parts.push_back({coded_at(in, 1 + 3 * i, groups[i], bits[i]), data(out[i]), type});
        run_products(parts, prepared, rows);
    };
    const auto vjp = by_composition([=](const mx::array& x) {
        Arrays all;
        for (const auto& weight : weights) all.push_back(product(x, weight));
        return all;
    });
    return make(shapes, std::vector<mx::Dtype>(shapes.size(), x.dtype()),
                std::make_shared<Op>(cpu_stream(), "OptiqProject", run, vjp), std::move(inputs));
}

mx::array mlp(const mx::array& x, const Weight& gate, const Weight& up, const Weight& down) {
    const int64_t rows = int64_t(x.size()) / x.shape(-1);
    if (rows > kFewRows) throw std::invalid_argument("mlp takes at most 16 rows");
    if (std::get<0>(gate).shape(0) != std::get<0>(up).shape(0)) throw std::invalid_argument("gate and up differ in their rows");
    Arrays inputs{dense(x)};
    std::vector<int> groups, bits;
    for (const auto* weight : {&gate, &up, &down}) {
        append(inputs, *weight, weight == &down ? std::get<0>(gate).shape(0) : x.shape(-1));
        groups.push_back(std::get<3>(*weight));
        bits.push_back(std::get<4>(*weight));
    }
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Float type = float_of(in[0]);
        const Coded g = coded_at(in, 1, groups[0], bits[0]), u = coded_at(in, 4, groups[1], bits[1]), d = coded_at(in, 7, groups[2], bits[2]);
        run_mlp(g, u, d, data(in[0]), type, rows, data(out[0]));
    };
    auto shape = x.shape();
    shape.back() = std::get<0>(down).shape(0);
    const auto vjp = by_composition([=](const mx::array& x) {
        const mx::array g = product(x, gate);
        return Arrays{product(mx::multiply(mx::multiply(g, mx::sigmoid(g)), product(x, up)), down)};
    });
    return make_one(shape, x.dtype(), std::make_shared<Op>(cpu_stream(), "OptiqMlp", run, vjp), std::move(inputs));
}

}  // namespace

void bind_fused(nb::module_& m) {
    m.def("project", &project, "x"_a, "weights"_a,
          "x [..., I], at most 16 rows, by several (codes, scales, biases, group_size, bits): one [..., O] each.");
    m.def("mlp", &mlp, "x"_a, "gate"_a, "up"_a, "down"_a, "down(silu(gate x) * up x) for at most 16 rows.");
}

}  // namespace optiq
