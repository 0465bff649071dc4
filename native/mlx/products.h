// Products of a few rows, as the parts that operations are made of.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/multiply.h"
#include "mlx/op.h"
#include "mlx/quantized.h"

namespace optiq {

// One coded weight as Python hands it over: codes, scales, biases, group size, bits.
using Weight = std::tuple<mx::array, mx::array, mx::array, int, int>;

// The rows of x as quantized().product wants them, once per group size.
class Prepared {
  public:
    Prepared(const void* x, Float type, int64_t rows, int64_t columns, const std::vector<int>& groups)
        : scratch_(bytes(rows, columns, groups)) {
        float* next = scratch_.as<float>();
        for (const int group : groups) {
            if (at_[group / 64]) continue;
            at_[group / 64] = next;
            for (int64_t m = 0; m < rows; m++, next += prepared_floats(columns, group))
                quantized().prepare(static_cast<const char*>(x) + m * columns * float_bytes(type), type, columns, group, next);
            quantized().arrange(columns, group, rows, at_[group / 64]);
            next += arranged_floats(columns, rows);
        }
    }

    const float* operator[](int group) const { return at_[group / 64]; }

  private:
    static size_t bytes(int64_t rows, int64_t columns, const std::vector<int>& groups) {
        int64_t floats = 0;
        for (const int group : {32, 64, 128})
            if (std::find(groups.begin(), groups.end(), group) != groups.end()) floats += rows * prepared_floats(columns, group) + arranged_floats(columns, rows);
        return size_t(floats) * 4;
    }

    Scratch scratch_;
    float* at_[3] = {};  // by group / 64: 32, 64, 128
};

// Row by row y [rows, w.rows] of `type`.
struct Product {
    Coded w;
    void* y;
    Float type;
};

// Several products of the same rows, as one round of tasks.
inline void run_products(const std::vector<Product>& parts, const Prepared& x, int64_t rows) {
    std::vector<int64_t> ends;
    int64_t tasks = 0;
    for (const auto& part : parts) ends.push_back(tasks += (part.w.rows + task_rows(part.w) - 1) / task_rows(part.w));
    parallel(tasks, [&](int64_t task) {
        size_t i = 0;
        while (task >= ends[i]) i++;
        const Product& part = parts[i];
        const int64_t step = task_rows(part.w), first = (task - (i ? ends[i - 1] : 0)) * step;
        quantized().product(part.w, first, std::min(part.w.rows, first + step), x[part.w.group], rows, part.y, part.type, part.w.rows);
    });
}

// y [rows, d.rows] of `type` = (silu(x gᵀ) * x uᵀ) dᵀ; what lies between stays float32.
inline void run_mlp(const Coded& g, const Coded& u, const Coded& d, const void* x, Float type, int64_t rows, void* y) {
    const Prepared prepared(x, type, rows, g.columns, {g.group, u.group});
    Scratch scratch(size_t(2 * rows * g.rows) * 4);
    float *hidden = scratch.as<float>(), *other = hidden + rows * g.rows;
    const int64_t step = std::max<int64_t>(16, task_rows(g) / 2 / 16 * 16);
    parallel((g.rows + step - 1) / step, [&](int64_t task) {
        const int64_t first = task * step, last = std::min(g.rows, first + step);
        quantized().product(g, first, last, prepared[g.group], rows, hidden, Float::f32, g.rows);
        quantized().product(u, first, last, prepared[u.group], rows, other, Float::f32, u.rows);
        for (int64_t m = 0; m < rows; m++)
            quantized().swiglu(hidden + m * g.rows + first, other + m * g.rows + first, last - first);
    });
    run_products({{d, y, type}}, Prepared(hidden, Float::f32, rows, d.columns, {d.group}), rows);
}

}  // namespace optiq
