// Gated DeltaNet against its formulas in double, from exactly sized buffers: the mixer, and the derivatives of its parts along a
// random direction.

#include <cmath>

#include "core/scratch.h"
#include "kernels/delta_run.h"
#include "kernels/delta_rule.h"
#include "kernels/mixing.h"
#include "tests/check.h"

using namespace optiq;
using test::each_level;
using test::Random;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

bool near(double found, double expected, double bound) { return std::abs(found - expected) <= bound * (1 + std::abs(expected)); }

Doubles wide(const Floats& x) { return Doubles(x.begin(), x.end()); }

// Numbers around a middle.
Floats around(Random& random, int64_t count, float middle = 0.f, float reach = 1.f) {
    Floats x = random.values(size_t(count));
    for (auto& value : x) value = middle + reach * value;
    return x;
}

struct Inputs {
    Doubles q, k, v, g, beta, state;
};

// The recurrence; y [B, L, Hv, Dv], and `in.state` becomes the last one.
Doubles recurrence(const DeltaShape& s, Inputs& in) {
    Doubles y(size_t(s.B * s.L * s.Hv * s.Dv));
    for (int64_t b = 0; b < s.B; b++)
        for (int64_t t = 0; t < s.L; t++)
            for (int64_t h = 0; h < s.Hv; h++) {
                const int64_t token = b * s.L + t, key = (token * s.Hk + h / s.group()) * s.Dk, gate = token * s.Hv + h;
                for (int64_t r = 0; r < s.Dv; r++) {
                    double* row = &in.state[size_t(((b * s.Hv + h) * s.Dv + r) * s.Dk)];
                    double seen = 0, out = 0;
                    for (int64_t c = 0; c < s.Dk; c++) seen += (row[c] *= in.g[gate]) * in.k[key + c];
                    const double u = in.beta[gate] * (in.v[gate * s.Dv + r] - seen);
                    for (int64_t c = 0; c < s.Dk; c++) out += (row[c] += u * in.k[key + c]) * in.q[key + c];
                    y[gate * s.Dv + r] = out;
                }
            }
    return y;
}

// (f(x + h d) - f(x - h d)) / 2 h for a function of several arrays.
template <class F>
double slope(const std::vector<Floats>& x, const std::vector<Floats>& d, const F& f) {
    const double h = 1e-5;
    std::vector<Doubles> up, down;
    for (size_t i = 0; i < x.size(); i++) {
        up.push_back(wide(x[i]));
        down.push_back(wide(x[i]));
        for (size_t j = 0; j < x[i].size(); j++) up[i][j] += h * d[i][j], down[i][j] -= h * d[i][j];
    }
    return (f(up) - f(down)) / (2 * h);
}

double inner(const Doubles& x, const Floats& y) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); i++) sum += x[i] * y[i];
    return sum;
}

double inner(const std::vector<Floats>& x, const std::vector<Floats>& y) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); i++) sum += inner(wide(x[i]), y[i]);
    return sum;
}

constexpr DeltaShape kShapes[] = {
    {1, 1, 1, 1, 1, 1}, {2, 5, 1, 3, 5, 3}, {1, 16, 2, 2, 16, 32}, {2, 17, 1, 2, 24, 17}, {1, 130, 1, 2, 33, 16}};

}  // namespace

