// Dense products, forwards and backwards, as MLX operations on the CPU.

#include "kernels/multiply.h"
#include "mlx/bind.h"
#include "mlx/op.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// The three products of a linear map; each one's derivatives are products of the same family.
enum class Form {
    rows,     // a [..., I], b [O, I]: a bᵀ [..., O]
    columns,  // a [..., O], b [O, I]: a b [..., I]
    both,     // a [..., O], b [..., I]: aᵀ b [O, I], summed over all leading axes
};

int64_t rows_of(const mx::array& x) { return int64_t(x.size()) / x.shape(-1); }

Side along(const mx::array& x) {
    const int64_t width = x.shape(-1);
    return {data(x), float_of(x), rows_of(x), width, width, false, nullptr};
}

Side across(const mx::array& x) {
    const int64_t width = x.shape(-1);
    return {data(x), float_of(x), width, rows_of(x), width, true, nullptr};
}

void run_product(Form form, const mx::array& a, const mx::array& b, mx::array& c) {
    const Float type = float_of(c);
    const int64_t stride = c.shape(-1);
    if (form == Form::both) return multiply(across(a), across(b), type, data(c), type, stride);
    if (form == Form::columns) return multiply(along(a), across(b), type, data(c), type, stride);
    if (rows_of(a) > kFewRows) return multiply(along(a), along(b), type, data(c), type, stride);
    multiply_few(data(a), float_of(a), rows_of(a), along(b), data(c), type, stride);
}

// Each factor is read in its own type; the wider one decides the arithmetic.
mx::array product(Form form, const mx::array& a, const mx::array& b) {
    const mx::Dtype type = mx::promote_types(a.dtype(), b.dtype());
    const int shared = form == Form::columns ? -2 : -1;
    if (form != Form::both && (b.ndim() != 2 || a.shape(-1) != b.shape(shared)))
        throw std::invalid_argument("x and w of a dense product do not fit each other");
    auto shape = a.shape();
    if (form == Form::both)
        shape = {a.shape(-1), b.shape(-1)};
    else
        shape.back() = b.shape(form == Form::rows ? -2 : -1);
    if (a.size() == 0 || b.size() == 0) return mx::zeros(shape, type, cpu_stream());
    const auto run = [form](const Arrays& in, Arrays& out) { run_product(form, in[0], in[1], out[0]); };
    const auto vjp = [form](const Arrays& in, const Arrays& cotangents, const std::vector<int>& wanted, const Arrays&) {
        const mx::array &a = in[0], &b = in[1], &c = cotangents[0];
        const auto derivative = [&](int i) {
            switch (form) {
                case Form::rows: return i == 0 ? product(Form::columns, c, b) : product(Form::both, c, a);
                case Form::columns: return i == 0 ? product(Form::rows, c, b) : product(Form::both, a, c);
                default: return i == 0 ? product(Form::rows, b, c) : product(Form::columns, a, c);
            }
        };
        Arrays found;
        for (const int i : wanted) found.push_back(mx::astype(derivative(i), in[i].dtype(), cpu_stream()));
        return found;
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqProduct", run, vjp);
    return make_one(shape, type, op, {dense(a), dense(b)});
}

mx::array dense_rows(const mx::array& x, const mx::array& w) { return product(Form::rows, x, w); }

mx::array dense_columns(const mx::array& x, const mx::array& w) { return product(Form::columns, x, w); }

}  // namespace

void bind_dense(nb::module_& m) {
    m.def("dense", &dense_rows, "x"_a, "w"_a, "x [..., I] by w [O, I]: x wᵀ [..., O] in the wider of the two types.");
    m.def("dense_columns", &dense_columns, "x"_a, "w"_a, "x [..., O] by w [O, I]: x w [..., I] in the wider of the two types.");
}

}  // namespace optiq
