"""The screens in the order of the menu: name, address, icon. Knows nothing of what is on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Screen:
    """One entry of the menu; ``icon`` is a name of the Material font that the UI library brings."""

    title: str
    path: str
    icon: str


SCREENS = (
    Screen("Models", "/", "inventory_2"),
    Screen("Chat", "/chat", "forum"),
    Screen("Compare", "/compare", "compare"),
    Screen("Quantize", "/quantize", "tune"),
    Screen("KV cache", "/kv-cache", "memory"),
    Screen("Fine-tune", "/fine-tune", "school"),
    Screen("Evaluate", "/evaluate", "checklist"),
    Screen("Server", "/server", "dns"),
    Screen("Jobs", "/jobs", "list_alt"),
)
