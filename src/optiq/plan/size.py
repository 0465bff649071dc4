"""Exact bytes of tensors and of safetensors headers, as they will stand on the disk.

Knows shapes and dtype names only. The affine format of MLX: ``bits`` per weight packed into 32-bit words along the
last axis, one scale and one bias (two bytes each, bf16 or f16) per group of ``group_size`` weights of that axis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

from optiq.errors import InputError

SCALE_BYTES = 2  # bf16 and f16 alike
AFFINE_BITS = (2, 3, 4, 5, 6, 8)  # the widths that mx.quantize knows in affine mode
AFFINE_GROUP_SIZES = (32, 64, 128)

DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element by the name that safetensors uses."""

SAFETENSORS_NAMES: dict[str, str] = {
    "bool": "BOOL", "bool_": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16",
    "bfloat16": "BF16", "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64",
    "float64": "F64", "complex64": "C64",
}  # fmt: skip
"""The safetensors name of a dtype by its MLX or numpy name."""


def divides(shape: Sequence[int], group_size: int) -> bool:
    """Whether groups of ``group_size`` tile the last axis (and its codes fill whole 32-bit words)."""
    return bool(shape) and group_size > 0 and shape[-1] % group_size == 0 and shape[-1] % 32 == 0


def affine_bytes(shape: Sequence[int], bits: int, group_size: int) -> int:
    """Bytes of codes, scales and biases: ``n·bits/8 + 2·2·n/group_size`` for ``n`` weights.

    Args:
        shape: of the dense tensor, last axis quantized; leading axes (rows, experts) are free.
        bits: per code.
        group_size: weights per scale and bias.

    Raises:
        InputError: the groups do not tile the last axis.
    """
    if not divides(shape, group_size):
        last = shape[-1] if shape else 0
        raise InputError(f"groups of {group_size} do not divide the last axis {last} of shape {tuple(shape)}")
    weights = prod(shape)
    return weights * bits // 8 + 2 * SCALE_BYTES * (weights // group_size)


def tensor_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a dense tensor; ``dtype`` as safetensors (``BF16``) or MLX (``bfloat16``) names it.

    Raises:
        InputError: unknown dtype name.
    """
    return prod(shape) * DTYPE_BYTES[safetensors_name(dtype)]


def safetensors_name(dtype: str) -> str:
    """The safetensors name of ``dtype``, given in that form, as MLX prints it, or as numpy does.

    Raises:
        InputError: unknown dtype name.
    """
    bare = dtype.removeprefix("mlx.core.")
    name = SAFETENSORS_NAMES.get(bare, bare)
    if name not in DTYPE_BYTES:
        raise InputError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPE_BYTES)}")
    return name


def safetensors_header_bytes(
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    pad_to: int = 8,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Bytes before the first weight: the 8-byte length and the JSON header, padded with spaces.

    Args:
        tensors: name → (dtype, shape), in the order in which the data are laid out.
        pad_to: the header's length becomes a multiple of this (8 by the format's advice; stock MLX pads to 1).
        metadata: the ``__metadata__`` entry; None stands for the one that MLX models carry, ``{"format": "mlx"}``.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"} if metadata is None else dict(metadata)}
    start = 0
    for name, (dtype, shape) in tensors.items():
        end = start + tensor_bytes(shape, dtype)
        entry = {"dtype": safetensors_name(dtype), "shape": list(shape), "data_offsets": [start, end]}
        header[name] = entry
        start = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
    return 8 + -(-length // pad_to) * pad_to
