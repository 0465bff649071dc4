// Norms, gates, rotary embedding and losses against double, from exactly sized buffers so that a sanitizer sees each step
// beyond a row.

#include <cmath>

#include "kernels/gates.h"
#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/rotary.h"
#include "kernels/sums.h"
#include "tests/check.h"

using namespace optiq;
using test::each_level;
using test::Random;

namespace {

constexpr int64_t kWidths[] = {1, 2, 15, 16, 17, 32, 63, 100};

bool near(double found, double expected, double bound) { return std::abs(found - expected) <= bound; }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Rows in each type: the numbers that the type holds, and their bytes.
struct Row {
    std::vector<float> values;
    std::vector<char> bytes;
    double unit;  // spacing of the values below 1
    Row(Random& random, int64_t n, Float type) : values(random.values(size_t(n))), bytes(size_t(n * float_bytes(type))) {
        unit = type == Float::f32 ? 0x1p-23 : type == Float::bf16 ? 0x1p-8 : 0x1p-11;
        sums().convert(values.data(), n, type, bytes.data());
        values.assign(size_t(n), 0.f);
        sums().add(bytes.data(), n, type, values.data());
    }
    Row(int64_t n, Float type) : values(size_t(n)), bytes(size_t(n * float_bytes(type))) {
        unit = type == Float::f32 ? 0x1p-23 : type == Float::bf16 ? 0x1p-8 : 0x1p-11;
    }
    // Once the bytes are a result: their values.
    const std::vector<float>& read(Float type) {
        values.assign(values.size(), 0.f);
        sums().add(bytes.data(), int64_t(values.size()), type, values.data());
        return values;
    }
    void* data() { return bytes.data(); }
};

template <class F>
void each(const F& f) {
    each_level([&] {
        for (const Float type : {Float::f32, Float::bf16, Float::f16})
            for (const int64_t n : kWidths) f(type, n);
    });
}

}  // namespace

TEST(norms_agree_with_double) {
    Random random(1);
    each([&](Float type, int64_t n) {
        Row x(random, n, type), w(random, n, type), z(random, n, type), g(random, n, type), y(n, type), dx(n, type), dz(n, type);
        std::vector<float> dw(size_t(n), 0.f), scratch(size_t(n), 0.f);
        const double eps = 0.01;
        double squares = 0, inner = 0;
        for (int64_t i = 0; i < n; i++) squares += double(x.values[i]) * x.values[i] / double(n);
        const double r = 1 / std::sqrt(squares + eps);
        std::vector<double> flow(size_t(n), 0.);
        for (int64_t i = 0; i < n; i++) {
            flow[i] = g.values[i] * z.values[i] * sigmoid(z.values[i]);
            inner += flow[i] * w.values[i] * x.values[i] / double(n);
        }
        norm().rms(x.data(), nullptr, w.data(), z.data(), n, float(eps), type, nullptr, y.data());
        norm().rms_vjp(x.data(), w.data(), z.data(), g.data(), nullptr, n, float(eps), type, dx.data(), dw.data(), dz.data(),
                       scratch.data());
        const auto &ys = y.read(type), &dxs = dx.read(type), &dzs = dz.read(type);
        for (int64_t i = 0; i < n; i++) {
            const double a = x.values[i] * r, s = sigmoid(z.values[i]), out = a * w.values[i] * z.values[i] * s;
            CHECK(near(ys[i], out, 4 * x.unit * std::abs(out) + 1e-6));
            const double d = flow[i] * w.values[i] * r - x.values[i] * r * r * r * inner;
            CHECK(near(dxs[i], d, 4 * x.unit * std::abs(d) + 1e-4));
            CHECK(near(dw[i], flow[i] * a, 1e-4));
            const double slope = g.values[i] * a * w.values[i] * s * (1 + z.values[i] * (1 - s));
            CHECK(near(dzs[i], slope, 4 * x.unit * std::abs(slope) + 1e-5));
        }
    });
}

