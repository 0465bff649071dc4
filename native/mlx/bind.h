// What each file of bindings adds to the extension module.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>

namespace optiq {

// A native object as Python holds it. Operations copy this and share the object, not Python's reference to it: the threads that
// run and drop them would have to wait for the interpreter.
template <class T>
struct Held {
    std::shared_ptr<T> object;
    T& operator*() const { return *object; }
    T* operator->() const { return object.get(); }
    T* get() const { return object.get(); }
};

void bind_dense(nanobind::module_& module);
void bind_fused(nanobind::module_& module);
void bind_cache(nanobind::module_& module);
void bind_delta(nanobind::module_& module);
void bind_delta_rule(nanobind::module_& module);
void bind_quantized(nanobind::module_& module);
void bind_attention(nanobind::module_& module);
void bind_embedding(nanobind::module_& module);
void bind_feedback(nanobind::module_& module);
void bind_gates(nanobind::module_& module);
void bind_largest(nanobind::module_& module);
void bind_loss(nanobind::module_& module);
void bind_packed(nanobind::module_& module);
void bind_pages(nanobind::module_& module);
void bind_norm(nanobind::module_& module);
void bind_rotary(nanobind::module_& module);
void bind_step(nanobind::module_& module);

}  // namespace optiq
