// Rows of an array (its last axis) wherever they lie, and the cutting of rows into tasks. Slices and transposes that leave
// the last axis whole are read in place; where the last axis has gaps, a dense copy is made.
#pragma once

#include <algorithm>
#include <memory>

#include "core/pool.h"
#include "core/scratch.h"
#include "mlx/op.h"

namespace optiq {

constexpr int64_t kTaskData = 16 * 1024;  // bytes of input per task; a few microseconds of work

class Rows {
  public:
    explicit Rows(const mx::array& x)
        : base_(data<char>(x)), item_(x.itemsize()), width_(x.ndim() ? x.shape(-1) : 1), flat_(x.flags().row_contiguous) {
        count_ = width_ ? int64_t(x.size()) / width_ : 0;
        for (int i = 0; i + 1 < int(x.ndim()); i++) push(x.shape(i), x.strides()[i] * item_);
        if (width_ > 1 && x.strides().back() != 1 && count_) pack(x.strides().back() * item_);
    }

    int64_t count() const { return count_; }
    int64_t width() const { return width_; }
    bool flat() const { return flat_; }  // all rows lie one after another

    const char* at(int64_t row) const {
        if (flat_) return base_ + row * width_ * item_;
        int64_t offset = 0;
        for (int i = axes_ - 1; i > 0; i--) {
            offset += row % axis_[i].size * axis_[i].step;
            row /= axis_[i].size;
        }
        return base_ + (axes_ ? offset + row * axis_[0].step : 0);
    }

  private:
    struct Axis {
        int64_t size, step;
    };
    static constexpr int kAxes = 8;

    // Adds the next inner axis; merged with the last one where both make one run.
    void push(int64_t size, int64_t step) {
        if (size == 1) return;
        if (axes_ && axis_[axes_ - 1].step == size * step) {
            axis_[axes_ - 1] = {axis_[axes_ - 1].size * size, step};
            return;
        }
        if (axes_ == kAxes) throw std::invalid_argument("an array with so many axes must be contiguous");
        axis_[axes_++] = {size, step};
    }

    void pack(int64_t step) {
        packed_ = std::make_unique<Scratch>(size_t(count_ * width_ * item_));
        char* to = packed_->as<char>();
        const int64_t rows = std::max<int64_t>(1, kTaskData / (width_ * item_));
        parallel((count_ + rows - 1) / rows, [&](int64_t task) {
            for (int64_t r = task * rows; r < std::min(count_, (task + 1) * rows); r++) {
                const char* from = at(r);
                char* row = to + r * width_ * item_;
                for (int64_t i = 0; i < width_; i++) std::memcpy(row + i * item_, from + i * step, size_t(item_));
            }
        });
        base_ = to;
        flat_ = true;
    }

    const char* base_;
    int64_t item_, width_, count_ = 0;
    bool flat_;
    Axis axis_[kAxes];
    int axes_ = 0;
    std::unique_ptr<Scratch> packed_;
};

// Calls f(first, last) for the parts of [0, rows), each of about kTaskData bytes: cut by shape alone.
template <class F>
void by_rows(int64_t rows, int64_t row_bytes, const F& f) {
    const int64_t step = std::max<int64_t>(1, kTaskData / std::max<int64_t>(1, row_bytes));
    parallel((rows + step - 1) / step, [&](int64_t task) { f(task * step, std::min(rows, (task + 1) * step)); });
}

inline mx::Dtype float_type(const mx::array& x, const mx::array& y) {
    const auto type = mx::promote_types(x.dtype(), y.dtype());
    if (type == mx::float32 || type == mx::float16 || type == mx::bfloat16) return type;
    throw std::invalid_argument("expected float32, float16 or bfloat16");
}

inline mx::array as(const mx::array& x, mx::Dtype type) { return x.dtype() == type ? x : mx::astype(x, type, cpu_stream()); }

// 1 / base^(i / half) for i < half: the turn of each pair per position.
std::vector<float> inverse_frequencies(double base, int64_t half);

// The derivatives that were asked for, of all.
inline Arrays choose(const Arrays& all, const std::vector<int>& argnums) {
    Arrays some;
    for (int i : argnums) some.push_back(all[i]);
    return some;
}

}  // namespace optiq
