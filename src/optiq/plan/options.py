"""What may be chosen for a tensor: widths and group sizes that fit its shape, and what the user pinned.

Knows shapes and names only. A tensor that no group size divides has one option, bf16 as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from optiq.errors import InputError
from optiq.plan.size import AFFINE_BITS, AFFINE_GROUP_SIZES, affine_bytes, divides, tensor_bytes
from optiq.plan.types import UNQUANTIZED_BITS, Item, Option


@dataclass(frozen=True)
class Keep:
    """``--keep PATTERN=BITS``: items whose name matches are stored at ``bits`` (16: left in bf16)."""

    pattern: str
    bits: int

    def matches(self, name: str) -> bool:
        """Whether the shell pattern fits the whole name, or its end after a dot."""
        return fnmatchcase(name, self.pattern) or fnmatchcase(name, f"*.{self.pattern}")


def make_options(shape: Sequence[int], bits: Iterable[int], group_sizes: Iterable[int]) -> tuple[Option, ...]:
    """All (bits, group size) pairs that fit ``shape``, by bytes; bf16 alone where no group size does.

    Args:
        shape: of the dense tensor, last axis quantized.
        bits: widths to offer; 16 offers bf16 beside the quantized ones.
        group_sizes: weights per scale to offer.
    """
    wanted, sizes = sorted(set(bits)), sorted(set(group_sizes))
    found = [
        Option(width, size, affine_bytes(shape, width, size))
        for width in wanted
        if width != UNQUANTIZED_BITS
        for size in sizes
        if divides(shape, size)
    ]
    if not found or UNQUANTIZED_BITS in wanted:
        found.append(unquantized(shape))
    return tuple(sorted(found, key=lambda option: (option.bytes, option.bits)))


def unquantized(shape: Sequence[int]) -> Option:
    """The option that leaves the tensor in bf16."""
    return Option(UNQUANTIZED_BITS, 0, tensor_bytes(shape, "BF16"))


def parse_bits(text: str) -> tuple[int, ...]:
    """``"4,8"`` → (4, 8): the widths of ``--candidate-bits``.

    Raises:
        InputError: not integers, or a width that the affine format lacks.
    """
    return _parse_list(text, "--candidate-bits", (*AFFINE_BITS, UNQUANTIZED_BITS))


def parse_group_sizes(text: str) -> tuple[int, ...]:
    """``"32,64"`` → (32, 64): the sizes of ``--group-sizes``.

    Raises:
        InputError: not integers, or a size that the affine format lacks.
    """
    return _parse_list(text, "--group-sizes", AFFINE_GROUP_SIZES)


def parse_keep(text: str) -> Keep:
    """``"lm_head=8"`` → Keep: one ``--keep``.

    Raises:
        InputError: no ``=``, no pattern, or a width that cannot be stored.
    """
    pattern, equals, width = text.rpartition("=")
    known = (*AFFINE_BITS, UNQUANTIZED_BITS)
    bits = UNQUANTIZED_BITS if width == "bf16" else int(width) if width.isascii() and width.isdigit() else 0
    if not equals or not pattern or bits not in known:
        raise InputError(f"--keep {text!r} is not PATTERN=BITS, BITS one of {_listed(known)}; try --keep 'lm_head=8'")
    return Keep(pattern, bits)


def apply_keeps(items: Sequence[Item], keeps: Sequence[Keep]) -> tuple[list[Item], list[str]]:
    """Narrow the options of every item that a keep names; where several fit, the last one counts.

    Returns:
        The items in their order, and notes on those that had to stay in bf16 whatever was asked.

    Raises:
        InputError: a pattern that fits no item, or a width that the item has no measured option for.
    """
    for keep in keeps:
        if not any(keep.matches(item.name) for item in items):
            raise InputError(f"--keep {keep.pattern}={keep.bits} fits no tensor; names look like {items[0].name!r}")
    kept, notes = [], []
    for item in items:
        fitting = [keep for keep in keeps if keep.matches(item.name)]
        narrowed, note = _pinned(item, fitting[-1]) if fitting else (item, "")
        kept.append(narrowed)
        notes += [note] if note else []
    return kept, notes


def restrict(items: Sequence[Item], bits: Iterable[int] | None = None, group_sizes: Iterable[int] | None = None) -> list[Item]:
    """Leave only options of the given widths and group sizes (None: all); bf16 items stay as they are.

    Raises:
        InputError: an item would be left without any option.
    """
    widths = None if bits is None else set(bits)
    sizes = None if group_sizes is None else set(group_sizes)
    restricted = []
    for item in items:
        if all(option.bits == UNQUANTIZED_BITS for option in item.options):
            restricted.append(item)
            continue
        chosen = [
            i
            for i, option in enumerate(item.options)
            if (widths is None or option.bits in widths)
            and (sizes is None or option.group_size in sizes or option.bits == UNQUANTIZED_BITS)
        ]
        if not chosen:
            asked = f"bits {_listed(widths)} and group sizes {_listed(sizes)}"
            raise InputError(f"{item.name} has no measured option with {asked}; measured: {_options_text(item)}")
        restricted.append(_taking(item, chosen))
    return restricted


def fallback_notes(items: Sequence[Item], group_sizes: Iterable[int] = AFFINE_GROUP_SIZES) -> list[str]:
    """One line on the items that stay in bf16 because none of ``group_sizes`` divides their last axis, or none."""
    sizes = sorted(set(group_sizes))
    stuck = [item for item in items if not any(divides(item.shape, size) for size in sizes)]
    if not stuck:
        return []
    axes = sorted({item.shape[-1] if item.shape else 0 for item in stuck})
    names = ", ".join(item.name for item in stuck[:3]) + (", …" if len(stuck) > 3 else "")
    how_many = "1 tensor stays" if len(stuck) == 1 else f"{len(stuck)} tensors stay"
    return [f"{how_many} in bf16: no group size of {_listed(sizes)} divides the last axis ({_listed(axes)}): {names}"]


def _pinned(item: Item, keep: Keep) -> tuple[Item, str]:
    if keep.bits == UNQUANTIZED_BITS:
        return replace(item, options=(unquantized(item.shape),), damage=(0.0,)), ""
    chosen = [i for i, option in enumerate(item.options) if option.bits == keep.bits]
    if chosen:
        return _taking(item, chosen), ""
    if all(option.bits == UNQUANTIZED_BITS for option in item.options):
        return item, f"--keep {keep.pattern}={keep.bits}: {item.name} {item.shape} cannot be quantized, stays bf16"
    raise InputError(
        f"--keep {keep.pattern}={keep.bits}: {item.name} was not measured at {keep.bits} bits "
        f"(measured: {_options_text(item)}); convert again with --candidate-bits that has {keep.bits}"
    )


def only(item: Item, options: Iterable[Option]) -> Item:
    """The item with those of its options that are among ``options``."""
    wanted = set(options)
    return _taking(item, [i for i, option in enumerate(item.options) if option in wanted])


def _taking(item: Item, chosen: Sequence[int]) -> Item:
    return replace(item, options=tuple(item.options[i] for i in chosen), damage=tuple(item.damage[i] for i in chosen))


def _parse_list(text: str, flag: str, known: Sequence[int]) -> tuple[int, ...]:
    try:
        values = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise InputError(f"{flag} {text!r} is not a list of integers; try {flag} {known[0]},{known[1]}") from None
    for value in values:
        if value not in known:
            raise InputError(f"{flag} {text!r}: {value} is not one of {_listed(known)}")
    return values


def _options_text(item: Item) -> str:
    return ", ".join(f"{option.bits}g{option.group_size}" for option in item.options)


def _listed(values: Iterable[int] | None) -> str:
    return "all" if values is None else ", ".join(str(value) for value in sorted(values))