TEST(the_mixer_agrees_with_double) {
    Random random(21);
    each_level([&] {
        for (const auto& s : kShapes)
            for (const int64_t K : {2, 4}) {
                const int64_t C = 2 * s.Hk * s.Dk + s.Hv * s.Dv, before = K - 1;
                const Floats x = around(random, s.B * s.L * C), tail = around(random, s.B * before * C);
                const Floats taps = around(random, C * K), z = around(random, s.B * s.L * s.Hv * s.Dv);
                const Floats a = around(random, s.B * s.L * s.Hv), b = around(random, s.B * s.L * s.Hv);
                const Floats rate = around(random, s.Hv);
                const Floats bias = around(random, s.Hv, -1.f), norm = around(random, s.Dv, 1.f, 0.2f);
                const Floats state = around(random, s.B * s.Hv * s.Dv * s.Dk);
                std::vector<uint8_t> mask(size_t(s.B * s.L));
                for (auto& m : mask) m = random.value() < 0.6f;
                Floats y(z.size()), new_tail(tail.size()), new_state(state.size());
                Mixer m;
                m.shape = s;
                m.taps_count = K;
                m.qkv = {x.data(), Float::f32, s.L * C, C};
                m.z = {z.data(), Float::f32, s.L * s.Hv * s.Dv, s.Hv * s.Dv};
                m.a = {a.data(), Float::f32, s.L * s.Hv, s.Hv};
                m.b = {b.data(), Float::f32, s.L * s.Hv, s.Hv};
                m.tail = {tail.data(), Float::f32, before * C, C};
                m.taps = taps.data();
                m.a_log = rate.data(), m.dt_bias = bias.data(), m.norm = norm.data();
                m.mask = mask.data(), m.state = state.data();
                m.y = y.data(), m.new_tail = new_tail.data(), m.new_state = new_state.data();
                run_mix(m);

                Inputs in;
                in.state = wide(state);
                for (int64_t token = 0; token < s.B * s.L; token++) {
                    Doubles row(size_t(C), 0.);
                    for (int64_t c = 0; c < C; c++) {
                        for (int64_t j = 0; j < K; j++) {
                            const int64_t p = token % s.L + j - before, batch = token / s.L;
                            if (p < 0) row[c] += double(tail[(batch * before + p + before) * C + c]) * taps[c * K + j];
                            else if (mask[batch * s.L + p]) row[c] += double(x[(batch * s.L + p) * C + c]) * taps[c * K + j];
                        }
                        row[c] *= sigmoid(row[c]);
                    }
                    for (int64_t h = 0; h < 2 * s.Hk; h++) {
                        double squares = 1e-6;
                        for (int64_t c = 0; c < s.Dk; c++) squares += row[h * s.Dk + c] * row[h * s.Dk + c];
                        const double length = std::sqrt(squares * (h < s.Hk ? double(s.Dk) : 1.));
                        for (int64_t c = 0; c < s.Dk; c++) (h < s.Hk ? in.q : in.k).push_back(row[h * s.Dk + c] / length);
                    }
                    in.v.insert(in.v.end(), row.begin() + 2 * s.Hk * s.Dk, row.end());
                    for (int64_t h = 0; h < s.Hv; h++) {
                        const int64_t at = token * s.Hv + h;
                        const double pace = std::exp(double(rate[h])) * std::log1p(std::exp(double(a[at]) + bias[h]));
                        in.g.push_back(mask[token] ? std::exp(-pace) : 1.);
                        in.beta.push_back(mask[token] ? sigmoid(b[at]) : 0.);
                    }
                }
                Doubles o = recurrence(s, in);
                for (int64_t r = 0; r < s.B * s.L * s.Hv; r++) {
                    double squares = 0;
                    for (int64_t c = 0; c < s.Dv; c++) squares += o[r * s.Dv + c] * o[r * s.Dv + c] / double(s.Dv);
                    for (int64_t c = 0; c < s.Dv; c++) {
                        const int64_t at = r * s.Dv + c;
                        CHECK(near(y[at], o[at] / std::sqrt(squares + 1e-6) * norm[c] * z[at] * sigmoid(z[at]), 1e-4));
                    }
                }
                for (size_t i = 0; i < state.size(); i++) CHECK(near(new_state[i], in.state[i], 1e-5));
                for (int64_t b2 = 0; b2 < s.B; b2++)
                    for (int64_t j = 0; j < before; j++) {
                        const int64_t p = s.L + j - before;
                        for (int64_t c = 0; c < C; c++) {
                            const float kept = p < 0                  ? tail[(b2 * before + s.L + j) * C + c]
                                               : mask[b2 * s.L + p] ? x[(b2 * s.L + p) * C + c]
                                                                    : 0.f;
                            CHECK(new_tail[(b2 * before + j) * C + c] == kept);
                        }
                    }
            }
    });
}

