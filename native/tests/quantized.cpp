#include "kernels/quantized.h"

#include <cmath>

#include "core/pool.h"
#include "tests/check.h"

using namespace optiq;

namespace {

struct Example {
    std::vector<uint8_t> codes;
    std::vector<float> scales, biases, dense;
    Coded view;

    Example(int64_t rows, int64_t columns, int bits, int group, uint64_t seed) {
        test::Random random(seed);
        codes.assign(size_t(rows * columns * bits / 8), 0);
        scales = random.values(size_t(rows * columns / group));
        biases = random.values(scales.size());
        dense.resize(size_t(rows * columns));
        for (int64_t i = 0; i < rows * columns; i++) {
            const uint64_t code = random.bits() & ((1u << bits) - 1);
            for (int b = 0; b < bits; b++)
                if (code >> b & 1) codes[size_t((i * bits + b) / 8)] |= uint8_t(1u << ((i * bits + b) % 8));
            dense[size_t(i)] = scales[size_t(i / group)] * float(code) + biases[size_t(i / group)];
        }
        view = {codes.data(), scales.data(), biases.data(), Float::f32, bits, group, rows, columns};
    }
};

}  // namespace

TEST(products_stay_within_their_bound_and_rows_do_not_see_each_other) {
    test::each_level([] {
        for (const int bits : {2, 3, 4, 5, 6, 8})
            for (const int group : {32, 64, 128})
                for (const int64_t count : {1, 2, 3, 7, 12, 16}) {
                    const int64_t columns = group * (count % 2 ? 3 : 4), rows = 11, floats = prepared_floats(columns, group);
                    const Example w(rows, columns, bits, group, uint64_t(bits * 1000 + group + count));
                    auto x = test::Random(uint64_t(count)).values(size_t(count * columns));
                    std::vector<float> prepared(size_t(count * floats + arranged_floats(columns, count))), y(size_t(count * rows)), alone(static_cast<size_t>(rows));
                    for (int64_t m = 0; m < count; m++)
                        quantized().prepare(&x[size_t(m * columns)], Float::f32, columns, group, &prepared[size_t(m * floats)]);
                    quantized().arrange(columns, group, count, prepared.data());
                    quantized().product(w.view, 0, rows, prepared.data(), count, y.data(), Float::f32, rows);
                    for (int64_t m = 0; m < count; m++) {
                        quantized().product(w.view, 0, rows, &prepared[size_t(m * floats)], 1, alone.data(), Float::f32, rows);
                        for (int64_t o = 0; o < rows; o++) {
                            double exact = 0, size = 0;
                            for (int64_t k = 0; k < columns; k++) {
                                exact += double(w.dense[size_t(o * columns + k)]) * double(x[size_t(m * columns + k)]);
                                size += std::fabs(w.dense[size_t(o * columns + k)]);
                            }
                            const double bound = size * (0.5 / 32639 + 4e-7) + 1e-4 * (bits == 8) + 1e-5;
                            CHECK(std::fabs(double(y[size_t(m * rows + o)]) - exact) <= bound);
                            CHECK(y[size_t(m * rows + o)] == alone[size_t(o)]);
                        }
                    }
                }
    });
}

TEST(dense_values_are_exact_to_rounding) {
    test::each_level([] {
        for (const int bits : {2, 3, 4, 5, 6, 8})
            for (const int group : {32, 64, 128}) {
                const Example w(3, group * 3, bits, group, uint64_t(bits + group));
                std::vector<float> row(static_cast<size_t>(w.view.columns));
                for (int64_t o = 0; o < 3; o++) {
                    quantized().dequantize(w.view, o, row.data(), Float::f32);
                    for (int64_t k = 0; k < w.view.columns; k++)
                        CHECK(std::fabs(row[size_t(k)] - w.dense[size_t(o * w.view.columns + k)]) <= 1e-4f);
                }
            }
    });
}

TEST(values_that_are_not_finite_show_in_the_result) {
    test::each_level([] {
        const Example w(2, 128, 4, 64, 1);
        for (const float bad : {INFINITY, -INFINITY, NAN}) {
            std::vector<float> x(128, 0.5f), prepared(size_t(prepared_floats(128, 64))), y(2);
            x[70] = bad;
            quantized().prepare(x.data(), Float::f32, 128, 64, prepared.data());
            quantized().product(w.view, 0, 2, prepared.data(), 1, y.data(), Float::f32, 2);
            CHECK(!std::isfinite(y[0]) && !std::isfinite(y[1]));
        }
    });
}
