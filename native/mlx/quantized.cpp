// Products with coded weights, forwards and backwards, expert banks and the coded embedding, as MLX operations on the CPU.

#include "kernels/multiply.h"
#include "mlx/bind.h"
#include "mlx/op.h"
#include "mlx/quantized.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

void prepare_rows(const Coded& w, const void* x, Float type, int64_t rows, float* prepared) {
    for (int64_t m = 0; m < rows; m++)
        quantized().prepare(static_cast<const char*>(x) + m * w.columns * float_bytes(type), type, w.columns, w.group,
                            prepared + m * prepared_floats(w.columns, w.group));
}

void few_rows(const Coded& w, const void* x, Float type, int64_t rows, void* y) {
    Scratch scratch(size_t(prepared_floats(w.columns, w.group) * rows + arranged_floats(w.columns, rows)) * 4);
    float* prepared = scratch.as<float>();
    prepare_rows(w, x, type, rows, prepared);
    quantized().arrange(w.columns, w.group, rows, prepared);
    const int64_t step = task_rows(w);
    parallel((w.rows + step - 1) / step, [&](int64_t task) {
        quantized().product(w, task * step, std::min(w.rows, (task + 1) * step), prepared, rows, y, type, w.rows);
    });
}

// y = x Wᵀ, or x W.
void coded_product(const Coded& w, bool transpose, const void* x, Float type, int64_t rows, void* y) {
    if (transpose && rows <= kFewRows) return few_rows(w, x, type, rows, y);
    const int64_t depth = transpose ? w.columns : w.rows, width = transpose ? w.rows : w.columns;
    const Side p{x, type, rows, depth, depth, false, nullptr}, a{nullptr, type, width, depth, 0, !transpose, &w};
    multiply(p, a, type, y, type, width);
}

// Which rows meet which expert. Entry n, a cell of `indices`, has M rows: those of x's cell from[n], and M rows of y.
struct Routing {
    std::vector<std::vector<int64_t>> entries;  // by expert, ascending
    std::vector<int64_t> from;

    Routing(const int32_t* experts, const mx::Shape& shape, const mx::Shape& lead, int64_t count) : entries(count) {
        int64_t cells = 1;
        for (const auto extent : shape) cells *= extent;
        from.resize(cells);
        for (int64_t n = 0; n < cells; n++) {
            entries[std::clamp<int64_t>(experts[n], 0, count - 1)].push_back(n);
            // The cell of x that broadcasts to cell n: axes of length 1 do not count.
            int64_t rest = n, unit = 1;
            for (int axis = int(shape.size()) - 1; axis >= 0; axis--) {
                const int64_t place = rest % shape[axis];
                rest /= shape[axis];
                if (lead[axis] > 1) from[n] += place * unit;
                unit *= lead[axis];
            }
        }
    }
};

// Rows of `bytes` that an expert needs, in one piece: in place where they lie so, else copied.
template <class Index>
const char* gathered(const char* x, const std::vector<int64_t>& entries, int64_t bytes, const Index& index, char* copy) {
    const int64_t count = int64_t(entries.size());
    bool together = true;
    for (int64_t i = 1; i < count && together; i++) together = index(entries[i]) == index(entries[0]) + i;
    if (together) return x + index(entries[0]) * bytes;
    parallel(count, [&](int64_t i) { std::memcpy(copy + i * bytes, x + index(entries[i]) * bytes, size_t(bytes)); });
    return copy;
}

