// quantized_matmul and the quantized embedding, as MLX operations on the CPU.

#include "kernels/quantized.h"

#include "core/pool.h"
#include "core/scratch.h"
#include "mlx/bind.h"
#include "mlx/op.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

constexpr int64_t kFewRows = 16;           // up to here rows are bit-equal whatever else is in the batch
constexpr int64_t kTaskBytes = 32 * 1024;  // of codes: a few microseconds of work

Coded coded(const mx::array& codes, const mx::array& scales, const mx::array& biases, int group, int bits) {
    return {data<uint8_t>(codes), data(scales), data(biases), float_of(scales), bits, group,
            int64_t(codes.size()) / codes.shape(-1), int64_t(codes.shape(-1)) * 32 / bits};
}

void few_rows(const Coded& w, const void* x, Float type, int64_t rows, void* y) {
    const int64_t width = float_bytes(type), row_floats = prepared_floats(w.columns, w.group);
    Scratch scratch(size_t(row_floats * rows) * 4);
    float* prepared = scratch.as<float>();
    for (int64_t m = 0; m < rows; m++)
        quantized().prepare(static_cast<const char*>(x) + m * w.columns * width, type, w.columns, w.group,
                            prepared + m * row_floats);
    const int64_t step = std::max<int64_t>(1, kTaskBytes / w.row_bytes()), tasks = (w.rows + step - 1) / step;
    parallel(tasks, [&](int64_t task) {
        quantized().product(w, task * step, std::min(w.rows, (task + 1) * step), prepared, rows, y, type, w.rows);
    });
}

mx::array quantized_matmul(const mx::array& x, const mx::array& codes, const mx::array& scales, const mx::array& biases,
                           int group_size, int bits) {
    auto shape = x.shape();
    shape.back() = codes.shape(-2);
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Coded w = coded(in[1], in[2], in[3], group_size, bits);
        const int64_t rows = in[0].size() / w.columns;
        const Float type = float_of(in[0]);
        const int64_t width = float_bytes(type);
        for (int64_t m = 0; m < rows; m += kFewRows)
            few_rows(w, data<char>(in[0]) + m * w.columns * width, type, std::min(kFewRows, rows - m),
                     data<char>(out[0]) + m * w.rows * width);
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqQuantizedMatmul", run);
    return make_one(shape, x.dtype(), op, {dense(x), dense(codes), dense(scales), dense(biases)});
}

}  // namespace

void bind_quantized(nb::module_& m) {
    m.def("quantized_matmul", &quantized_matmul, "x"_a, "codes"_a, "scales"_a, "biases"_a, "group_size"_a, "bits"_a,
          "x [..., I] by a coded matrix [O, I]: y [..., O] in the type of x.");
}

}  // namespace optiq
