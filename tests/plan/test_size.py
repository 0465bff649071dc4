"""Sizes are the bytes that really stand on the disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.plan.size import AFFINE_BITS, AFFINE_GROUP_SIZES, affine_bytes, safetensors_header_bytes, tensor_bytes

mx = pytest.importorskip("mlx.core")


@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
@pytest.mark.parametrize("shape", [(8, 128), (3, 16, 384)])
def test_affine_bytes_equal_the_arrays(shape: tuple[int, ...], bits: int, group_size: int) -> None:
    arrays = mx.quantize(mx.zeros(shape, dtype=mx.bfloat16), group_size=group_size, bits=bits)
    assert affine_bytes(shape, bits, group_size) == sum(array.nbytes for array in arrays)


def test_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="groups of 32 do not divide the last axis 172"):
        affine_bytes((64, 172), 4, 32)


def test_tensor_bytes_takes_both_names() -> None:
    assert tensor_bytes((3, 5), "BF16") == tensor_bytes((3, 5), "bfloat16") == tensor_bytes((3, 5), "mlx.core.float16")
    with pytest.raises(InputError, match="unknown dtype 'bf17'"):
        tensor_bytes((1,), "bf17")


def test_header_equals_what_mlx_writes(tmp_path: Path) -> None:
    arrays = {f"layers.{i}.weight": mx.zeros((4, 64), dtype=mx.bfloat16) for i in range(12)}
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})
    ours = dict.fromkeys(arrays, ("BF16", (4, 64)))
    payload = sum(array.nbytes for array in arrays.values())
    assert safetensors_header_bytes(ours, pad_to=1) + payload == path.stat().st_size
    assert safetensors_header_bytes(ours) == 8 + math.ceil((safetensors_header_bytes(ours, pad_to=1) - 8) / 8) * 8
