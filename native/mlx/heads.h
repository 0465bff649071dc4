// Inputs of four axes, batch, head, row and width, as attention's kernels read them.
#pragma once

#include <cstring>
#include <vector>

#include "kernels/attention.h"
#include "mlx/op.h"

namespace optiq {

// An input of four axes whose last one has no gaps: the array's own memory, however its other axes lie (a cache is a slice of
// a longer buffer), or a copy where the last axis is strided.
class Rows4 {
  public:
    explicit Rows4(const mx::array& x) {
        const auto& stride = x.strides();
        view_ = {x.data<char>(), stride[0], stride[1], stride[2]};
        if (stride[3] == 1 || x.shape(3) == 1) return;
        const int64_t item = x.itemsize(), heads = x.shape(1), rows = x.shape(2), width = x.shape(3);
        copy_.resize(x.size() * size_t(item));
        char* to = copy_.data();
        for (int64_t b = 0; b < x.shape(0); b++)
            for (int64_t h = 0; h < heads; h++)
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t d = 0; d < width; d++, to += item)
                        std::memcpy(to, x.data<char>() + (b * stride[0] + h * stride[1] + r * stride[2] + d * stride[3]) * item,
                                    size_t(item));
        view_ = {copy_.data(), heads * rows * width, rows * width, width};
    }

    const HeadRows& view() const { return view_; }

  private:
    std::vector<char> copy_;
    HeadRows view_;
};

}  // namespace optiq
