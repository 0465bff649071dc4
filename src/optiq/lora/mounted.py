"""Adapters that stand ready beside a model, and forwards in which each row of the batch uses its own.

The model itself is not changed by mounting: a forward outside of `rows`, or with no adapter in it, is that of the bare model.
Data in: adapters (`optiq.lora.adapters`), names. Data out: a context for a forward.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from optiq.errors import InputError
from optiq.lora.adapters import Adapter
from optiq.lora.experts import ExpertBank
from optiq.lora.layers import Bank, Part
from optiq.models.adapted import Change, changing, linear_layers

KEPT = 32  # compositions of batches whose changes are remembered


class Mounted:
    """The adapters of one model.

    Args:
        model: as `optiq.models.load.load` gives it.
    """

    def __init__(self, model: Any) -> None:
        self._layers = linear_layers(model)
        self._modules = dict(model.named_modules())
        self._banks: dict[str, Bank | ExpertBank] = {}
        self._adapters: dict[str, Adapter] = {}
        self._changes: OrderedDict[tuple[str | None, ...], list[tuple[Any, Change]]] = OrderedDict()

    def mount(self, name: str, adapter: Adapter) -> None:
        """Make an adapter usable under a name.

        Raises:
            InputError: the name is taken.
        """
        if name in self._adapters:
            raise InputError(f"an adapter {name!r} is mounted already, from {self._adapters[name].path}; choose another name")
        for path, part in adapter.parts.items():
            self._add(name, path, part)
        self._adapters[name] = Adapter(adapter.path, adapter.sha256, {})  # the banks have the parts
        self._changes.clear()

    def unmount(self, name: str) -> None:
        """Forget an adapter and free its memory.

        Raises:
            InputError: there is none of this name.
        """
        self._known(name)
        del self._adapters[name]
        for path in [path for path, bank in self._banks.items() if name in bank.names]:
            self._banks[path].remove(name)
            if not self._banks[path].names:
                del self._banks[path]
        self._changes.clear()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters, in the order in which they were mounted."""
        return tuple(self._adapters)

    @property
    def nbytes(self) -> int:
        """What all adapters take in memory."""
        return sum(bank.nbytes for bank in self._banks.values())

    def sha256(self, name: str | None) -> str:
        """The hash of an adapter, "" for none: part of the key of whatever was computed with it.

        Raises:
            InputError: there is none of this name.
        """
        return "" if name is None else self._known(name).sha256

    def rows(self, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """A context for one forward of the model, `[B, L]` tokens.

        Args:
            names: [B], each row's adapter, or None for the bare model.

        Raises:
            InputError: there is none of this name.
        """
        for name in names:
            if name is not None:
                self._known(name)
        if all(name is None for name in names):
            return nullcontext()
        key = tuple(names)
        if key not in self._changes:
            found = [(bank.layer, bank.delta(names)) for bank in self._banks.values()]
            self._changes[key] = [(layer, delta) for layer, delta in found if delta is not None]
        self._changes.move_to_end(key)
        if len(self._changes) > KEPT:
            self._changes.popitem(last=False)
        return changing(self._changes[key])

    def _add(self, name: str, path: str, part: Part) -> None:
        """Put one part of an adapter into the bank of its layer, or of the MLP of experts that its layer stands in."""
        owner, _, projection = path.rpartition(".")
        place = path if path in self._layers else owner
        bank = self._banks.get(place)
        if bank is None:
            bank = self._banks[place] = Bank(self._layers[path]) if place == path else ExpertBank(self._modules[owner])
        if isinstance(bank, Bank):
            bank.add(name, part)
        else:
            bank.add(name, part, projection)

    def _known(self, name: str) -> Adapter:
        if name not in self._adapters:
            told = ", ".join(self._adapters) or "none"
            raise InputError(f"no adapter {name!r} is mounted; mounted: {told}")
        return self._adapters[name]
