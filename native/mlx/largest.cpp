// argmax over the last axis, as an MLX operation on the CPU: MLX's own goes through the logits of a token with one thread.

#include "kernels/largest.h"

#include "mlx/bind.h"
#include "mlx/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

constexpr int64_t kPart = 16 * 1024;  // numbers per task

void run(const Arrays& in, Arrays& out) {
    const Rows x(in[0]);
    const Float type = float_of(in[0]);
    const int64_t width = x.width(), parts = (width + kPart - 1) / kPart;
    struct Place {
        int64_t at;
        float value;
    };
    Scratch scratch(size_t(x.count() * parts) * sizeof(Place) + 64);
    Place* places = scratch.as<Place>();
    parallel(x.count() * parts, [&](int64_t task) {
        const int64_t start = task % parts * kPart;
        Place& place = places[task];
        const char* from = x.at(task / parts) + start * float_bytes(type);
        place.at = start + largest_place().first(from, std::min(kPart, width - start), type, &place.value);
    });
    for (int64_t r = 0; r < x.count(); r++) {
        const Place* best = places + r * parts;
        for (int64_t p = 1; p < parts; p++)
            if (places[r * parts + p].value > best->value) best = places + r * parts + p;
        data<uint32_t>(out[0])[r] = uint32_t(best->at);
    }
}

mx::array argmax(const mx::array& x) {
    if (x.ndim() == 0 || x.shape(-1) == 0) throw std::invalid_argument("argmax: expected at least one number");
    mx::Shape shape(x.shape().begin(), x.shape().end() - 1);
    return make_one(shape, mx::uint32, std::make_shared<Op>(cpu_stream(), "OptiqArgmax", run), {as(x, float_type(x, x))});
}

}  // namespace

void bind_largest(nb::module_& m) {
    m.def("argmax", &argmax, "x"_a, "The first place of the largest number of x [..., N], uint32 [...].");
}

}  // namespace optiq