TEST(the_rule_and_its_derivative_agree_with_double) {
    Random random(22);
    each_level([&] {
        for (const auto& s : kShapes) {
            const int64_t keys = s.B * s.L * s.Hk * s.Dk, gates = s.B * s.L * s.Hv, values = gates * s.Dv;
            const std::vector<Floats> x{around(random, keys, 0.f, 0.3f), around(random, keys, 0.f, 0.3f), around(random, values),
                                        around(random, gates, 0.75f, 0.2f), around(random, gates, 0.5f, 0.4f),
                                        around(random, s.B * s.Hv * s.Dv * s.Dk)};
            std::vector<Floats> along, found;
            for (const auto& part : x) along.push_back(around(random, int64_t(part.size()))), found.emplace_back(part.size());
            const Floats dy = around(random, values), d_state = around(random, int64_t(x[5].size()));
            const int64_t chunks = (s.L + kChunk - 1) / kChunk;
            Floats y(dy.size()), new_state(x[5].size()), starts(size_t(s.B * s.Hv * chunks * s.Dk * padded(s.Dv)));

            Rule r;
            r.shape = s;
            r.q = x[0].data(), r.k = x[1].data(), r.v = x[2].data();
            r.g = x[3].data(), r.beta = x[4].data(), r.state = x[5].data();
            r.key_row = s.Hk * s.Dk, r.value_row = s.Hv * s.Dv;
            r.y = y.data(), r.new_state = new_state.data();
            Inputs in{wide(x[0]), wide(x[1]), wide(x[2]), wide(x[3]), wide(x[4]), wide(x[5])};
            const Doubles expected = recurrence(s, in);
            for (float* kept : {(float*)nullptr, starts.data()}) {
                r.starts = kept;
                for (int64_t task = 0; task < s.B * s.Hk; task++) {
                    Scratch scratch(size_t(rule().floats(r, false)) * sizeof(float));
                    rule().forward(r, task / s.Hk, task % s.Hk, scratch.as<float>());
                }
                for (size_t i = 0; i < y.size(); i++) CHECK(near(y[i], expected[i], 1e-5));
                for (size_t i = 0; i < new_state.size(); i++) CHECK(near(new_state[i], in.state[i], 1e-5));
            }

            RuleGradients g;
            g.dy = dy.data(), g.d_new_state = d_state.data();
            g.dq = found[0].data(), g.dk = found[1].data(), g.dv = found[2].data(), g.dg = found[3].data();
            g.d_beta = found[4].data(), g.d_state = found[5].data();
            for (int64_t task = 0; task < s.B * s.Hk; task++) {
                Scratch scratch(size_t(rule().floats(r, true)) * sizeof(float));
                rule().backward(r, g, task / s.Hk, task % s.Hk, scratch.as<float>());
            }
            const double wanted = slope(x, along, [&](std::vector<Doubles>& p) {
                Inputs point{p[0], p[1], p[2], p[3], p[4], p[5]};
                const Doubles out = recurrence(s, point);
                return inner(out, dy) + inner(point.state, d_state);
            });
            CHECK(near(inner(found, along), wanted, 1e-4));
        }
    });
}