// y's cell n = x's cell from[n] by expert experts[n]; product(expert, x, rows, y) computes one expert's rows. Experts that are
// left out of `which` are left alone.
template <class Product>
void each_expert(const Routing& routing, const std::vector<int64_t>& which, const char* x, char* y, int64_t rows, int64_t in_bytes,
                 int64_t out_bytes, const Product& product) {
    const int64_t in_cell = rows * in_bytes, out_cell = rows * out_bytes;
    for (const int64_t expert : which) {
        const auto& entries = routing.entries[expert];
        const int64_t count = int64_t(entries.size());
        Scratch scratch(size_t(count * (in_cell + out_cell)));
        char *copy = scratch.as<char>(), *result = copy + count * in_cell;
        const char* from = gathered(x, entries, in_cell, [&](int64_t n) { return routing.from[n]; }, copy);
        const bool together = entries.back() - entries.front() == count - 1;
        if (together) result = y + entries.front() * out_cell;
        product(expert, from, count * rows, result);
        if (together) continue;
        parallel(count, [&](int64_t i) { std::memcpy(y + entries[i] * out_cell, result + i * out_cell, size_t(out_cell)); });
    }
}

// Experts with few rows in one round of tasks: a decoding step asks eight of them for one row each.
void few_rows_of_experts(const Routing& routing, const std::vector<int64_t>& which, const std::vector<Coded>& experts,
                         const char* x, char* y, int64_t rows, Float type) {
    if (which.empty()) return;
    const Coded& first = experts[which[0]];
    const int64_t width = float_bytes(type), out_bytes = rows * first.rows * width, in_bytes = rows * first.columns * width;
    const int64_t row_floats = prepared_floats(first.columns, first.group);
    int64_t floats = 0, cells = 0;
    for (const int64_t expert : which) {
        const int64_t here = int64_t(routing.entries[expert].size());
        cells += here, floats += here * rows * row_floats + arranged_floats(first.columns, here * rows);
    }
    Scratch scratch(size_t(floats) * 4 + size_t(cells * out_bytes));
    char* const results = reinterpret_cast<char*>(scratch.as<float>() + floats);
    struct Job {
        int64_t expert;
        int64_t count;  // rows
        float* prepared;
        char* result;
    };
    std::vector<Job> jobs;
    float* next = scratch.as<float>();
    char* result = results;
    for (const int64_t expert : which) {
        const auto& entries = routing.entries[expert];
        const int64_t here = int64_t(entries.size());
        jobs.push_back({expert, here * rows, next, result});
        for (const int64_t n : entries) {
            prepare_rows(first, x + routing.from[n] * in_bytes, type, rows, next);
            next += rows * row_floats;
        }
        quantized().arrange(first.columns, first.group, here * rows, jobs.back().prepared);
        next += arranged_floats(first.columns, here * rows);
        result += here * out_bytes;
    }
    const int64_t step = task_rows(first), tasks = (first.rows + step - 1) / step;
    parallel(tasks * int64_t(jobs.size()), [&](int64_t i) {
        const Job& job = jobs[size_t(i / tasks)];
        const int64_t row = i % tasks * step;
        quantized().product(experts[job.expert], row, std::min(first.rows, row + step), job.prepared, job.count, job.result, type,
                            first.rows);
    });
    int64_t at = 0;
    for (const int64_t expert : which)
        for (const int64_t n : routing.entries[expert]) std::memcpy(y + n * out_bytes, results + at++ * out_bytes, size_t(out_bytes));
}

// Shapes of a gathered product: x [lead..., M, I] and indices broadcast against lead; y [indices..., M, O].
struct Gathered {
    mx::Shape cells, lead, out;

    Gathered(const mx::array& x, const mx::array& indices, int64_t width) {
        if (x.ndim() < 2) throw std::invalid_argument("a gathered product needs x of at least two axes");
        lead = mx::Shape(x.shape().begin(), x.shape().end() - 2);
        cells = mx::broadcast_shapes(lead, indices.shape());
        lead.insert(lead.begin(), cells.size() - lead.size(), 1);
        out = cells;
        out.push_back(x.shape(-2));
        out.push_back(int(width));
    }

    // The gradient of x from that of its broadcast cells.
    mx::array narrow(const mx::array& wide, const mx::array& x) const {
        std::vector<int> axes;
        for (size_t i = 0; i < cells.size(); i++)
            if (lead[i] == 1 && cells[i] > 1) axes.push_back(int(i));
        return mx::reshape(axes.empty() ? wide : mx::sum(wide, axes, true, cpu_stream()), x.shape(), cpu_stream());
    }
};

