"""One checkpoint on disk: its config, its tensors under mlx-lm's names, and the modules that they belong to.

A `Checkpoint` reads headers when it is opened and a tensor only when that tensor is evaluated. `weights()` gives every tensor
lazily under the name that the saved MLX model will use; a pass over the model takes what it needs from a fresh dictionary and
drops it, so that memory holds one part of the model at a time. Quantized MLX directories are read as the dense values that their
codes stand for. Norm weights that a family stores zero-centred are shifted in float32, not in bfloat16 as the stock loader does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from optiq.errors import ModelError
from optiq.kernels import quantized
from optiq.models import arch, shards

SIDE_FILE_KEYS = ("mtp.",)
VISION_KEYS = ("model.visual", "visual.", "vision_tower.", "model.vision_tower", "vision_model.", "audio_tower.")
FINITE_SLICE = 1 << 23
HALF_TYPES = (mx.bfloat16, mx.float16)

Transform = Callable[[str, mx.array], mx.array]


@dataclass(frozen=True)
class Checkpoint:
    """A model directory, opened.

    Args:
        path: directory with config.json and safetensors shards.
        config: the parsed config.json.
        files: the weight shards, each already checked against its header.
        transform: applied to each dense tensor by name as it is read (for instance a simulated quantization).
    """

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    headers: dict[str, tuple[str, tuple[int, ...]]] = field(repr=False)
    transform: Transform | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a directory and check every header.

        Raises:
            ModelError: no config, missing or truncated shards, an unknown architecture.
        """
        path = Path(path)
        config = shards.read_config(path)
        files = tuple(shards.scan(path))
        headers: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in files:
            headers.update({name: (entry.dtype, entry.shape) for name, entry in shards.read_header(file).items()})
        arch.classes(config)
        return cls(path, config, files, headers)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The MLX quantization entry of the config, or None for a dense checkpoint."""
        found = self.config.get("quantization")
        return found if isinstance(found, dict) else None

    @property
    def holds_codes(self) -> bool:
        """Whether weights are stored as packed codes, whatever the config says (MLX, GPTQ and AWQ names)."""
        return self.quantization is not None or any(
            name.endswith((".qweight", ".qzeros")) or (name.endswith(".scales") and f"{name[:-7]}.weight" in self.headers)
            for name in self.headers
        )

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the config that describes the language model."""
        found = self.config.get("text_config")
        return found if isinstance(found, dict) else self.config

    @property
    def name(self) -> str:
        """What the model is called: the directory's name, or org/name for a snapshot in the hub's cache."""
        for part in self.path.parts:
            if part.startswith("models--"):
                return part.removeprefix("models--").replace("--", "/")
        return self.path.resolve().name

    @cached_property
    def dtype(self) -> mx.Dtype:
        """The 16-bit type that the converted model is stored in: float16 for a float16 checkpoint, else bfloat16."""
        kinds = [dtype for dtype, shape in self.headers.values() if len(shape) > 1]
        return mx.float16 if kinds.count("F16") > len(kinds) / 2 else mx.bfloat16

    def skeleton(self) -> nn.Module:
        """The model's modules with weights that were never evaluated; load what is needed before a forward pass.

        Raises:
            ModelError: the config does not describe a model that mlx-lm can build.
        """
        model = self._bare()
        if self._sheds_modules:
            self._sanitized(model, self._own())
        return model

    def _bare(self) -> nn.Module:
        """The modules as the config alone describes them."""
        model_class, args_class = arch.classes(self.config)
        try:
            model = model_class(args_class.from_dict(copy.deepcopy(self.config)))
        except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
            raise ModelError(
                f"{self.path / 'config.json'}: mlx-lm cannot build {self.config['model_type']!r} from it ({error!r}); "
                "compare it with the published config of this model."
            ) from error
        # Each initial weight splits the global random key, lazily; unevaluated, that chain would keep a node per weight of every
        # skeleton ever built (0.5 MB for 24 layers, once per tensor of a pass).
        mx.eval(mx.random.state)
        model.eval()
        return model

    def raw(self) -> dict[str, mx.array]:
        """Every stored tensor, lazily, under its own name."""
        tensors: dict[str, mx.array] = {}
        for file in self.files:
            try:
                tensors.update(mx.load(str(file)))  # type: ignore[arg-type]
            except RuntimeError as error:
                raise ModelError(f"{file}: cannot be read as safetensors ({error}); download it again.") from error
        return tensors

    def weights(self, native: bool = False) -> dict[str, mx.array]:
        """Every tensor of the language model, lazily, dense, float32 where it is floating, under mlx-lm's names.

        Args:
            native: keep the stored types (half the memory; right for matrices, but norms are then shifted in 16 bits).

        Raises:
            ModelError: names or shapes that this architecture does not expect.
        """
        tensors = self._own()
        if not native:
            tensors = {n: v.astype(mx.float32) if v.dtype in HALF_TYPES else v for n, v in tensors.items()}
        tensors = self._sanitized(self._bare(), tensors)
        if self.quantization:
            tensors = _dense(tensors, self.quantization)
        if self.transform is not None:
            tensors = {name: self.transform(name, value) for name, value in tensors.items()}
        return tensors

    def _own(self) -> dict[str, mx.array]:
        """The stored tensors without those of side files."""
        return {name: value for name, value in self.raw().items() if not name.startswith(SIDE_FILE_KEYS)}

    def _sanitized(self, model: nn.Module, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors under mlx-lm's names, as the family itself renames them."""
        if not hasattr(model, "sanitize"):
            return tensors
        try:
            found: dict[str, mx.array] = model.sanitize(tensors)
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"{self.path}: the tensors do not fit the architecture {self.config['model_type']!r} "
                f"(missing or unexpected: {error}); is a shard missing?"
            ) from error
        return found

    @cached_property
    def _sheds_modules(self) -> bool:
        """Whether the family drops modules that this checkpoint has no tensors for (Gemma 3: the head, where it is tied)."""
        model = self._bare()
        before = [name for name, _ in model.named_modules()]
        self._sanitized(model, self._own())
        return before != [name for name, _ in model.named_modules()]

    def original(self) -> Checkpoint:
        """The same checkpoint without a transform."""
        return self if self.transform is None else replace(self, transform=None)

    def check_finite(self) -> None:
        """Look at every value of the language model once, a slice of one tensor in memory at a time.

        Raises:
            ModelError: names the first tensor with NaN or infinite values.
        """
        tensors = self.weights(native=True)
        for name in list(tensors):
            value = tensors.pop(name)
            if not mx.issubdtype(value.dtype, mx.floating):
                continue
            rows = value.reshape(-1, value.shape[-1]) if value.ndim else value.reshape(1, 1)
            step = max(1, FINITE_SLICE // rows.shape[-1])
            bad = sum(int((~mx.isfinite(rows[i : i + step])).sum()) for i in range(0, rows.shape[0], step))
            if bad:
                raise ModelError(
                    f"{self.path}: {name} holds {bad} values that are NaN or infinite, expected finite weights; "
                    "download the checkpoint again."
                )

    def check(self) -> None:
        """Compare names and shapes of `weights()` with what the modules want, before any long work.

        Raises:
            ModelError: says which tensors are missing, unexpected or of another shape.
        """
        from mlx.utils import tree_flatten

        wanted = {name: tuple(value.shape) for name, value in tree_flatten(self.skeleton().parameters())}
        found = {name: tuple(value.shape) for name, value in self.weights().items()}
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        wrong = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
        for kind, names in (
            ("lacks", missing),
            ("has unexpected", extra),
            ("has other shapes than its config for", wrong),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ModelError(
                    f"{self.path}: the checkpoint {kind} {', '.join(names[:3])}{more}; "
                    "download it again, or check that config.json belongs to it."
                )


def _dense(tensors: dict[str, mx.array], quantization: dict[str, Any]) -> dict[str, mx.array]:
    """Replace codes, scales and biases by the float32 values that they stand for."""
    dense = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        if f"{path}.scales" not in tensors or leaf not in ("weight", "scales", "biases", "global_scale"):
            dense[name] = value
        elif leaf == "weight":
            dense[name] = _dense_weight(tensors, path, quantization)
    return dense


def _dense_weight(tensors: dict[str, mx.array], path: str, quantization: dict[str, Any]) -> mx.array:
    codes, scales, biases = tensors[f"{path}.weight"], tensors[f"{path}.scales"], tensors.get(f"{path}.biases")
    entry = quantization.get(path)
    entry = entry if isinstance(entry, dict) else quantization
    mode = entry.get("mode", quantization.get("mode", "affine"))
    if mode == "affine":
        group_size, bits = entry["group_size"], entry["bits"]
        if codes.shape[-1] * 32 != scales.shape[-1] * group_size * bits:  # an unnamed path: the shapes decide
            per_group = codes.shape[-1] * 32 // scales.shape[-1]
            group_size, bits = next((g, per_group // g) for g in (64, 32, 128) if per_group % g == 0)
        if scales.dtype == mx.float32 and biases is not None:
            return quantized.dequantize(codes, scales, biases, group_size=group_size, bits=bits)
        return mx.dequantize(codes, scales, biases, group_size, bits)
    return mx.dequantize(codes, scales, None, entry["group_size"], entry["bits"], mode=mode).astype(mx.float32)
