// Appending to a key/value cache without copying it.

#include <cstring>

#include "core/pool.h"
#include "mlx/bind.h"
#include "mlx/op.h"
#include "mlx/pages.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

// The output is the input's buffer with the new rows written at `offset`. MLX's own slice update copies the whole cache
// whenever an operation that reads it is still queued, which is at every step once steps overlap. Operations of one stream
// run in order, and nobody reads rows beyond what was there when they were queued.
class Append : public Op {
  public:
    Append(mx::Stream stream, int64_t offset, bool settle) : Op(stream, "OptiqAppend", {}), offset_(offset), settle_(settle) {}

    void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
        auto& encoder = mx::cpu::get_command_encoder(stream());
        outputs[0].copy_shared_buffer(inputs[0]);
        auto into = mx::array::unsafe_weak_copy(outputs[0]), rows = mx::array::unsafe_weak_copy(inputs[1]);
        encoder.dispatch([into, rows, offset = offset_, settle = settle_]() mutable {
            if (settle) {
                const auto start = reinterpret_cast<uintptr_t>(data<char>(into));
                to_large_pages(start, start + into.nbytes());
            }
            const int64_t item = int64_t(rows.itemsize()), width = item * rows.shape(3), heads = rows.shape(1), length = rows.shape(2);
            const auto& step = rows.strides();
            for (int64_t b = 0; b < rows.shape(0); b++)
                for (int64_t h = 0; h < heads; h++)
                    for (int64_t t = 0; t < length; t++) {
                        const char* from = data<char>(rows) + (b * step[0] + h * step[1] + t * step[2]) * item;
                        char* to = data<char>(into) + ((b * heads + h) * into.shape(2) + offset + t) * width;
                        if (step[3] == 1)
                            std::memcpy(to, from, size_t(width));
                        else
                            for (int64_t d = 0; d < rows.shape(3); d++)
                                std::memcpy(to + d * item, from + d * step[3] * item, size_t(item));
                    }
        });
    }

  private:
    int64_t offset_;
    bool settle_;
};

mx::array append(const mx::array& buffer, const mx::array& rows, int64_t offset, bool settle) {
    if (buffer.ndim() != 4 || rows.ndim() != 4 || rows.dtype() != buffer.dtype() || rows.shape(0) != buffer.shape(0) ||
        rows.shape(1) != buffer.shape(1) || rows.shape(3) != buffer.shape(3) || offset + rows.shape(2) > buffer.shape(2))
        throw std::invalid_argument("append: the rows do not fit the buffer");
    return make_one(buffer.shape(), buffer.dtype(), std::make_shared<Append>(cpu_stream(), offset, settle), {dense(buffer), rows});
}

}  // namespace

void bind_cache(nb::module_& m) {
    m.def("append", &append, "buffer"_a, "rows"_a, "offset"_a, "settle"_a = false,
          "rows [B, G, L, D] written into buffer [B, G, S, D] from `offset` on; the result takes the buffer over. `settle`: move "
          "the buffer to large pages first.");
}

}  // namespace optiq
