"""What the command line can ask of the caches, checked: a width with a scheme, or a file; it becomes a maker of caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optiq.errors import InputError
from optiq.kv.recipe import WIDTHS, Recipe, check_bits, check_scheme, preset

if TYPE_CHECKING:
    from optiq.kv.config import Config

DEFAULT_SCHEME = "best"


@dataclass(frozen=True)
class CacheOptions:
    """How keys and values are cached.

    Args:
        bits: of keys and values; None for full precision, or what the file says.
        scheme: one of `recipe.SCHEMES`; None for `DEFAULT_SCHEME`.
        config: a kv_config.json, or a directory with one.

    Raises:
        InputError: they contradict each other, or the scheme does not have the width.
    """

    bits: int | None = None
    scheme: str | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        if self.scheme is not None:
            check_scheme(self.scheme, "--kv-scheme")
        if self.config is not None and (self.bits is not None or self.scheme is not None):
            other = "--kv-bits" if self.bits is not None else "--kv-scheme"
            raise InputError(f"--kv-config names the widths and schemes of layers, and {other} too; leave one of the two out")
        if self.scheme is not None and self.bits is None:
            known = ", ".join(map(str, WIDTHS[self.scheme]))
            raise InputError(f"--kv-scheme {self.scheme} comes without a width; add --kv-bits with one of {known}")
        if self.bits is not None:
            check_bits(self.scheme or DEFAULT_SCHEME, self.bits, "--kv-bits")

    @property
    def text(self) -> str:
        """What is asked for, in a word or two; empty for full precision."""
        if self.config is not None:
            return self.config
        return "" if self.bits is None else f"{self.scheme or DEFAULT_SCHEME} {self.bits}"

    def read(self) -> Maker:
        """What makes such caches; a file is read now.

        Raises:
            InputError: no such file.
            FormatError: it cannot be read.
        """
        if self.config is not None:
            from optiq.kv.config import read_config

            return Maker(self.text, config=read_config(self.config))
        recipe = None if self.bits is None else preset(self.scheme or DEFAULT_SCHEME, self.bits)
        return Maker(self.text, recipe)


@dataclass(frozen=True)
class Maker:
    """Makes fresh caches for a model; at most one of recipe and config.

    Args:
        text: what was asked for, in a word or two; empty for full precision.
        recipe: for all layers.
        config: by layer.
    """

    text: str
    recipe: Recipe | None = None
    config: Config | None = None

    def check(self, model: Any) -> None:
        """Whether the model has what is to be packed.

        Raises:
            InputError: the file is for another model.
            ModelError: no key/value cache can be packed.
        """
        from optiq.kv import attach

        if self.config is not None:
            self.config.check(model)
        elif self.recipe is not None:
            attach.layers(model)

    def __call__(self, model: Any) -> list[Any]:
        from optiq.kv import attach
        from optiq.models.caches import make_caches

        if self.config is not None:
            return attach.make_caches(model, self.config.recipes, self.config.known)
        return make_caches(model) if self.recipe is None else attach.make_caches(model, self.recipe)
