// Rounding with error feedback within a group of columns, as MLX operations on the CPU.

#include "kernels/feedback.h"

#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

void check(const mx::array& x, const mx::Shape& shape, const char* name) {
    if (x.shape() != shape || x.dtype() != mx::float32) throw std::invalid_argument(std::string(name) + ": unexpected shape or type");
}

// Rows of `x` [O, g], and how wide they are.
int64_t check_rows(const mx::array& x, const char* name) {
    if (x.ndim() != 2 || x.shape(1) < 1 || x.shape(1) > kFeedbackWidth || x.dtype() != mx::float32)
        throw std::invalid_argument(std::string(name) + ": expected float32 rows of at most 128 columns");
    return x.shape(1);
}

// Calls f(first row, count) for at most sixteen rows at a time.
template <class F>
void sixteens(int64_t rows, const F& f) {
    parallel((rows + kFeedbackRows - 1) / kFeedbackRows, [&](int64_t task) {
        const int64_t first = task * kFeedbackRows;
        f(first, int(std::min<int64_t>(kFeedbackRows, rows - first)));
    });
}

Arrays round_columns(const mx::array& w, const mx::array& s, const mx::array& b, const mx::array& triangle, const mx::array& inverse,
                     float top) {
    const int width = int(check_rows(w, "w"));
    check(s, {w.shape(0)}, "s");
    check(b, {w.shape(0)}, "b");
    check(triangle, {width, width}, "triangle");
    check(inverse, {width}, "inverse");
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqRoundColumns", [=](const Arrays& in, Arrays& out) {
        const Rows rows(in[0]);
        const float *s = data<float>(in[1]), *b = data<float>(in[2]), *t = data<float>(in[3]), *p = data<float>(in[4]);
        float *codes = data<float>(out[0]), *errors = data<float>(out[1]);
        sixteens(rows.count(), [&](int64_t first, int count) {
            const float* at[kFeedbackRows];
            for (int i = 0; i < count; i++) at[i] = reinterpret_cast<const float*>(rows.at(first + i));
            feedback().round(at, s + first, b + first, count, t, p, width, top, codes + first * width, errors + first * width);
        });
    });
    return make({w.shape(), w.shape()}, {mx::float32, mx::float32}, op, {w, dense(s), dense(b), dense(triangle), dense(inverse)});
}

Arrays step_columns(const mx::array& codes, const mx::array& s, const mx::array& r, const mx::array& local, float top) {
    const int width = int(check_rows(codes, "codes"));
    check(s, {codes.shape(0)}, "s");
    check(r, codes.shape(), "r");
    check(local, {width, width}, "local");
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqStepColumns", [=](const Arrays& in, Arrays& out) {
        const Rows codes(in[0]), residuals(in[2]);
        const float *s = data<float>(in[1]), *h = data<float>(in[3]);
        float *to = data<float>(out[0]), *left = data<float>(out[1]);
        sixteens(codes.count(), [&](int64_t first, int count) {
            const float *old[kFeedbackRows], *at[kFeedbackRows];
            for (int i = 0; i < count; i++) {
                old[i] = reinterpret_cast<const float*>(codes.at(first + i));
                at[i] = reinterpret_cast<const float*>(residuals.at(first + i));
            }
            feedback().step(old, at, s + first, count, h, width, top, to + first * width, left + first * width);
        });
    });
    return make({codes.shape(), codes.shape()}, {mx::float32, mx::float32}, op, {codes, dense(s), r, dense(local)});
}

}  // namespace

void bind_feedback(nb::module_& m) {
    m.def("round_columns", &round_columns, "w"_a, "s"_a, "b"_a, "triangle"_a, "inverse"_a, "top"_a, "(codes, errors), [O, g] each.");
    m.def("step_columns", &step_columns, "codes"_a, "s"_a, "r"_a, "local"_a, "top"_a, "(codes, residuals), [O, g] each.");
}

}  // namespace optiq