mx::array expert_numbers(const mx::array& indices, const Gathered& shapes) {
    return dense(mx::broadcast_to(indices, shapes.cells, cpu_stream()), mx::int32);
}

mx::array gather_qmm(const mx::array& x, const mx::array& codes, const mx::array& scales, const mx::array& biases,
                     const mx::array& indices, int group_size, int bits, bool transpose) {
    check_coded(codes, scales, biases, group_size, bits, x.shape(-1), transpose);
    const Gathered shapes(x, indices, transpose ? codes.shape(-2) : codes.shape(-1) * 32 / bits);
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Float type = float_of(in[0]);
        const int64_t count = in[1].shape(0), rows = in[0].shape(-2), width = float_bytes(type);
        const Routing routing(data<int32_t>(in[4]), shapes.cells, shapes.lead, count);
        std::vector<Coded> experts;
        std::vector<int64_t> few, many;
        for (int64_t e = 0; e < count; e++) {
            experts.push_back(coded(in[1], in[2], in[3], group_size, bits, e));
            const int64_t here = int64_t(routing.entries[e].size()) * rows;
            if (here) (transpose && here <= kFewRows ? few : many).push_back(e);
        }
        few_rows_of_experts(routing, few, experts, data<char>(in[0]), data<char>(out[0]), rows, type);
        each_expert(routing, many, data<char>(in[0]), data<char>(out[0]), rows, in[0].shape(-1) * width, shapes.out.back() * width,
                    [&](int64_t e, const void* from, int64_t n, void* to) { coded_product(experts[e], transpose, from, type, n, to); });
    };
    const auto vjp = [=](const Arrays& in, const Arrays& cotangents, const std::vector<int>& wanted, const Arrays&) {
        if (wanted.size() != 1 || wanted[0] != 0) throw std::invalid_argument("gather_qmm has no derivative by its weights");
        return Arrays{
            shapes.narrow(gather_qmm(cotangents[0], in[1], in[2], in[3], in[4], group_size, bits, !transpose), in[0])};
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqGatherQmm", run, vjp);
    return make_one(shapes.out, x.dtype(), op,
                    {dense(x), dense(codes), dense(scales), dense(biases), expert_numbers(indices, shapes)});
}

mx::array gather_mm(const mx::array& x, const mx::array& w, const mx::array& indices, bool transpose) {
    const mx::Dtype common = mx::promote_types(x.dtype(), w.dtype());
    if (w.ndim() != 3 || x.shape(-1) != w.shape(transpose ? -1 : -2)) throw std::invalid_argument("x does not fit the experts");
    const Gathered shapes(x, indices, w.shape(transpose ? -2 : -1));
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Float type = float_of(in[0]);
        const int64_t count = in[1].shape(0), outer = in[1].shape(1), inner = in[1].shape(2), width = float_bytes(type);
        const Routing routing(data<int32_t>(in[2]), shapes.cells, shapes.lead, count);
        std::vector<int64_t> used;
        for (int64_t e = 0; e < count; e++)
            if (!routing.entries[e].empty()) used.push_back(e);
        const int64_t depth = in[0].shape(-1), wide = shapes.out.back();
        each_expert(routing, used, data<char>(in[0]), data<char>(out[0]), in[0].shape(-2), depth * width, wide * width,
                    [&](int64_t e, const void* from, int64_t n, void* to) {
                        const Side a{data<char>(in[1]) + e * outer * inner * width, type, wide, depth, inner, !transpose, nullptr};
                        if (transpose && n <= kFewRows) return multiply_few(from, type, n, a, to, type, wide);
                        multiply({from, type, n, depth, depth, false, nullptr}, a, type, to, type, wide);
                    });
    };
    const auto vjp = [=](const Arrays& in, const Arrays& cotangents, const std::vector<int>& wanted, const Arrays&) {
        if (wanted.size() != 1 || wanted[0] != 0) throw std::invalid_argument("gather_mm has no derivative by its weights");
        return Arrays{shapes.narrow(gather_mm(cotangents[0], in[1], in[2], !transpose), in[0])};
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqGatherMm", run, vjp);
    return make_one(shapes.out, common, op, {dense(x, common), dense(w, common), expert_numbers(indices, shapes)});
}

