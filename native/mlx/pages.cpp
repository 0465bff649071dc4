// Weights on large pages: a token reads all of them once, and with pages of 4 kB every sixty-fourth cache line waits for an
// address translation.

#include <sys/mman.h>

#include <cstdint>

#include "mlx/bind.h"
#include "mlx/op.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

constexpr uintptr_t kLargePage = 2u << 20;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; older C libraries do not name it

// Asks the system to move an evaluated array to large pages now; where it cannot, nothing changes. True if all of it moved.
bool collapse(const mx::array& x) {
    const auto start = reinterpret_cast<uintptr_t>(x.data<char>()), end = start + x.nbytes();
    const uintptr_t first = (start + kLargePage - 1) & ~(kLargePage - 1), last = end & ~(kLargePage - 1);
    return first >= last || madvise(reinterpret_cast<void*>(first), last - first, kCollapse) == 0;
}

}  // namespace

void bind_pages(nb::module_& m) {
    m.def("collapse", [](const std::vector<mx::array>& arrays) {
        bool all = true;
        for (const auto& x : arrays)
            if (x.status() != mx::array::Status::unscheduled) all = collapse(x) && all;
        return all;
    }, "arrays"_a, "Move evaluated arrays to large pages; false where the system could not.");
}

}  // namespace optiq
