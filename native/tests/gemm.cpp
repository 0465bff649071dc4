#include "kernels/gemm.h"

#include <cmath>

#include "core/pool.h"
#include "kernels/multiply.h"
#include "tests/check.h"

using namespace optiq;

namespace {

// Numbers of a type, and what they are exactly.
struct Numbers {
    std::vector<float> exact;
    std::vector<uint16_t> half;
    Float type;

    Numbers(size_t count, Float type, uint64_t seed) : exact(test::Random(seed).values(count)), type(type) {
        if (type != Float::bf16) return;  // float16 is left to the Python tests, which have a converter
        for (auto& x : exact) {
            half.push_back(float_to_bf16(x));
            x = bf16_to_float(half.back());
        }
    }

    const void* data() const { return type == Float::bf16 ? static_cast<const void*>(half.data()) : exact.data(); }

    // `count` vectors of `depth`, one after the other or side by side.
    Side side(int64_t count, int64_t depth, bool across) const {
        return {data(), type, count, depth, across ? count : depth, across, nullptr};
    }
    double at(const Side& side, int64_t i, int64_t k) const {
        return exact[size_t(side.across ? k * side.stride + i : i * side.stride + k)];
    }
};

void check_product(const Side& p, const Numbers& x, const Side& a, const Numbers& w, const std::vector<float>& c) {
    for (int64_t i = 0; i < p.count; i++)
        for (int64_t o = 0; o < a.count; o++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < p.depth; k++) {
                sum += x.at(p, i, k) * w.at(a, o, k);
                size += std::fabs(x.at(p, i, k) * w.at(a, o, k));
            }
            CHECK(std::fabs(double(c[size_t(i * a.count + o)]) - sum) <= 2e-6 * size + 1e-30);
        }
}

}  // namespace

TEST(dense_products_of_every_layout_and_odd_size) {
    struct Size {
        int64_t count, depth, outer;
    };
    for (const int threads : {1, 3}) {
        set_pool_threads(threads);
        test::each_level([] {
            uint64_t seed = 1;
            for (const auto type : {Float::f32, Float::bf16})
                for (const auto& [count, depth, outer] : {Size{1, 1, 1}, Size{17, 33, 97}, Size{40, 600, 130}, Size{300, 31, 20}})
                    for (const int layout : {0, 1, 2, 3}) {
                        const Numbers x(size_t(count * depth), type, seed++), w(size_t(outer * depth), type, seed++);
                        const Side p = x.side(count, depth, layout & 1), a = w.side(outer, depth, layout & 2);
                        std::vector<float> c(size_t(count * outer)), again(c.size());
                        multiply(p, a, type, c.data(), Float::f32, outer);
                        check_product(p, x, a, w, c);
                        multiply(p, a, type, again.data(), Float::f32, outer);
                        CHECK(c == again);
                    }
        });
    }
    set_pool_threads(1);
}

TEST(the_side_that_is_packed_does_not_show) {
    const int64_t count = 50, depth = 530, outer = 70;
    set_pool_threads(2);
    test::each_level([&] {
        for (const auto type : {Float::f32, Float::bf16}) {
            if (!gemm().commutes(type)) continue;
            const Numbers x(size_t(count * depth), type, 5), w(size_t(outer * depth), type, 6);
            const Side p = x.side(count, depth, false), a = w.side(outer, depth, false);
            std::vector<float> rows(size_t(count * outer)), columns(rows.size());
            multiply_packed(p, a, type, {rows.data(), Float::f32, outer, 1});
            multiply_packed(a, p, type, {columns.data(), Float::f32, 1, outer});
            CHECK(rows == columns);
        }
    });
    set_pool_threads(1);
}

TEST(few_rows_do_not_see_each_other) {
    set_pool_threads(2);
    test::each_level([] {
        for (const auto type : {Float::f32, Float::bf16}) {
            const int64_t depth = 75, outer = 13, most = 16;
            const Numbers x(size_t(most * depth), type, 7), w(size_t(outer * depth), type, 8);
            const Side a = w.side(outer, depth, false);
            std::vector<float> all(size_t(most * outer)), some(all.size());
            multiply_few(x.data(), type, most, a, all.data(), Float::f32, outer);
            check_product(x.side(most, depth, false), x, a, w, all);
            for (const int64_t count : {1, 3, 7}) {
                multiply_few(x.data(), type, count, a, some.data(), Float::f32, outer);
                for (int64_t i = 0; i < count * outer; i++) CHECK(some[size_t(i)] == all[size_t(i)]);
            }
        }
    });
    set_pool_threads(1);
}

TEST(coded_products_of_many_rows) {
    test::each_level([] {
        for (const int bits : {2, 3, 4, 5, 6, 8})
            for (const int group : {32, 128}) {
                const int64_t columns = group * 5, rows = 50, count = 20;
                std::vector<uint8_t> codes(size_t(rows * columns * bits / 8));
                Numbers w(size_t(rows * columns), Float::f32, 1);
                auto scales = test::Random(2).values(size_t(rows * 5)), biases = test::Random(3).values(size_t(rows * 5));
                for (int64_t i = 0; i < rows * columns; i++) {
                    const uint32_t code = uint32_t(i) & ((1u << bits) - 1);
                    for (int b = 0; b < bits; b++)
                        if (code >> b & 1) codes[size_t((i * bits + b) / 8)] |= uint8_t(1u << ((i * bits + b) % 8));
                    w.exact[size_t(i)] = scales[size_t(i / group)] * float(code) + biases[size_t(i / group)];
                }
                const Coded coded{codes.data(), scales.data(), biases.data(), Float::f32, bits, group, rows, columns};
                for (const bool across : {false, true}) {
                    const int64_t depth = across ? rows : columns, outer = across ? columns : rows;
                    const Numbers x(size_t(count * depth), Float::f32, 4);
                    const Side p = x.side(count, depth, false), a{nullptr, Float::f32, outer, depth, 0, across, &coded};
                    std::vector<float> c(size_t(count * outer));
                    multiply(p, a, Float::f32, c.data(), Float::f32, outer);
                    const Side values{nullptr, Float::f32, outer, depth, columns, across};
                    check_product(p, x, values, w, c);
                }
            }
    });
}
