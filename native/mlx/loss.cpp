// softmax, logsumexp and cross entropy along the last axis, as MLX operations on the CPU.

#include "kernels/loss.h"
#include "kernels/sums.h"

#include <cmath>

#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

constexpr int64_t kPiece = 4096;  // values

inline void narrow_to(float value, Float type, void* to) { sums().convert(&value, 1, type, to); }

inline float widened(const void* from, Float type) {
    float value = 0.f;
    sums().add(from, 1, type, &value);
    return value;
}

struct Sum {
    float most, total;
    float log() const { return most == INFINITY ? most : most + std::log(total); }
};

// Maximum and sum of exponentials of every row.
void row_sums(const Rows& x, Float type, Sum* sums) {
    const int64_t n = x.width(), cuts = std::max<int64_t>(1, (n + kPiece - 1) / kPiece), item = float_bytes(type);
    Scratch scratch(size_t(x.count() * cuts) * sizeof(Sum));
    Sum* parts = scratch.as<Sum>();
    by_rows(x.count() * cuts, std::min(n, kPiece) * item, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int64_t start = i % cuts * kPiece;
            loss().piece(x.at(i / cuts) + start * item, std::min(kPiece, n - start), type, &parts[i].most, &parts[i].total);
        }
    });
    for (int64_t r = 0; r < x.count(); r++) {
        const Sum* part = parts + r * cuts;
        Sum all = part[0];
        for (int64_t c = 1; c < cuts; c++) {
            if (part[c].total == 0.f) continue;  // all -inf
            const bool higher = part[c].most > all.most;
            const Sum &high = higher ? part[c] : all, &low = higher ? all : part[c];
            all = {high.most, high.total + (low.total ? low.total * std::exp(low.most - high.most) : 0.f)};
        }
        sums[r] = all;
    }
}

// Calls f(row, start, n) for the pieces of all rows.
template <class F>
void row_pieces(const Rows& x, Float type, const F& f) {
    const int64_t n = x.width(), cuts = (n + kPiece - 1) / kPiece;
    by_rows(x.count() * cuts, std::min(n, kPiece) * float_bytes(type), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int64_t start = i % cuts * kPiece;
            f(i / cuts, start, std::min(kPiece, n - start));
        }
    });
}

void check(const mx::array& x, const char* name) {
    if (x.ndim() == 0 || x.shape(-1) == 0) throw std::invalid_argument(std::string(name) + ": the last axis is empty");
}

mx::Shape rows_of(const mx::array& x) { return mx::Shape(x.shape().begin(), x.shape().end() - 1); }

mx::array softmax(const mx::array& x) {
    check(x, "softmax");
    const auto type = float_type(x, x);
    const auto run = [](const Arrays& in, Arrays& out) {
        const Rows x(in[0]);
        const Float type = float_of(in[0]);
        const int64_t item = float_bytes(type);
        Scratch scratch(size_t(x.count()) * sizeof(Sum) + 64);
        Sum* sums = scratch.as<Sum>();
        row_sums(x, type, sums);
        char* y = data<char>(out[0]);
        row_pieces(x, type, [&](int64_t r, int64_t start, int64_t n) {
            loss().exponentials(x.at(r) + start * item, n, sums[r].most, 1.f / sums[r].total, type,
                                y + (r * x.width() + start) * item);
        });
    };
    const auto back = [](const Arrays& in, Arrays& out) {
        const Rows y(in[0]), g(in[1]);
        const Float type = float_of(in[0]);
        const int64_t bytes = y.width() * float_bytes(type);
        char* dx = data<char>(out[0]);
        by_rows(y.count(), bytes, [&](int64_t first, int64_t last) {
            for (int64_t r = first; r < last; r++) loss().softmax_vjp(y.at(r), g.at(r), y.width(), type, dx + r * bytes);
        });
    };
    const auto vjp = [back](const Arrays&, const Arrays& g, const std::vector<int>&, const Arrays& y) {
        auto op = std::make_shared<Op>(cpu_stream(), "OptiqSoftmaxVjp", back);
        return Arrays{make_one(y[0].shape(), y[0].dtype(), op, {y[0], g[0]})};
    };
    return make_one(x.shape(), type, std::make_shared<Op>(cpu_stream(), "OptiqSoftmax", run, vjp), {as(x, type)});
}

// g exp(x - logsumexp), less g at the target where there are targets. Inputs: x, logsumexp (float32), g, perhaps targets.
void weighted_softmax(const Arrays& in, Arrays& out) {
    const Rows x(in[0]), lse(in[1]), g(in[2]);
    const Float type = float_of(in[0]);
    const int64_t item = float_bytes(type), width = x.width();
    const float *logs = data<float>(in[1]), *weights = data<float>(in[2]);
    const int32_t* targets = in.size() > 3 ? data<int32_t>(in[3]) : nullptr;
    char* dx = data<char>(out[0]);
    row_pieces(x, type, [&](int64_t r, int64_t start, int64_t n) {
        char* to = dx + (r * width + start) * item;
        const char* from = x.at(r) + start * item;
        loss().exponentials(from, n, logs[r], weights[r], type, to);
        if (!targets) return;
        const int64_t at = (targets[r] < 0 ? targets[r] + width : targets[r]) - start;
        if (at < 0 || at >= n) return;
        const float p = std::exp(widened(from + at * item, type) - logs[r]);
        narrow_to(weights[r] * (p - 1.f), type, to + at * item);
    });
}

