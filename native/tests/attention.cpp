#include "kernels/attention.h"

#include <cmath>

#include "core/pool.h"
#include "kernels/attention_run.h"
#include "tests/check.h"

using namespace optiq;

namespace {

// Values that every float type holds exactly, in memory of exactly their size, so that a read beyond the end is seen.
struct Values {
    std::vector<float> wide;
    std::vector<uint16_t> half;

    Values(size_t count, Float type, uint64_t seed) : wide(count), half(type == Float::f32 ? 0 : count) {
        test::Random random(seed);
        for (size_t i = 0; i < count; i++) {
            const int steps = int(random.bits() % 33) - 16;  // sixteenths: four bits
            wide[i] = float(steps) / 16.f;
            if (type == Float::bf16) half[i] = float_to_bf16(wide[i]);
            if (type == Float::f16) half[i] = narrow(wide[i]);
        }
    }

    const void* data() const { return half.empty() ? static_cast<const void*>(wide.data()) : half.data(); }

    static uint16_t narrow(float x) {
        if (x == 0.f) return 0;
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        return uint16_t((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10)));
    }
};

struct Example {
    Attention a;
    Values q, k, v, dout;
    std::vector<uint8_t> seen;
    std::vector<float> out, logsumexp;
    std::vector<uint16_t> half_out;

    Example(Float type, int64_t heads, int64_t groups, int64_t queries, int64_t keys, int64_t width, int64_t value_width, int masked)
        : q(size_t(heads * queries * width), type, 1), k(size_t(groups * keys * width), type, 2),
          v(size_t(groups * keys * value_width), type, 3), dout(size_t(heads * queries * value_width), type, 4),
          out(size_t(heads * queries * value_width)), logsumexp(size_t(heads * queries)), half_out(out.size()) {
        a.type = type;
        a.batches = 1, a.heads = heads, a.groups = groups, a.queries = queries, a.keys = keys;
        a.width = width, a.value_width = value_width, a.scale = 0.3f;
        a.q = {q.data(), heads * queries * width, queries * width, width};
        a.k = {k.data(), groups * keys * width, keys * width, width};
        a.v = {v.data(), groups * keys * value_width, keys * value_width, value_width};
        a.causal = masked == 1;
        a.window = masked == 1 ? 50 : 0;
        if (masked == 2) {
            test::Random random(5);
            for (int64_t i = 0; i < queries * keys; i++) seen.push_back(i / keys == 1 ? 0 : random.bits() % 3 == 0);
            a.mask_kind = MaskKind::boolean;
            a.mask = {seen.data(), 0, 0, keys};
        }
        a.out = type == Float::f32 ? static_cast<void*>(out.data()) : half_out.data();
        a.logsumexp = logsumexp.data();
    }

    bool visible(int64_t query, int64_t key) const {
        const int64_t position = a.keys - a.queries + query;
        if (a.causal && (key > position || key + a.window <= position)) return false;
        return seen.empty() || seen[size_t(query * a.keys + key)];
    }

    // The weights of a row.
    std::vector<double> weights(int64_t head, int64_t query) const {
        std::vector<double> w(size_t(a.keys), -INFINITY);
        const float* x = &q.wide[size_t((head * a.queries + query) * a.width)];
        double most = -INFINITY, total = 0;
        for (int64_t j = 0; j < a.keys; j++) {
            if (!visible(query, j)) continue;
            double s = 0;
            for (int64_t d = 0; d < a.width; d++) s += double(x[d]) * key(head, j)[d];
            most = std::max(most, w[size_t(j)] = s * double(a.scale));
        }
        for (auto& s : w) total += s = most == -INFINITY ? 1. : std::exp(s - most);
        for (auto& s : w) s /= total;
        return w;
    }

    const float* key(int64_t head, int64_t j) const { return &k.wide[size_t((head / (a.heads / a.groups) * a.keys + j) * a.width)]; }
    const float* value(int64_t head, int64_t j) const {
        return &v.wide[size_t((head / (a.heads / a.groups) * a.keys + j) * a.value_width)];
    }

    float found(size_t i) const {
        if (a.type == Float::f32) return out[i];
        if (a.type == Float::bf16) return bf16_to_float(half_out[i]);
        const int exponent = half_out[i] >> 10 & 31;
        const float size = std::ldexp(float((exponent ? 1024 : 0) + (half_out[i] & 1023)), (exponent ? exponent : 1) - 25);
        return half_out[i] & 0x8000 ? -size : size;
    }

