"""What the makers of a family recommend for sampling, per thinking mode, as data.

Only where a model card says more than the model's own generation_config.json can: a file has room for one mode, a card
names two. Each entry cites its card; the values are those for general text tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optiq.registry import Table


@dataclass(frozen=True)
class Family:
    """The models that share a recommendation.

    Args:
        model_types: the `model_type` of config.json or of its text_config.
        hidden_sizes: the smallest and largest `hidden_size` that belong to it.
        thinking: settings by name (`optiq.generate.sampling.SETTINGS`) where the model thinks before it answers.
        plain: the same where it does not.
        source: the model card.
    """

    model_types: tuple[str, ...]
    hidden_sizes: tuple[int, int]
    thinking: Mapping[str, float]
    plain: Mapping[str, float]
    source: str


ANY_SIZE = (1, 1 << 30)
_QWEN35_THINKING = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5}

FAMILIES: Table[Family] = Table("family of sampling presets")
# The 0.8B and 2B cards agree with each other and differ from the larger ones without thinking.
FAMILIES.add(
    "qwen3.5-small",
    Family(
        ("qwen3_5", "qwen3_5_text"),
        (1, 2048),
        thinking=_QWEN35_THINKING,
        plain={"temperature": 1.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "presence_penalty": 2.0},
        source="https://huggingface.co/Qwen/Qwen3.5-0.8B, sampling parameters, text tasks",
    ),
)
FAMILIES.add(
    "qwen3.5",
    Family(
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
        ANY_SIZE,
        thinking=_QWEN35_THINKING,
        plain={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5},
        source="https://huggingface.co/Qwen/Qwen3.5-4B, sampling parameters, general tasks",
    ),
)
FAMILIES.add(
    "qwen3",
    Family(
        ("qwen3", "qwen3_moe"),
        ANY_SIZE,
        thinking={"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
        plain={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
        source="https://huggingface.co/Qwen/Qwen3-8B, best practices",
    ),
)


def family_of(text_config: Mapping[str, Any]) -> str | None:
    """The first family of the table that a language model's config belongs to, or None."""
    hidden = text_config.get("hidden_size", 0)
    for name, family in FAMILIES.items():
        low, high = family.hidden_sizes
        if text_config.get("model_type") in family.model_types and low <= hidden <= high:
            return name
    return None


def preset(family: str | None, thinking: bool) -> Mapping[str, float]:
    """The family's settings for a mode; empty without a family."""
    if family is None:
        return {}
    return FAMILIES[family].thinking if thinking else FAMILIES[family].plain