mx::array weighted(const char* name, const mx::array& x, const mx::array& lse, const mx::array& g, const mx::array* targets) {
    Arrays inputs{x, dense(lse, mx::float32), dense(g, mx::float32)};
    if (targets) inputs.push_back(dense(*targets));
    return make_one(x.shape(), x.dtype(), std::make_shared<Op>(cpu_stream(), name, weighted_softmax), inputs);
}

// The logarithm in the type of x for the caller, and in float32 for the derivative.
mx::array logsumexp(const mx::array& x) {
    check(x, "logsumexp");
    const auto type = float_type(x, x);
    const auto run = [](const Arrays& in, Arrays& out) {
        const Rows x(in[0]);
        const Float type = float_of(in[0]);
        Scratch scratch(size_t(x.count()) * sizeof(Sum) + 64);
        Sum* sums = scratch.as<Sum>();
        row_sums(x, type, sums);
        for (int64_t r = 0; r < x.count(); r++) {
            data<float>(out[1])[r] = sums[r].log();
            narrow_to(sums[r].log(), type, data<char>(out[0]) + r * float_bytes(type));
        }
    };
    const auto vjp = [](const Arrays& in, const Arrays& g, const std::vector<int>&, const Arrays& out) {
        return Arrays{weighted("OptiqLogsumexpVjp", in[0], out[1], g[0], nullptr)};
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqLogsumexp", run, vjp);
    return make({rows_of(x), rows_of(x)}, {type, mx::float32}, op, {as(x, type)})[0];
}

mx::array cross_entropy(const mx::array& logits, const mx::array& targets) {
    check(logits, "cross_entropy");
    if (targets.shape() != rows_of(logits)) throw std::invalid_argument("cross_entropy: targets must be one for each row of logits");
    const auto type = float_type(logits, logits);
    const auto run = [](const Arrays& in, Arrays& out) {
        const Rows x(in[0]);
        const Float type = float_of(in[0]);
        Scratch scratch(size_t(x.count()) * sizeof(Sum) + 64);
        Sum* sums = scratch.as<Sum>();
        row_sums(x, type, sums);
        for (int64_t r = 0; r < x.count(); r++) {
            const int64_t target = data<int32_t>(in[1])[r], at = target < 0 ? target + x.width() : target;
            const bool inside = at >= 0 && at < x.width();  // an index that is none must show, and must not read
            const float score = inside ? widened(x.at(r) + at * float_bytes(type), type) : NAN;
            data<float>(out[1])[r] = sums[r].log();
            data<float>(out[0])[r] = sums[r].log() - score;
        }
    };
    const auto vjp = [](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays& out) {
        if (argnums.size() != 1 || argnums[0] != 0) throw std::invalid_argument("cross_entropy has no derivative for targets");
        return Arrays{weighted("OptiqCrossEntropyVjp", in[0], out[1], g[0], &in[1])};
    };
    auto op = std::make_shared<Op>(cpu_stream(), "OptiqCrossEntropy", run, vjp);
    return make({rows_of(logits), rows_of(logits)}, {mx::float32, mx::float32}, op,
                {as(logits, type), dense(targets, mx::int32)})[0];
}

mx::array divergence(const mx::array& reference, const mx::array& candidate) {
    check(reference, "divergence");
    if (reference.shape() != candidate.shape()) throw std::invalid_argument("divergence: the logits differ in shape");
    const auto type = float_type(reference, candidate);
    const auto run = [](const Arrays& in, Arrays& out) {
        const Rows x(in[0]), y(in[1]);
        const Float type = float_of(in[0]);
        const int64_t rows = x.count(), item = float_bytes(type), cuts = (x.width() + kPiece - 1) / kPiece;
        Scratch scratch(size_t(rows) * (2 * sizeof(Sum) + size_t(cuts) * 4) + 64);
        Sum *first = scratch.as<Sum>(), *second = first + rows;
        float* parts = reinterpret_cast<float*>(second + rows);
        row_sums(x, type, first);
        row_sums(y, type, second);
        row_pieces(x, type, [&](int64_t r, int64_t start, int64_t n) {
            parts[r * cuts + start / kPiece] = loss().divergence(x.at(r) + start * item, y.at(r) + start * item, n,
                                                                 first[r].log(), second[r].log(), type);
        });
        for (int64_t r = 0; r < rows; r++) {
            double total = 0;
            for (int64_t c = 0; c < cuts; c++) total += parts[r * cuts + c];
            data<float>(out[0])[r] = float(total);
        }
    };
    return make_one(rows_of(reference), mx::float32, std::make_shared<Op>(cpu_stream(), "OptiqDivergence", run),
                    {as(reference, type), as(candidate, type)});
}

}  // namespace

void bind_loss(nb::module_& m) {
    m.def("softmax", &softmax, "x"_a, "softmax along the last axis.");
    m.def("logsumexp", &logsumexp, "x"_a, "logsumexp along the last axis, which goes.");
    m.def("divergence", &divergence, "reference"_a, "candidate"_a,
          "Kullback-Leibler divergence per row of two arrays of logits [..., V], float32, nats.");
    m.def("cross_entropy", &cross_entropy, "logits"_a, "targets"_a,
          "logsumexp(logits) - logits[target] per row, float32: logits [..., V], targets [...].");
}

}  // namespace optiq