    double worst() const {
        double most = 0;
        for (int64_t h = 0; h < a.heads; h++)
            for (int64_t l = 0; l < a.queries; l++) {
                const auto w = weights(h, l);
                for (int64_t d = 0; d < a.value_width; d++) {
                    double exact = 0;
                    for (int64_t j = 0; j < a.keys; j++) exact += w[size_t(j)] * value(h, j)[d];
                    most = std::max(most, std::fabs(exact - found(size_t((h * a.queries + l) * a.value_width + d))));
                }
            }
        return most;
    }
};

double tolerance(Float type) { return type == Float::f32 ? 2e-6 : type == Float::f16 ? 1e-3 : 8e-3; }

}  // namespace

TEST(attention_is_its_definition_and_does_not_depend_on_threads) {
    test::each_level([] {
        for (const Float type : {Float::f32, Float::f16, Float::bf16})
            for (const int masked : {0, 1, 2})
                for (const int64_t queries : {1, 5, 16, 17, 45})
                    for (const int64_t width : {32, 24}) {
                        Example one(type, 4, 2, queries, 277, width, width == 32 ? 64 : 40, masked);
                        Example other(type, 4, 2, queries, 277, width, width == 32 ? 64 : 40, masked);
                        set_pool_threads(1);
                        run_attention(one.a);
                        set_pool_threads(3);
                        run_attention(other.a);
                        CHECK(one.out == other.out && one.half_out == other.half_out && one.logsumexp == other.logsumexp);
                        CHECK(one.worst() <= tolerance(type));
                    }
    });
    set_pool_threads(1);
}

TEST(derivatives_of_attention_are_their_definition) {
    set_pool_threads(3);
    test::each_level([] {
        for (const int masked : {0, 1, 2})
            for (const int64_t width : {32, 20}) {
                Example x(Float::f32, 4, 2, 70, 90, width, 48, masked);
                const Attention& a = x.a;
                run_attention(a);
                std::vector<float> dq(x.q.wide.size()), dk(x.k.wide.size()), dv(x.v.wide.size());
                AttentionGradient g;
                g.forward = a;
                g.dout = {x.dout.data(), 0, a.queries * a.value_width, a.value_width};
                g.dq = dq.data(), g.dk = dk.data(), g.dv = dv.data();
                run_attention_gradient(g);
                std::vector<double> eq(dq.size()), ek(dk.size()), ev(dv.size());
                for (int64_t h = 0; h < a.heads; h++)
                    for (int64_t l = 0; l < a.queries; l++) {
                        const auto w = x.weights(h, l);
                        const float* d = &x.dout.wide[size_t((h * a.queries + l) * a.value_width)];
                        const size_t query = size_t((h * a.queries + l) * a.width);
                        std::vector<double> dw(size_t(a.keys), 0.);
                        double share = 0;
                        for (int64_t j = 0; j < a.keys; j++) {
                            for (int64_t c = 0; c < a.value_width; c++) {
                                dw[size_t(j)] += double(d[c]) * x.value(h, j)[c];
                                ev[size_t(x.value(h, j) - x.v.wide.data() + c)] += w[size_t(j)] * double(d[c]);
                            }
                            share += w[size_t(j)] * dw[size_t(j)];
                        }
                        for (int64_t j = 0; j < a.keys; j++) {
                            if (!x.visible(l, j)) continue;
                            const double ds = double(a.scale) * w[size_t(j)] * (dw[size_t(j)] - share);
                            for (int64_t c = 0; c < a.width; c++) {
                                eq[query + size_t(c)] += ds * x.key(h, j)[c];
                                ek[size_t(x.key(h, j) - x.k.wide.data() + c)] += ds * double(x.q.wide[query + size_t(c)]);
                            }
                        }
                    }
                for (size_t i = 0; i < dq.size(); i++) CHECK(std::fabs(dq[i] - eq[i]) <= 2e-5);
                for (size_t i = 0; i < dk.size(); i++) CHECK(std::fabs(dk[i] - ek[i]) <= 2e-5);
                for (size_t i = 0; i < dv.size(); i++) CHECK(std::fabs(dv[i] - ev[i]) <= 2e-5);
            }
    });
    set_pool_threads(1);
}
