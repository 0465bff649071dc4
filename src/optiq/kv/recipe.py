"""How the cache of one layer stores its tokens, checked. Data: frozen dataclasses and presets by scheme; no MLX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from optiq.errors import InputError

Scheme = Literal["affine", "turbo", "best"]
FULL = 16  # bits of a side that is left as the model computes it

WIDTHS: Mapping[str, tuple[int, ...]] = {
    "affine": (2, 3, 4, 5, 6, 8),
    "turbo": (1, 2, 3, 4),
    "best": (2, 3, 4, 5, 6, 8),
}
SCHEMES = tuple(WIDTHS)
GROUP_SIZES = (32, 64, 128)
CODEBOOKS = ("lloyd", "uniform")
SCALINGS = ("norm", "fit", "exact", "search")

SINKS = 4  # the first tokens, which every later one attends to: quantization.md, section 5
TAIL = 64  # the newest tokens


@dataclass(frozen=True)
class Recipe:
    """One layer's cache.

    Args:
        scheme: `affine` (MLX's groups of codes), `turbo` (TurboQuant: rotated codes, one scale per vector) or `best` (rotated
            codes of mean-centred keys, searched codes with exact scales, full-precision sinks and tail).
        k_bits, v_bits: of keys and values, one of `WIDTHS`; `FULL` for one side leaves it as it is.
        group_size: affine: values per scale and bias.
        sinks: how many of the first tokens stay in full precision.
        tail: how many of the newest tokens do.
        seed: of the signs before the rotation; keys take it, values the next one.
        codebook: `lloyd` up to 4 bits and uniform above, or `uniform` throughout.
        scaling: the scale that is stored: `norm` of the vector, least-squares `fit`, `exact` (a vector times itself as packed is
            right), or `search`, which also looks for better codes (`optiq.kernels.packed`).

    Raises:
        InputError: a value that the scheme does not have.
    """

    scheme: Scheme
    k_bits: int
    v_bits: int
    group_size: int = 64
    sinks: int = 0
    tail: int = 0
    seed: int = 42
    codebook: str = "lloyd"
    scaling: str = "norm"

    def __post_init__(self) -> None:
        check_scheme(self.scheme)
        for name in ("k_bits", "v_bits"):
            check_bits(self.scheme, getattr(self, name), name, spare=True)
        if self.k_bits == self.v_bits == FULL:
            raise InputError("k_bits and v_bits are both 16, which stores nothing in fewer bits; leave the layer out instead")
        _one_of("group_size", self.group_size, GROUP_SIZES)
        _one_of("codebook", self.codebook, CODEBOOKS)
        _one_of("scaling", self.scaling, SCALINGS)
        for name in ("sinks", "tail", "seed"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(f"{name} is {value!r}, expected a whole number of at least 0")

    @property
    def bits(self) -> int:
        """The larger of the two widths, for readers that know one."""
        return max(self.k_bits, self.v_bits)

    @property
    def centred(self) -> bool:
        """Whether keys lose their mean."""
        return self.scheme == "best"


def preset(scheme: str, k_bits: int, v_bits: int | None = None, group_size: int = 64, seed: int = 42) -> Recipe:
    """What a scheme stands for at a width.

    Raises:
        InputError: no such scheme, or a width that it does not have.
    """
    check_scheme(scheme)
    v_bits = k_bits if v_bits is None else v_bits
    if scheme == "best":
        return Recipe("best", k_bits, v_bits, group_size, SINKS, TAIL, seed, "lloyd", "search")
    return Recipe("turbo" if scheme == "turbo" else "affine", k_bits, v_bits, group_size, seed=seed)


def check_scheme(scheme: object, name: str = "scheme") -> None:
    """Raises InputError for an unknown scheme."""
    _one_of(name, scheme, SCHEMES)


def check_bits(scheme: str, bits: object, name: str = "bits", spare: bool = False) -> None:
    """Raises InputError for a width that the scheme does not have; `spare` admits `FULL` too."""
    if type(bits) is int and (bits in WIDTHS[scheme] or (spare and bits == FULL)):
        return
    known = ", ".join(map(str, WIDTHS[scheme]))
    raise InputError(f"{name} is {bits!r}, which scheme {scheme} does not have; expected one of {known}")


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")
