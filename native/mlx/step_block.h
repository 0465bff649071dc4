// What the layers of a decoding step share: weights that are held, memory in parts, two norms and a gated MLP.
#pragma once

#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "kernels/norm.h"
#include "kernels/sums.h"
#include "mlx/products.h"
#include "mlx/rows.h"
#include "mlx/view.h"

namespace optiq {

inline Coded view(const Weight& weight) {
    const auto& [codes, scales, biases, group, bits] = weight;
    return coded(codes, scales, biases, group, bits);
}

// Computed and without gaps: a layer reads its weights outside of any graph.
inline mx::array held(const mx::array& x) {
    mx::array found = mx::contiguous(x, false, cpu_stream());
    found.eval();
    return found;
}

inline Weight held(const Weight& weight) {
    const auto& [codes, scales, biases, group, bits] = weight;
    return {held(codes), held(scales), held(biases), group, bits};
}

inline std::vector<Weight> held(const std::vector<Weight>& weights) {
    std::vector<Weight> all;
    for (const auto& weight : weights) all.push_back(held(weight));
    return all;
}

// Memory of a step, cut into parts at cache lines.
class Parts {
  public:
    explicit Parts(size_t bytes) : scratch_(bytes + 64 * kMost), at_(scratch_.as<char>()) {}

    char* take(size_t bytes) {
        char* mine = at_;
        at_ += (bytes + 63) / 64 * 64;
        return mine;
    }

  private:
    static constexpr size_t kMost = 16;
    Scratch scratch_;
    char* at_;
};

// What every layer has: two norms and a gated MLP.
struct Block {
    mx::array first, second;  // [E]
    float eps;
    Weight gate, up, down;

    int64_t width() const { return first.shape(0); }

    // Whether x [B, L, E] is for this form: few rows, one type throughout, and nobody who traces a derivative.
    bool fits(const mx::array& x) const {
        return x.ndim() == 3 && x.shape(2) == width() && x.size() > 0 && int64_t(x.shape(0)) * x.shape(1) <= kFewRows &&
               x.dtype() == first.dtype() && x.dtype() == second.dtype() && !x.is_tracer();
    }

    void before(const void* x, Float type, int64_t rows, char* normed) const {
        const int64_t bytes = width() * float_bytes(type);
        for (int64_t m = 0; m < rows; m++)
            norm().rms(static_cast<const char*>(x) + m * bytes, nullptr, data(first), nullptr, width(), eps, type, nullptr, normed + m * bytes);
    }

    // y = h + mlp(norm(h)), h = x + r.
    void after(const void* x, const void* r, Float type, int64_t rows, void* y) const {
        const int64_t bytes = width() * float_bytes(type);
        Parts parts(size_t(3 * rows * bytes + rows * width() * 4));
        char *h = parts.take(rows * bytes), *normed = parts.take(rows * bytes), *m = parts.take(rows * bytes);
        float* total = reinterpret_cast<float*>(parts.take(rows * width() * 4));
        for (int64_t i = 0; i < rows; i++)
            norm().rms(static_cast<const char*>(x) + i * bytes, static_cast<const char*>(r) + i * bytes, data(second), nullptr, width(),
                       eps, type, h + i * bytes, normed + i * bytes);
        run_mlp(view(gate), view(up), view(down), normed, type, rows, m);
        std::memset(total, 0, size_t(rows * width()) * 4);
        sums().add(h, rows * width(), type, total);
        sums().add(m, rows * width(), type, total);
        sums().convert(total, rows * width(), type, y);
    }
};

inline void check_block(const Block& block) {
    const int64_t width = block.width();
    for (const auto* weight : {&block.gate, &block.up, &block.down}) {
        const auto& [codes, scales, biases, group, bits] = *weight;
        check_coded(codes, scales, biases, group, bits, weight == &block.down ? std::get<0>(block.gate).shape(0) : width, true);
    }
    if (std::get<0>(block.gate).shape(0) != std::get<0>(block.up).shape(0) || std::get<0>(block.down).shape(0) != width ||
        block.second.shape() != block.first.shape())
        throw std::invalid_argument("the parts of the layer do not fit each other");
}

inline void check_weight(const Weight& weight, int64_t rows, int64_t columns) {
    const auto& [codes, scales, biases, group, bits] = weight;
    check_coded(codes, scales, biases, group, bits, columns, true);
    if (codes.shape(0) != rows) throw std::invalid_argument("the parts of the layer do not fit each other");
}

inline Block block_of(mx::array first, mx::array second, float eps, const std::vector<Weight>& mlp) {
    if (mlp.size() != 3) throw std::invalid_argument("an MLP has three weights");
    return {held(first), held(second), eps, held(mlp[0]), held(mlp[1]), held(mlp[2])};
}

}  // namespace optiq
