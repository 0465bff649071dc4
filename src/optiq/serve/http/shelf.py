"""The models of a server, by the names that clients give them: `model`, `model:adapter`, or the adapter's alone.

A name is looked up, never made a path of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from optiq.serve.http.context import Chosen, Served, UnknownModel

ANY = "*"
CONFIG = "config.json"


class Folder:
    """The models below a directory: its folders, and theirs (`owner/name`).

    Args:
        path: of the directory.
        make: a model of a name and a directory; called once for each model that is asked for.
        allowed: names that may be asked for; empty for all.
    """

    def __init__(self, path: Path, make: Callable[[str, Path], Served], allowed: Sequence[str] = ()) -> None:
        self._path, self._make, self._allowed = path, make, frozenset(allowed)
        self._made: dict[str, Served] = {}
        self._lock = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """That may be asked for, as the directory is now."""
        files = [*self._path.glob(f"*/{CONFIG}"), *self._path.glob(f"*/*/{CONFIG}")]
        found = sorted(file.parent.relative_to(self._path).as_posix() for file in files)
        return tuple(name for name in found if not name.startswith(".") and (not self._allowed or name in self._allowed))

    async def find(self, name: str) -> Served | None:
        """A model, or None where there is none of this name.

        Raises:
            OptiqError: its files are damaged.
        """
        async with self._lock:
            if name not in self._made and name in self.names:
                self._made[name] = await asyncio.to_thread(self._make, name, self._path / name)
            return self._made.get(name)


class Shelf:
    """One model that is asked for by default, and perhaps others.

    Args:
        served: the default one.
        aliases: further names of it; `*` for any that nothing else has.
        folder: the others.
    """

    def __init__(self, served: Served, aliases: Sequence[str] = (), folder: Folder | None = None) -> None:
        self._served, self._folder = served, folder
        self._own = frozenset((served.id, served.id.rpartition("/")[2], *aliases))

    @property
    def names(self) -> tuple[str, ...]:
        """The default model's, those of its adapters, those of the others."""
        served = self._served
        others = [] if self._folder is None else [name for name in self._folder.names if name not in self._own]
        return (served.id, *(f"{served.id}:{name}" for name in served.gateway.adapters), *others)

    @property
    def ready(self) -> bool:
        """Whether the engine makes progress."""
        return self._served.gateway.ready

    async def open(self, name: str | None = None, adapter: str | None = None) -> Chosen:
        """The model, with the adapter that is named."""
        served, of_name = await self._find(name or self._served.id)
        adapter = adapter or of_name
        adapters = served.gateway.adapters
        if adapter and adapter not in adapters:
            raise UnknownModel(f"no adapter {adapter[:100]!r} is mounted; mounted: {', '.join(adapters) or 'none'}")
        return Chosen(served, adapter or None)

    async def _find(self, name: str) -> tuple[Served, str | None]:
        """A model and the adapter that the name tells."""
        if (served := await self._known(name)) is not None:
            return served, None
        base, _, adapter = name.rpartition(":")
        served = await self._known(base) if base else self._served
        if served is not None and adapter in served.gateway.adapters:
            return served, adapter
        if ANY in self._own:
            return self._served, None
        raise UnknownModel(f"model {name[:100]!r} is not served; known: {', '.join(self.names)}")

    async def _known(self, name: str) -> Served | None:
        if name in self._own and name != ANY:
            return self._served
        return None if self._folder is None else await self._folder.find(name)
