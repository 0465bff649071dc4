// The product with a coded weight, for operations that are composed of it.
#pragma once

#include "mlx/op.h"

namespace optiq {

// y = x Wᵀ, or x W where `transpose` is false; differentiable by x.
mx::array quantized_matmul(const mx::array& x, const mx::array& codes, const mx::array& scales, const mx::array& biases,
                           int group_size, int bits, bool transpose);

}  // namespace optiq