TEST(the_short_convolution_and_its_derivative_agree_with_double) {
    Random random(23);
    each_level([&] {
        for (const int64_t C : {1, 17, 70})
            for (const int64_t K : {1, 4, 7})
                for (const bool causal : {false, true})
                    for (const int64_t L : {1, 12}) {
                        const int64_t B = 2, before = K - 1;
                        const std::vector<Floats> x{around(random, B * (causal ? L : L + before) * C), around(random, C * K),
                                                    around(random, causal ? B * before * C : 0)};
                        std::vector<Floats> along, found;
                        for (const auto& part : x) {
                            along.push_back(around(random, int64_t(part.size())));
                            found.emplace_back(part.size());
                        }
                        const Floats dy = around(random, B * L * C);
                        Floats y(dy.size());
                        Conv f{B, L, C, K, true, Float::f32, Float::f32, causal};
                        f.x = x[0].data(), f.w = x[1].data(), f.tail = causal ? x[2].data() : nullptr;
                        for (int64_t task = 0; task < (C + kConvChannels - 1) / kConvChannels; task++) {
                            mixing().conv(f, task, y.data());
                            mixing().conv_backward(f, task, dy.data(), found[0].data(), causal ? found[2].data() : nullptr,
                                                   found[1].data());
                        }
                        const auto forward = [&](const std::vector<Doubles>& p) {
                            Doubles out(size_t(B * L * C), 0.);
                            for (int64_t b = 0; b < B; b++)
                                for (int64_t t = 0; t < L; t++)
                                    for (int64_t c = 0; c < C; c++) {
                                        double sum = 0;
                                        for (int64_t j = 0; j < K; j++) {
                                            const int64_t at = causal ? t + j - before : t + j;
                                            sum += p[1][c * K + j] *
                                                   (at < 0 ? p[2][(b * before + at + before) * C + c]
                                                           : p[0][(b * (causal ? L : L + before) + at) * C + c]);
                                        }
                                        out[(b * L + t) * C + c] = sum * sigmoid(sum);
                                    }
                            return out;
                        };
                        const Doubles expected = forward({wide(x[0]), wide(x[1]), wide(x[2])});
                        for (size_t i = 0; i < y.size(); i++) CHECK(near(y[i], expected[i], 2e-6));
                        const auto loss = [&](const std::vector<Doubles>& p) { return inner(forward(p), dy); };
                        const double wanted = slope(x, along, loss);
                        CHECK(near(inner(found, along), wanted, 1e-4));
                    }
    });
}

TEST(the_gated_norm_and_its_derivative_agree_with_double) {
    Random random(24);
    each_level([&] {
        for (const int64_t D : {1, 16, 21, 64})
            for (const int64_t rows : {1, 300}) {
                const std::vector<Floats> x{around(random, rows * D), around(random, rows * D), around(random, D, 1.f)};
                std::vector<Floats> along, found;
                for (const auto& part : x) along.push_back(around(random, int64_t(part.size()))), found.emplace_back(part.size());
                const Floats dy = around(random, rows * D);
                Floats y(dy.size()), part(x[2].size());
                const GatedNorm f{rows, D, 1e-2f, Float::f32, x[0].data(), x[1].data(), x[2].data()};
                for (int64_t task = 0; task < (rows + kNormRows - 1) / kNormRows; task++) {
                    mixing().gated_norm(f, task, y.data());
                    mixing().gated_norm_backward(f, task, dy.data(), found[0].data(), found[1].data(), part.data());
                    for (int64_t c = 0; c < D; c++) found[2][c] += part[c];
                }
                const auto forward = [&](const std::vector<Doubles>& p) {
                    Doubles out(size_t(rows * D));
                    for (int64_t r = 0; r < rows; r++) {
                        double squares = double(1e-2f);
                        for (int64_t c = 0; c < D; c++) squares += p[0][r * D + c] * p[0][r * D + c] / double(D);
                        for (int64_t c = 0; c < D; c++) {
                            const int64_t at = r * D + c;
                            out[at] = p[2][c] * p[0][at] / std::sqrt(squares) * p[1][at] * sigmoid(p[1][at]);
                        }
                    }
                    return out;
                };
                const Doubles expected = forward({wide(x[0]), wide(x[1]), wide(x[2])});
                for (size_t i = 0; i < y.size(); i++) CHECK(near(y[i], expected[i], 5e-6));
                const double wanted = slope(x, along, [&](const std::vector<Doubles>& p) { return inner(forward(p), dy); });
                CHECK(near(inner(found, along), wanted, 2e-4));
            }
    });
}