mx::array dequantize_rows(const mx::array& indices, const mx::array& codes, const mx::array& scales, const mx::array& biases,
                          int group_size, int bits, mx::Dtype type) {
    auto shape = indices.shape();
    shape.push_back(codes.shape(-1) * 32 / bits);
    check_coded(codes, scales, biases, group_size, bits, shape.back(), true);
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Coded w = coded(in[1], in[2], in[3], group_size, bits);
        const int32_t* rows = data<int32_t>(in[0]);
        const Float type = float_of(out[0]);
        char* y = data<char>(out[0]);
        parallel(int64_t(in[0].size()), [&](int64_t i) {
            const int64_t row = std::clamp<int64_t>(rows[i] < 0 ? rows[i] + w.rows : rows[i], 0, w.rows - 1);
            quantized().dequantize(w, row, y + i * w.columns * float_bytes(type), type);
        });
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqDequantizeRows", run);
    return make_one(shape, type, op, {dense(indices, mx::int32), dense(codes), dense(scales), dense(biases)});
}

}  // namespace

mx::array quantized_matmul(const mx::array& x, const mx::array& codes, const mx::array& scales, const mx::array& biases,
                           int group_size, int bits, bool transpose) {
    check_coded(codes, scales, biases, group_size, bits, x.shape(-1), transpose);
    auto shape = x.shape();
    shape.back() = transpose ? codes.shape(-2) : codes.shape(-1) * 32 / bits;
    if (x.size() == 0) return mx::zeros(shape, x.dtype(), cpu_stream());
    const auto run = [=](const Arrays& in, Arrays& out) {
        const Coded w = coded(in[1], in[2], in[3], group_size, bits);
        const int64_t rows = int64_t(in[0].size()) / in[0].shape(-1);
        coded_product(w, transpose, data(in[0]), float_of(in[0]), rows, data(out[0]));
    };
    const auto vjp = [=](const Arrays& in, const Arrays& cotangents, const std::vector<int>& wanted, const Arrays&) {
        if (wanted.size() != 1 || wanted[0] != 0) throw std::invalid_argument("quantized_matmul has no derivative by its weights");
        return Arrays{quantized_matmul(cotangents[0], in[1], in[2], in[3], group_size, bits, !transpose)};
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqQuantizedMatmul", run, vjp);
    return make_one(shape, x.dtype(), op, {dense(x), dense(codes), dense(scales), dense(biases)});
}

void bind_quantized(nb::module_& m) {
    m.def("quantized_matmul", &quantized_matmul, "x"_a, "codes"_a, "scales"_a, "biases"_a, "group_size"_a, "bits"_a,
          "transpose"_a = true, "x [..., I] by a coded matrix W [O, I]: x Wᵀ [..., O]; else x [..., O]: x W [..., I]. Type of x.");
    m.def("gather_qmm", &gather_qmm, "x"_a, "codes"_a, "scales"_a, "biases"_a, "indices"_a, "group_size"_a, "bits"_a,
          "transpose"_a = true, "x [..., M, I] by the coded experts [E, O, I] that indices [...] name: [..., M, O].");
    m.def("gather_mm", &gather_mm, "x"_a, "w"_a, "indices"_a, "transpose"_a = true,
          "x [..., M, I] by the dense experts w [E, O, I] that indices [...] name: [..., M, O].");
    m.def("dequantize_rows", &dequantize_rows, "indices"_a, "codes"_a, "scales"_a, "biases"_a, "group_size"_a, "bits"_a, "dtype"_a,
          "The dense values of rows of a coded matrix: [..., I].");
}

}  // namespace optiq
