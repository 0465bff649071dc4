"""The models of a server, by the names that clients give them: `model`, `model:adapter`, or the adapter's alone."""

from __future__ import annotations

from collections.abc import Sequence

from optiq.serve.http.context import Chosen, Served, UnknownModel

ANY = "*"


class Shelf:
    """One model that is always there, under its id and other names.

    Args:
        served: the model.
        aliases: further names; `*` for any.
    """

    def __init__(self, served: Served, aliases: Sequence[str] = ()) -> None:
        self._served, self._aliases = served, tuple(aliases)

    @property
    def names(self) -> tuple[str, ...]:
        """The model's, then those of its adapters."""
        served = self._served
        return (served.id, *(f"{served.id}:{name}" for name in served.gateway.adapters))

    @property
    def ready(self) -> bool:
        """Whether its engine makes progress."""
        return self._served.gateway.ready

    async def open(self, name: str | None = None, adapter: str | None = None) -> Chosen:
        """The model, with the adapter that is named."""
        adapters = self._served.gateway.adapters
        if name and not self._known(name):
            base, _, after = name.rpartition(":")
            if after not in adapters or (base and not self._known(base)):
                raise UnknownModel(f"model {name[:100]!r} is not served; known: {', '.join(self.names)}")
            adapter = adapter or after
        if adapter and adapter not in adapters:
            raise UnknownModel(f"no adapter {adapter[:100]!r} is mounted; mounted: {', '.join(adapters) or 'none'}")
        return Chosen(self._served, adapter or None)

    def _known(self, name: str) -> bool:
        own = (self._served.id, self._served.id.rpartition("/")[2], *self._aliases)
        return name in own or (ANY in self._aliases and name.rpartition(":")[2] not in self._served.gateway.adapters)
