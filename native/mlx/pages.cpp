// Weights on large pages: a token reads all of them once, and with pages of 4 kB every sixty-fourth cache line waits for an
// address translation.

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mlx/bind.h"
#include "mlx/op.h"
#include "mlx/pages.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

constexpr uintptr_t kLargePage = 2u << 20, kSmallPage = 4096;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; older C libraries do not name it

struct Span {
    uintptr_t start, end;
};

// The memory of evaluated arrays in rising order; what lies closer together than a small page is one span, because the
// allocator puts its own words between.
std::vector<Span> spans(const std::vector<mx::array>& arrays) {
    std::vector<Span> all, joined;
    for (const auto& x : arrays) {
        if (x.status() == mx::array::Status::unscheduled) continue;
        const auto start = reinterpret_cast<uintptr_t>(x.data<char>());
        all.push_back({start, start + x.nbytes()});
    }
    std::sort(all.begin(), all.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
    for (const auto& span : all) {
        if (!joined.empty() && span.start <= joined.back().end + kSmallPage)
            joined.back().end = std::max(joined.back().end, span.end);
        else
            joined.push_back(span);
    }
    return joined;
}

// Asks the system to move the arrays to large pages now; where it cannot, nothing changes. The bytes that were moved.
int64_t collapse(const std::vector<mx::array>& arrays) {
    int64_t moved = 0;
    for (const auto& span : spans(arrays)) moved += to_large_pages(span.start, span.end);
    return moved;
}

}  // namespace

int64_t to_large_pages(uintptr_t start, uintptr_t end) {
    const uintptr_t first = (start + kLargePage - 1) & ~(kLargePage - 1), last = end & ~(kLargePage - 1);
    const bool moved = first < last && madvise(reinterpret_cast<void*>(first), last - first, kCollapse) == 0;
    return moved ? int64_t(last - first) : 0;
}

void bind_pages(nb::module_& m) {
    m.def("collapse", &collapse, "arrays"_a, "Move evaluated arrays to large pages; how many bytes were moved.");
}

}  // namespace optiq
