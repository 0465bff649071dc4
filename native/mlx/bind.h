// What each file of bindings adds to the extension module.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

namespace optiq {

void bind_dense(nanobind::module_& module);
void bind_fused(nanobind::module_& module);
void bind_cache(nanobind::module_& module);
void bind_delta(nanobind::module_& module);
void bind_delta_rule(nanobind::module_& module);
void bind_quantized(nanobind::module_& module);
void bind_attention(nanobind::module_& module);
void bind_embedding(nanobind::module_& module);
void bind_gates(nanobind::module_& module);
void bind_loss(nanobind::module_& module);
void bind_packed(nanobind::module_& module);
void bind_pages(nanobind::module_& module);
void bind_norm(nanobind::module_& module);
void bind_rotary(nanobind::module_& module);
void bind_step(nanobind::module_& module);

}  // namespace optiq
