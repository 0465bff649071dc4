"""Responses that were kept, within a bound of bytes: the oldest go first. Nothing of it outlives the process."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optiq.serve.http.responses_body import Item


@dataclass(frozen=True)
class Kept:
    """A response.

    Args:
        response: as it was told.
        items: its input.
        messages: the conversation up to and with it, without instructions, as templates take it.
    """

    response: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    messages: Sequence[Mapping[str, Any]]

    @property
    def bytes(self) -> int:
        """About what it takes: its texts as JSON."""
        return len(json.dumps([self.response, self.items, self.messages]))


class Store:
    """Responses by id.

    Args:
        limit_bytes: what they may take together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kept: Kept) -> None:
        """Keep a response; one that is larger than the bound is not kept."""
        size = kept.bytes
        if size > self.limit_bytes:
            return
        self._kept[str(kept.response["id"])] = (kept, size)
        self.bytes += size
        while self.bytes > self.limit_bytes:
            self.bytes -= self._kept.popitem(last=False)[1][1]

    def get(self, id: str) -> Kept | None:
        """A response, which counts as the newest from now on."""
        if id not in self._kept:
            return None
        self._kept.move_to_end(id)
        return self._kept[id][0]

    def delete(self, id: str) -> bool:
        """Forget a response; whether there was one."""
        found = self._kept.pop(id, None)
        self.bytes -= 0 if found is None else found[1]
        return found is not None

    def item(self, id: str) -> Item | None:
        """An item of the input or the output of any response."""
        for kept, _ in reversed(self._kept.values()):
            for item in (*kept.response["output"], *kept.items):
                if item.get("id") == id:
                    return Item.model_validate(item)
        return None
