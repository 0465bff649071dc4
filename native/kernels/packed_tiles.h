// Attention over packed tokens where the processor multiplies tiles of bytes.
#pragma once

#include "kernels/packed_weights.h"

namespace optiq::OPTIQ_LEVEL {

inline bool tiled(const PackedAttention&) { return false; }
struct TiledQueries { size_t bytes; TiledQueries(const PackedAttention&, void*) : bytes(0) {} };
struct TiledWork { size_t bytes; TiledWork(const PackedAttention&, void*) : bytes(0) {} };
inline void prepare_tiles(const PackedAttention&, int64_t, int64_t, void*) {}
inline void block_tiled(const PackedAttention&, const PackedBlock&, bool, const void*, float*, void*) {}

}  // namespace optiq::OPTIQ_LEVEL
