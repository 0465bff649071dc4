// Rounding with error feedback against the formulas in plain loops, bit for bit, from exactly sized buffers.
// (Test programs are compiled for plain x86-64, which cannot contract a product with a sum.)

#include <cmath>

#include "kernels/feedback.h"
#include "tests/check.h"

using namespace optiq;
using test::each_level;
using test::Random;

namespace {

constexpr int64_t kWidths[] = {1, 15, 16, 17, 64, 128};
constexpr int kCounts[] = {1, 3, 16};

// Rows of their own buffers, and where they begin.
struct Block {
    std::vector<std::vector<float>> rows;
    std::vector<const float*> at;
    Block(Random& random, int count, int64_t width) {
        for (int i = 0; i < count; i++) rows.push_back(random.values(size_t(width)));
        for (const auto& row : rows) at.push_back(row.data());
    }
};

float clipped(float x, float top) { return x < 0.f ? 0.f : x > top ? top : x; }

template <class F>
void each(const F& f) {
    each_level([&] {
        for (const int64_t width : kWidths)
            for (const int count : kCounts) f(width, count);
    });
}

}  // namespace

TEST(rounding_has_the_bits_of_the_formulas) {
    Random random(1);
    each([&](int64_t width, int count) {
        const Block w(random, count, width);
        std::vector<float> s = random.values(size_t(count)), b = random.values(size_t(count));
        for (float& x : s) x = 0.1f + std::abs(x);
        const std::vector<float> t = random.values(size_t(width * width)), p = random.values(size_t(width));
        std::vector<float> codes(size_t(count * width)), errors(size_t(count * width));
        feedback().round(w.at.data(), s.data(), b.data(), count, t.data(), p.data(), width, 15.f, codes.data(), errors.data());
        for (int i = 0; i < count; i++) {
            std::vector<float> x = w.rows[size_t(i)];
            for (int64_t j = 0; j < width; j++) {
                const float q = clipped(std::nearbyint((x[j] - b[i]) / s[i]), 15.f), e = (x[j] - (q * s[i] + b[i])) * p[j];
                CHECK(q == codes[i * width + j] && e == errors[i * width + j]);
                for (int64_t m = j + 1; m < width; m++) x[m] = x[m] - e * t[j * width + m];
            }
        }
    });
}

TEST(steps_have_the_bits_of_the_formulas) {
    Random random(2);
    each([&](int64_t width, int count) {
        const Block r(random, count, width);
        Block old(random, count, width);
        for (auto& row : old.rows)
            for (float& x : row) x = std::nearbyint(7.f + 7.f * x);
        std::vector<float> s = random.values(size_t(count)), h = random.values(size_t(width * width));
        for (float& x : s) x = 0.1f + std::abs(x);
        for (int64_t j = 0; j < width; j++) h[j * width + j] = 1.f + std::abs(h[j * width + j]);
        std::vector<float> codes(size_t(count * width)), left(size_t(count * width));
        feedback().step(old.at.data(), r.at.data(), s.data(), count, h.data(), width, 15.f, codes.data(), left.data());
        for (int i = 0; i < count; i++) {
            std::vector<float> x = r.rows[size_t(i)];
            for (int64_t j = 0; j < width; j++) {
                const float before = old.rows[size_t(i)][j], scaled = h[j * width + j] * s[i];
                const float q = clipped(std::nearbyint(before + x[j] / scaled), 15.f), change = (q - before) * s[i];
                CHECK(q == codes[i * width + j]);
                for (int64_t m = 0; m < width; m++) x[m] = x[m] - change * h[j * width + m];
            }
            for (int64_t j = 0; j < width; j++) CHECK(x[j] == left[i * width + j]);
        }
    });
}