TEST(gates_agree_with_double) {
    Random random(2);
    each([&](Float type, int64_t n) {
        Row a(random, n, type), u(random, n, type), g(random, n, type), y(n, type), da(n, type), du(n, type);
        for (const Gate gate : {Gate::silu, Gate::sigmoid, Gate::gelu}) {
            gates().forward(gate, a.data(), u.data(), n, type, y.data());
            gates().backward(gate, a.data(), u.data(), g.data(), n, type, da.data(), du.data());
            const auto &ys = y.read(type), &das = da.read(type), &dus = du.read(type);
            for (int64_t i = 0; i < n; i++) {
                const auto f = [&](double x) {
                    if (gate == Gate::sigmoid) return sigmoid(x);
                    return x * sigmoid(gate == Gate::silu ? x : 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
                };
                const double x = a.values[i], slope = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
                CHECK(near(ys[i], f(x) * u.values[i], 2 * a.unit * std::abs(f(x) * u.values[i]) + 1e-6));
                CHECK(near(dus[i], f(x) * g.values[i], 2 * a.unit * std::abs(f(x) * g.values[i]) + 1e-6));
                const double d = slope * g.values[i] * u.values[i];
                CHECK(near(das[i], d, 2 * a.unit * std::abs(d) + 1e-6));
            }
        }
    });
}

TEST(rotary_agrees_with_double) {
    Random random(3);
    each([&](Float type, int64_t n) {
        for (const bool traditional : {false, true}) {
            const int64_t half = n / 2;
            Row x(random, n, type), y(n, type);
            std::vector<float> inverse = random.values(size_t(half)), cosine(size_t(half), 0.f), sine(size_t(half), 0.f);
            const float position = 12345.f;
            rotary().angles(position, inverse.data(), half, 1.f, cosine.data(), sine.data());
            rotary().rotate(x.data(), cosine.data(), sine.data(), half, n, traditional, type, y.data());
            const auto& ys = y.read(type);
            for (int64_t i = 0; i < half; i++) {
                const double angle = double(position * inverse[i]), c = std::cos(angle), s = std::sin(angle);
                CHECK(near(cosine[i], c, 2e-7) && near(sine[i], s, 2e-7));
                const int64_t first = traditional ? 2 * i : i, second = traditional ? first + 1 : first + half;
                const double a = x.values[first], b = x.values[second];
                CHECK(near(ys[first], a * c - b * s, 2 * x.unit + 1e-6) && near(ys[second], a * s + b * c, 2 * x.unit + 1e-6));
            }
            for (int64_t i = 2 * half; i < n; i++) CHECK(ys[i] == x.values[i]);
        }
    });
}

TEST(losses_agree_with_double) {
    Random random(4);
    each([&](Float type, int64_t n) {
        Row x(random, n, type), g(random, n, type), y(n, type), dx(n, type);
        float most, total;
        loss().piece(x.data(), n, type, &most, &total);
        double sum = 0, inner = 0;
        for (int64_t i = 0; i < n; i++) sum += std::exp(double(x.values[i]));
        CHECK(near(most + std::log(double(total)), std::log(sum), 1e-6));
        loss().exponentials(x.data(), n, most, 1.f / total, type, y.data());
        const auto& ys = y.read(type);
        for (int64_t i = 0; i < n; i++) {
            const double p = std::exp(double(x.values[i])) / sum;
            CHECK(near(ys[i], p, 2 * x.unit * p + 1e-6));
            inner += double(ys[i]) * g.values[i];
        }
        loss().softmax_vjp(y.data(), g.data(), n, type, dx.data());
        const auto& d = dx.read(type);
        for (int64_t i = 0; i < n; i++) CHECK(near(d[i], ys[i] * (g.values[i] - inner), 2 * x.unit * std::abs(d[i]) + 1e-6));
    });
}
