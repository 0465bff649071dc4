// One MLX primitive for all native operations: a name, what to run on a thread of the stream, and perhaps a derivative.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/half.h"
#include "mlx/mlx.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace optiq {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

// Which input's buffer an output may take over when nobody else holds it; `run` then finds both at one address.
struct Reuse {
    int input = -1, output = -1;
};

class Op : public mx::Primitive {
  public:
    // Outputs are allocated, dense and row-major; inputs are what the caller passed (see `dense`).
    using Run = std::function<void(const Arrays& inputs, Arrays& outputs)>;
    // Primals, cotangents, argnums and outputs as in mlx::core::Primitive::vjp.
    using Vjp = std::function<Arrays(const Arrays&, const Arrays&, const std::vector<int>&, const Arrays&)>;

    Op(mx::Stream stream, const char* name, Run run, Vjp vjp = {}, Reuse reuse = {})
        : Primitive(stream), name_(name), run_(std::move(run)), vjp_(std::move(vjp)), reuse_(reuse) {}

    const char* name() const override { return name_; }

    void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
        auto& encoder = mx::cpu::get_command_encoder(stream());
        Arrays in, out;
        for (int i = 0; i < int(outputs.size()); i++) {
            if (i == reuse_.output && may_reuse(inputs, outputs)) outputs[i].copy_shared_buffer(inputs[reuse_.input]);
            else outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
        }
        // MLX keeps the buffers alive until the task is over; a strong copy would forbid it to donate them afterwards.
        for (const auto& input : inputs) in.push_back(mx::array::unsafe_weak_copy(input));
        for (auto& output : outputs) out.push_back(mx::array::unsafe_weak_copy(output));
        encoder.dispatch([run = run_, in = std::move(in), out = std::move(out)]() mutable { run(in, out); });
    }

    void eval_gpu(const Arrays&, Arrays&) override { throw std::runtime_error(std::string(name_) + " runs on the CPU only"); }

    Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums, const Arrays& outputs) override {
        if (!vjp_) throw std::invalid_argument(std::string(name_) + " has no derivative");
        return vjp_(primals, cotangents, argnums, outputs);
    }

  private:
    bool may_reuse(const Arrays& inputs, Arrays& outputs) const {
        // Every output of an operation lists its inputs; MLX clears the lists after the evaluation, except while tracing.
        for (auto& output : outputs) {
            if (output.is_tracer()) return false;
            if (&output.inputs() != &inputs) output.inputs().clear();
        }
        const auto& from = inputs[reuse_.input];
        const auto& to = outputs[reuse_.output];
        return from.is_donatable() && from.flags().row_contiguous && from.dtype() == to.dtype() && from.size() == to.size() &&
               from.data_size() == from.size();
    }

    const char* name_;
    Run run_;
    Vjp vjp_;
    Reuse reuse_;
};

inline mx::Stream cpu_stream() { return mx::default_stream(mx::Device(mx::Device::cpu)); }

// Whether x is known to lie row-major without gaps: as evaluated, as our own operations leave it, or a new shape of that.
inline bool is_dense(const mx::array& x) {
    if (x.status() != mx::array::Status::unscheduled) return x.flags().row_contiguous;
    if (!x.has_primitive()) return false;
    const auto& maker = x.primitive();
    if (dynamic_cast<const Op*>(&maker)) return true;
    return std::string_view(maker.name()) == "Reshape" && is_dense(x.inputs()[0]);
}

// Row-major without gaps, as every kernel reads its inputs; copies only what is not, and adds a node to the graph only where
// it is not known: a decoding step has hundreds of weights.
inline mx::array dense(const mx::array& x) { return is_dense(x) ? x : mx::contiguous(x, false, cpu_stream()); }
inline mx::array dense(const mx::array& x, mx::Dtype type) { return dense(mx::astype(x, type, cpu_stream())); }

inline Arrays make(std::vector<mx::Shape> shapes, const std::vector<mx::Dtype>& types, std::shared_ptr<Op> op, Arrays inputs) {
    return mx::array::make_arrays(std::move(shapes), types, std::move(op), std::move(inputs));
}

inline mx::array make_one(mx::Shape shape, mx::Dtype type, std::shared_ptr<Op> op, Arrays inputs) {
    return mx::array(std::move(shape), type, std::move(op), std::move(inputs));
}

inline Float float_of(const mx::array& x) {
    if (x.dtype() == mx::float32) return Float::f32;
    if (x.dtype() == mx::float16) return Float::f16;
    if (x.dtype() == mx::bfloat16) return Float::bf16;
    throw std::invalid_argument("expected float32, float16 or bfloat16");
}

template <class T = void>
inline T* data(mx::array& x) {
    return reinterpret_cast<T*>(x.data<char>());
}

template <class T = void>
inline const T* data(const mx::array& x) {
    return reinterpret_cast<const T*>(x.data<char>());
}

}  // namespace optiq
