// Inputs of an operation as kernels want them, taken when it runs: what lies well in memory is used where it is, so that the
// graph needs no nodes that copy; the rest is copied into memory that the view holds.
#pragma once

#include <cstring>
#include <vector>

#include "mlx/op.h"

namespace optiq {

// The values of x in row-major order, at the element size of its type.
inline std::vector<char> packed(const mx::array& x) {
    const size_t width = x.itemsize();
    std::vector<char> out(x.size() * width);
    const int dims = int(x.ndim());
    std::vector<int64_t> index(size_t(dims), 0);
    for (size_t i = 0; i < x.size(); i++) {
        int64_t at = 0;
        for (int d = 0; d < dims; d++) at += index[d] * x.strides(d);
        std::memcpy(out.data() + i * width, data<char>(x) + at * int64_t(width), width);
        for (int d = dims - 1; d >= 0 && ++index[d] == x.shape(d); d--) index[d] = 0;
    }
    return out;
}

// x as float32 without gaps.
class Floats {
  public:
    explicit Floats(const mx::array& x) {
        if (x.dtype() == mx::float32 && x.flags().row_contiguous) {
            start_ = data<float>(x);
            return;
        }
        const std::vector<char> raw = packed(x);
        const Float type = float_of(x);
        held_.resize(x.size());
        for (size_t i = 0; i < x.size(); i++) held_[i] = value(raw.data(), type, i);
        start_ = held_.data();
    }
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    const float* start() const { return start_; }

  private:
    static float value(const char* raw, Float type, size_t i) {
        if (type == Float::f32) {
            float x;
            std::memcpy(&x, raw + 4 * i, 4);
            return x;
        }
        uint16_t bits;
        std::memcpy(&bits, raw + 2 * i, 2);
        return type == Float::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
    }

    const float* start_ = nullptr;
    std::vector<float> held_;
};

// x without gaps, in its own type.
class Dense {
  public:
    explicit Dense(const mx::array& x) {
        if (!x.flags().row_contiguous) held_ = packed(x);
        start_ = held_.empty() ? data<char>(x) : held_.data();
    }
    Dense(const Dense&) = delete;
    Dense& operator=(const Dense&) = delete;
    template <class T = void>
    const T* start() const {
        return reinterpret_cast<const T*>(start_);
    }

  private:
    const char* start_ = nullptr;
    std::vector<char> held_;
};

}  // namespace optiq
