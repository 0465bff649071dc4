// Rotary position embedding, as an MLX operation on the CPU.

#include "kernels/rotary.h"

#include <cmath>
#include <variant>

#include <nanobind/stl/variant.h>

#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {

std::vector<float> inverse_frequencies(double base, int64_t half) {
    std::vector<float> inverse;
    for (int64_t i = 0; i < half; i++) inverse.push_back(float(std::exp(-double(i) * std::log(base) / double(half))));
    return inverse;
}

namespace {

struct Rope {
    int64_t half;
    bool traditional;
    float scale;
    float turn;                          // -1 for the derivative
    std::vector<float> inverse;          // from a base; empty where frequencies are an input
    int offset;                          // where offsets are no input
    bool has_offsets, has_frequencies;   // inputs 1 and then 2
};

// The table of angles [offsets, L, half], cosines then sines.
void run(const Rope& rope, const Arrays& in, Arrays& out) {
    const Rows x(in[0]);
    const Float type = float_of(in[0]);
    const int64_t width = x.width(), bytes = width * float_bytes(type), length = in[0].shape(-2), half = rope.half;
    const int64_t offsets = rope.has_offsets ? int64_t(in[1].size()) : 1, per_offset = x.count() / offsets;
    std::vector<float> inverse = rope.inverse;
    if (rope.has_frequencies) {
        const auto& given = in[1 + rope.has_offsets];
        for (int64_t i = 0; i < half; i++) inverse.push_back(1.f / data<float>(given)[i * given.strides()[0]]);
    }
    Scratch scratch(size_t(offsets * length * half * 8) + 64);
    float *cosines = scratch.as<float>(), *sines = cosines + offsets * length * half;
    by_rows(offsets * length, half * 8, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int64_t which = i / length;
            const float start = rope.has_offsets ? float(data<int32_t>(in[1])[which * (offsets > 1 ? in[1].strides()[0] : 1)])
                                                 : float(rope.offset);
            rotary().angles((float(i % length) + start) * rope.scale, inverse.data(), half, rope.turn, cosines + i * half,
                            sines + i * half);
        }
    });
    char* y = data<char>(out[0]);
    by_rows(x.count(), bytes, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            const int64_t at = (r / per_offset * length + r % length) * half;
            rotary().rotate(x.at(r), cosines + at, sines + at, half, width, rope.traditional, type, y + r * bytes);
        }
    });
}

mx::array turned(const Rope& rope, Arrays inputs) {
    const auto shape = inputs[0].shape();
    const auto type = inputs[0].dtype();
    auto op = std::make_shared<Op>(
        cpu_stream(), "OptiqRope", [=](const Arrays& in, Arrays& out) { run(rope, in, out); },
        [=](const Arrays& in, const Arrays& g, const std::vector<int>& argnums, const Arrays&) {
            if (argnums.size() != 1 || argnums[0] != 0)
                throw std::invalid_argument("rope has no derivative for offsets or frequencies");
            Rope back = rope;
            back.turn = -rope.turn;
            Arrays all = in;
            all[0] = g[0];
            return Arrays{turned(back, all)};
        });
    return make_one(shape, type, op, std::move(inputs));
}

mx::array rope(const mx::array& x, int dims, bool traditional, std::optional<float> base, float scale,
               const std::variant<int, mx::array>& offset, const std::optional<mx::array>& frequencies) {
    if (x.ndim() < 3) throw std::invalid_argument("rope: x needs at least 3 axes");
    if (dims <= 0 || dims % 2 || dims > x.shape(-1)) throw std::invalid_argument("rope: dims must be even and within the last axis");
    if (base.has_value() == frequencies.has_value()) throw std::invalid_argument("rope: give either a base or frequencies");
    if (frequencies && (frequencies->ndim() != 1 || frequencies->shape(0) != dims / 2))
        throw std::invalid_argument("rope: frequencies must be one for each pair");
    Rope rope{dims / 2, traditional, scale, 1.f, {}, 0, false, frequencies.has_value()};
    Arrays inputs{as(x, float_type(x, x))};
    if (const auto* number = std::get_if<int>(&offset)) {
        rope.offset = *number;
    } else {
        const auto& offsets = std::get<mx::array>(offset);
        if (offsets.ndim() > 1 || (offsets.size() != 1 && int64_t(offsets.size()) != x.shape(0)))
            throw std::invalid_argument("rope: offset must be a number or one for each of the batch");
        rope.has_offsets = true;
        inputs.push_back(as(offsets, mx::int32));
    }
    if (frequencies) inputs.push_back(as(*frequencies, mx::float32));
    else rope.inverse = inverse_frequencies(*base, dims / 2);
    return turned(rope, std::move(inputs));
}

}  // namespace

void bind_rotary(nb::module_& m) {
    m.def("rope", &rope, "x"_a, "dims"_a, "traditional"_a, "base"_a.none(), "scale"_a, "offset"_a, "freqs"_a.none(),
          "Rotary position embedding of x [B, ..., L, D], as mx.fast.rope.");
}

}  // namespace optiq
