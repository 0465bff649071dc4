// The embedding lookup and its derivative, as MLX operations on the CPU.

#include <utility>

#include "kernels/sums.h"
#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// The derivative of a lookup: rows of g [N, E] added up by their index, in float32, in the order of N.
void scatter_rows(const Arrays& in, Arrays& out) {
    const Rows g(in[0]);
    const int32_t* ids = data<int32_t>(in[1]);
    const Float type = float_of(out[0]);
    const int64_t n = g.count(), rows = out[0].shape(0), width = out[0].shape(1), item = float_bytes(type);
    char* to = data<char>(out[0]);
    // The positions of each index, in order: counts, then starts, then the list.
    Scratch scratch(size_t(rows + 1 + n) * 4);
    int32_t *starts = scratch.as<int32_t>(), *list = starts + rows + 1;
    std::memset(starts, 0, size_t(rows + 1) * 4);
    const auto row_of = [&](int64_t i) { return ids[i] < 0 ? ids[i] + rows : int64_t(ids[i]); };
    const auto inside = [&](int64_t id) { return id >= 0 && id < rows; };
    for (int64_t i = 0; i < n; i++)
        if (inside(row_of(i))) starts[row_of(i)]++;
    int32_t before = 0;
    for (int64_t v = 0; v <= rows; v++) before += std::exchange(starts[v], before);
    for (int64_t i = 0; i < n; i++)
        if (inside(row_of(i))) list[starts[row_of(i)]++] = int32_t(i);  // starts[v] ends as the end of v
    by_rows(rows, width * item, [&](int64_t first, int64_t last) {
        std::memset(to + first * width * item, 0, size_t((last - first) * width * item));
        std::unique_ptr<Scratch> wide;
        for (int64_t v = first; v < last; v++) {
            const int32_t start = v ? starts[v - 1] : 0, end = starts[v];
            if (start == end) continue;
            float* total = reinterpret_cast<float*>(to + v * width * item);
            if (type != Float::f32) {
                if (!wide) wide = std::make_unique<Scratch>(size_t(width) * 4);
                total = wide->as<float>();
                std::memset(total, 0, size_t(width) * 4);
            }
            for (int32_t k = start; k < end; k++) sums().add(g.at(list[k]), width, type, total);
            if (type != Float::f32) sums().convert(total, width, type, to + v * width * item);
        }
    });
}

mx::array embedding(const mx::array& table, const mx::array& ids) {
    if (table.ndim() != 2) throw std::invalid_argument("embedding: the table must have two axes");
    auto shape = ids.shape();
    shape.push_back(table.shape(1));
    const auto run = [](const Arrays& in, Arrays& out) {
        const Rows table(in[0]);
        const int32_t* ids = data<int32_t>(in[1]);
        const int64_t bytes = table.width() * int64_t(in[0].itemsize());
        char* y = data<char>(out[0]);
        by_rows(in[1].size(), bytes, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++) {
                const int64_t at = ids[i] < 0 ? ids[i] + table.count() : ids[i];
                if (at >= 0 && at < table.count()) std::memcpy(y + i * bytes, table.at(at), size_t(bytes));
                else std::memset(y + i * bytes, 0xff, size_t(bytes));  // NaN: an index that is none must show
            }
        });
    };
    const auto vjp = [](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays&) {
        if (argnums.size() != 1 || argnums[0] != 0) throw std::invalid_argument("embedding has no derivative for indices");
        auto op = std::make_shared<Op>(cpu_stream(), "OptiqEmbeddingVjp", scatter_rows);
        return Arrays{make_one(in[0].shape(), in[0].dtype(), op, {g[0], in[1]})};
    };
    return make_one(shape, table.dtype(), std::make_shared<Op>(cpu_stream(), "OptiqEmbedding", run, vjp),
                    {as(table, float_type(table, table)), dense(ids, mx::int32)});
}

}  // namespace

void bind_embedding(nb::module_& m) {
    m.def("embedding", &embedding, "table"_a, "ids"_a, "Rows [..., E] of table [V, E].");
}

}  // namespace optiq
