// Memory on large pages.

#pragma once

#include <cstdint>

namespace optiq {

// Moves what is whole large pages of [start, end) to such; where the system cannot, nothing changes. The bytes that were moved.
int64_t to_large_pages(uintptr_t start, uintptr_t end);

}  // namespace optiq
