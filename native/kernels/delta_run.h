// The mixer of Gated DeltaNet as tasks for the pool: one per row of the batch and key head. Not for kernels: this is compiled
// once.
#pragma once

#include "core/pool.h"
#include "core/scratch.h"
#include "kernels/delta.h"

namespace optiq {

inline void run_mix(const Mixer& m) {
    const size_t bytes = size_t(delta().mix_floats(m)) * sizeof(float);
    parallel(m.shape.B * m.shape.Hk, [&](int64_t task) {
        Scratch scratch(bytes);
        delta().mix(m, task / m.shape.Hk, task % m.shape.Hk, scratch.as<float>());
    });
}

}  // namespace optiq
