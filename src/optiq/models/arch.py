"""Model classes from mlx-lm's architecture files, read through an alias package so that the stock package stays untouched.

mlx-lm's files import what they share (attention, caches, the gated delta rule) by name, so replacing an attribute of the stock
modules would not reach them, and would change them for everybody else. Instead the package `optiq_arch` has mlx-lm's models
folder as its `__path__`: `optiq_arch.qwen3_5` is a second, private instance of that file, whose relative imports find

    .activations   our own module around the stock one: SwiGLU by kernels.gates
    .base          our own module around the stock one: attention by kernels.attention
    .gated_delta   our own module around the stock one: chunked, differentiable (kernels.gated_delta)
    .cache         the stock module itself, so that its cache classes are the ones that everybody knows

and everything else as stock. Data in: a config. Data out: the classes `Model` and `ModelArgs`.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import mlx.core as mx

from optiq.errors import ModelError
from optiq.kernels import attention, gated_delta, gates, native
from optiq.models import segments

PACKAGE = "optiq_arch"


def classes(config: dict[str, Any]) -> tuple[type, type]:
    """`Model` and `ModelArgs` for this config, as `mlx_lm.utils.load_model(get_model_classes=...)` wants them.

    Raises:
        ModelError: mlx-lm has no such architecture.
    """
    from mlx_lm import utils

    _alias_package()
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("config.json names no model_type; expected a Hugging Face model directory with one.")
    architectures = config.get("architectures") or ()
    remapped = next(
        (
            utils.MODEL_ARCHITECTURE_REMAPPING[model_type, name]
            for name in ([architectures] if isinstance(architectures, str) else architectures)
            if (model_type, name) in utils.MODEL_ARCHITECTURE_REMAPPING
        ),
        None,
    )
    if config.get("model_file") is not None:
        raise ModelError(
            f"config.json asks for code of its own (model_file {config['model_file']!r}), which is never run; "
            "choose a model whose architecture mlx-lm knows."
        )
    file = remapped or utils.MODEL_REMAPPING.get(model_type, model_type)
    if not file.isidentifier():
        raise ModelError(f"config.json: model_type {model_type!r} is not the name of an architecture.")
    try:
        module = importlib.import_module(f"{PACKAGE}.{file}")
    except ModuleNotFoundError as error:
        if error.name != f"{PACKAGE}.{file}":
            raise
        raise ModelError(
            f"architecture {model_type!r} is unknown to mlx-lm {_mlx_lm_version()}; upgrade mlx-lm or choose another model."
        ) from None
    if not hasattr(module, "Model") or not hasattr(module, "ModelArgs"):
        raise ModelError(f"config.json: model_type {model_type!r} names a part of mlx-lm that is no architecture.")
    return module.Model, module.ModelArgs


def shared(name: str) -> types.ModuleType:
    """A module of the alias package: what its architecture files import under that name."""
    _alias_package()
    return importlib.import_module(f"{PACKAGE}.{name}")


def _mlx_lm_version() -> str:
    from mlx_lm import __version__

    return __version__


def _alias_package() -> None:
    """Put the alias package and its preset modules into `sys.modules`, once."""
    if PACKAGE in sys.modules:
        return
    import mlx_lm.models
    import mlx_lm.models.activations
    import mlx_lm.models.base
    import mlx_lm.models.cache
    import mlx_lm.models.gated_delta

    package = types.ModuleType(PACKAGE, "mlx-lm's architecture files with optiq's kernels")
    package.__path__ = list(mlx_lm.models.__path__)
    base, delta = mlx_lm.models.base, mlx_lm.models.gated_delta
    presets = {
        "activations": _with(mlx_lm.models.activations, swiglu=gates.swiglu),
        "base": _with(base, scaled_dot_product_attention=_scaled_dot_product_attention(base)),
        "cache": mlx_lm.models.cache,
        "gated_delta": _with(delta, gated_delta_update=_gated_delta_update(delta)),
    }
    for name, module in presets.items():
        sys.modules[f"{PACKAGE}.{name}"] = module
        setattr(package, name, module)
    sys.modules[PACKAGE] = package


def _with(stock: types.ModuleType, **own: Any) -> types.ModuleType:
    """A module of the alias package with the stock one's content, the same objects, but for `own`."""
    module = types.ModuleType(f"{PACKAGE}.{stock.__name__.rpartition('.')[2]}", "mlx-lm's names over optiq.kernels")
    module.__dict__.update({name: value for name, value in vars(stock).items() if not name.startswith("__")})
    module.__dict__.update(own)
    return module


def _scaled_dot_product_attention(stock: types.ModuleType) -> Any:
    """mlx-lm's `scaled_dot_product_attention` over `kernels.attention`; a stock quantized cache keeps the stock form.

    A cache with a method `attend(queries, scale, mask, sinks)` computes attention over what it holds (`optiq.kv.cache`).
    """

    def scaled_dot_product_attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if hasattr(cache, "attend"):  # keys and values are lazy, and stay so
            return cache.attend(queries, scale, mask, sinks)
        if hasattr(cache, "bits"):  # keys and values are tuples of codes, scales and biases
            return stock.scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
        borders = segments.borders(queries.shape[2]) if cache is None else None
        if borders is None:
            return attention.attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        found = []
        texts = zip(borders, *(segments.cut(x, borders, 2) for x in (queries, keys, values)), strict=True)
        for (start, end), q, k, v in texts:
            seen = mask[..., start:end, start:end] if isinstance(mask, mx.array) else mask
            found.append(attention.attention(q, k, v, scale=scale, mask=seen, sinks=sinks))
        return mx.concatenate(found, axis=2)

    return scaled_dot_product_attention


def _gated_delta_update(stock: types.ModuleType) -> Any:
    """mlx-lm's `gated_delta_update` with our form of the rule wherever the stock code would loop over tokens."""

    def gated_delta_update(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        a: mx.array,
        b: mx.array,
        A_log: mx.array,
        dt_bias: mx.array,
        state: mx.array | None = None,
        mask: mx.array | None = None,
        *,
        use_kernel: bool = True,
        lower_bound: float | None = None,
        allow_neg_eigval: bool = False,
    ) -> tuple[mx.array, mx.array]:
        on_gpu = use_kernel and mx.default_device() == mx.gpu
        if on_gpu or a.ndim != 3 or (q.shape[1] == 1 and native.module() is None):
            return stock.gated_delta_update(
                q,
                k,
                v,
                a,
                b,
                A_log,
                dt_bias,
                state,
                mask,
                use_kernel=use_kernel,
                lower_bound=lower_bound,
                allow_neg_eigval=allow_neg_eigval,
            )
        beta = mx.sigmoid(b) * (2.0 if allow_neg_eigval else 1.0)
        if lower_bound is None:
            g = stock.compute_g(A_log, a, dt_bias)
        else:
            g = stock.compute_lower_bound_g(A_log, a, dt_bias, lower_bound)
        if mask is not None:  # a masked token leaves the state as it was
            g, beta = mx.where(mask[..., None], g, 1.0), mx.where(mask[..., None], beta, 0.0)
        y, state = gated_delta.gated_delta(q, k, v, g, beta, state)
        return y.astype(q.dtype), state

    return gated_delta_update
