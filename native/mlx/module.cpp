// The extension module `optiq.kernels._native`: settings here, operations in the files beside this one.

#include "core/level.h"
#include "core/pool.h"
#include "mlx/bind.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(_native, m) {
    m.doc() = "CPU kernels of optiq for MLX; use them through optiq.kernels.";
    m.attr("mlx_version") = OPTIQ_MLX_VERSION;

    m.def("levels", [] {
        std::vector<std::string> names;
        for (int i = int(optiq::Level::avx2); i <= int(optiq::detect_level()); i++)
            names.push_back(optiq::level_name(optiq::Level(i)));
        return names;
    }, "Instruction levels that this processor runs, worst first; empty where there are none.");
    m.def("level", [] { return std::string(optiq::level_name(optiq::level())); });
    m.def("set_level", [](const std::string& name) {
        for (int i = int(optiq::Level::avx2); i <= int(optiq::detect_level()); i++)
            if (name == optiq::level_name(optiq::Level(i))) return optiq::set_level(optiq::Level(i));
        throw nb::value_error(("unknown or unsupported level " + name).c_str());
    }, "name"_a);
    m.def("cpu_features", &optiq::cpu_features);
    m.def("threads", &optiq::pool_threads);
    m.def("set_threads", &optiq::set_pool_threads, "count"_a);

    optiq::bind_dense(m);
    optiq::bind_fused(m);
    optiq::bind_cache(m);
    optiq::bind_delta(m);
    optiq::bind_delta_rule(m);
    optiq::bind_quantized(m);
    optiq::bind_attention(m);
    optiq::bind_embedding(m);
    optiq::bind_feedback(m);
    optiq::bind_gates(m);
    optiq::bind_largest(m);
    optiq::bind_loss(m);
    optiq::bind_norm(m);
    optiq::bind_packed(m);
    optiq::bind_pages(m);
    optiq::bind_rotary(m);
    optiq::bind_step(m);
}
