"""The Metal source of attention over packed tokens, compiled as C++ through a shim of Metal's types, against the definition."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from optiq.kernels import packed, packed_metal
from optiq.kernels.codebook import Codebook, lloyd, uniform
from optiq.kernels.packed import Form, Packed
from optiq.kernels.rotation import signs

COMPILER = shutil.which("g++") or shutil.which("clang++")
ELEMENTS = {
    "key_codes": "uint8_t",
    "value_codes": "uint8_t",
    "key_scales": "bfloat16_t",
    "value_scales": "bfloat16_t",
    "starts": "int",
}
pytestmark = pytest.mark.skipif(COMPILER is None, reason="compiling the kernel needs g++ or clang++")


def program(width: int, key_bits: int, value_bits: int) -> str:
    """The kernel as a C function of pointers, and of the shapes and strides that its body names."""
    header, body = packed_metal.source()
    inputs = [f"const {ELEMENTS.get(name, 'float')}* {name}" for name in packed_metal.INPUTS]
    outputs = [f"float* {name}" for name in packed_metal.OUTPUTS]
    facts = [f"const int* {name}_shape, const int64_t* {name}_strides" for name in packed_metal.INPUTS[:5]]
    return f"""
#include "{Path(__file__).parent / "metal_shim.h"}"
{header}
extern "C" void attend({", ".join([*inputs, *outputs, *facts])}, int rows, int all_parts) {{
    constexpr int D = {width}, KEY_BITS = {key_bits}, VALUE_BITS = {value_bits};
    for (int r = 0; r < rows; r++) for (int p = 0; p < all_parts; p++) shim::run([&](uint lane) {{
        const uint3 thread_position_in_threadgroup{{lane, 0, 0}}, threadgroup_position_in_grid{{0, uint(r), uint(p)}};
        const uint3 threadgroups_per_grid{{1, uint(rows), uint(all_parts)}};
        {body}
    }});
}}
"""


class Shim:
    """Compiled kernels by template; called as `packed_metal.launch`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, dict[tuple[int, int, int], Any]()

    def function(self, template: tuple[int, int, int]) -> Any:
        if template not in self.made:
            name = self.folder / "_".join(map(str, template))
            name.with_suffix(".cpp").write_text(program(*template))
            flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
            command = [str(COMPILER), *flags, str(name.with_suffix(".cpp")), "-o", str(name.with_suffix(".so"))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            self.made[template] = ctypes.CDLL(str(name.with_suffix(".so"))).attend
        return self.made[template]

    def __call__(
        self,
        query: mx.array,
        keys: Packed,
        values: Packed,
        key_book: Codebook,
        value_book: Codebook,
        starts: mx.array,
        parts: int,
    ) -> tuple[mx.array, mx.array, mx.array]:
        *shape, width = query.shape
        rows = int(np.prod(shape))
        # Slices of longer buffers, as a cache's arrays are, with something else behind them.
        arrays: list[np.ndarray] = [np.array(query)]
        for x in (*keys, *values):
            plain = np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)
            filled = np.concatenate([plain, np.full_like(plain[:, :, :1].repeat(3, 2), 0xEE)], 2)
            arrays.append(filled[:, :, : plain.shape[2]])
        arrays += [np.array(book.levels, np.float32) for book in (key_book, value_book)] + [np.array(starts)]
        results = [np.full((*shape, parts, *rest), np.nan, np.float32) for rest in ((width,), (), ())]
        facts: list[Any] = []
        for y in arrays[:5]:
            facts.append((ctypes.c_int * y.ndim)(*y.shape))
            facts.append((ctypes.c_int64 * y.ndim)(*(step // y.itemsize for step in y.strides)))
        pointers = [ctypes.c_void_p(y.ctypes.data) for y in (*arrays, *results)]
        self.function((width, key_book.bits, value_book.bits))(*pointers, *facts, rows, parts)
        sums, most, mass = (mx.array(x) for x in results)
        return sums, most, mass


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return Shim(tmp_path_factory.mktemp("metal"))


def normal(seed: int, *shape: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("books", [(lloyd(3), lloyd(3)), (lloyd(4), lloyd(2)), (uniform(5), lloyd(1)), (uniform(6), uniform(8))])
@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("tokens", [0, 1, 200])
def test_the_kernel_is_the_definition(shim: Shim, books: tuple[Codebook, Codebook], width: int, tokens: int) -> None:
    batch, groups, share, length, full = 2, 2, 2, 3, 5
    forms = []
    for i, book in enumerate(books):
        factor = mx.exp(0.3 * normal(i, groups, width))
        forms.append(
            Form(book, factor * signs(width, i), signs(width, i) / factor, "fit", normal(9, groups, width) if i else None)
        )
    stored = [packed.pack_reference(normal(2 + i, batch, groups, max(tokens, 1), width), kind) for i, kind in enumerate(forms)]
    keys, values = (Packed(x.codes[:, :, :tokens], x.scales[:, :, :tokens]) for x in stored)
    q = normal(5, batch, groups * share, length, width)
    k, v = normal(6, batch, groups, full, width), normal(7, batch, groups, full, width)
    for starts in (None, mx.array([0, min(7, tokens)], mx.int32)):
        arguments: dict[str, Any] = {"scale": width**-0.5, "starts": starts}
        found = packed_metal.attend(q, keys, values, k, v, forms[0], forms[1], run=shim, **arguments)
        expected = packed.attend_reference(q, keys, values, k, v, forms[0], forms[1], **arguments)
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=3e-6)


def test_it_is_not_asked_where_it_cannot_answer() -> None:
    q, k = normal(0, 1, 2, 1, 80), normal(1, 1, 1, 3, 80)
    assert not packed_metal.usable(q, k, None)
    assert not packed_metal.usable(q[..., :64], k, mx.ones((1, 3), mx.bool_))
    assert packed_metal.usable(q[..., :64], k, None) == (mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu))
