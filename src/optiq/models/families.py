"""Families of models as data: how they think, what their makers and guides recommend for sampling, what their templates want.

One row per family. Settings of the two modes stand here where a model card says more than the model's own
generation_config.json can (a file has room for one mode, a card names two); settings by use are the family guide's. Each
source is cited. No MLX, no mlx-lm: what reads this table may be as light as a command's help page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optiq.errors import InputError
from optiq.models.thinking import THINK, Tags
from optiq.registry import Table

USES = ("reasoning", "chat", "deterministic")
Settings = Mapping[str, float]  # by the names of `optiq.generate.sampling.SETTINGS`


@dataclass(frozen=True)
class Quirks:
    """What a family's chat template asks of a conversation beyond the usual.

    Args:
        system_first: it refuses a system message that is not the first one.
        question_needed: it refuses a conversation without a user's message.
        argument_mappings: arguments of earlier calls have to be mappings, not JSON text.
        drops_reasoning: it leaves the reasoning out of replies before the last question, so a prompt does not begin with all
            of the one before it.
    """

    system_first: bool = False
    question_needed: bool = False
    argument_mappings: bool = False
    drops_reasoning: bool = False


@dataclass(frozen=True)
class Family:
    """The models that share a row.

    Args:
        model_types: the `model_type` of config.json or of its text_config.
        hidden_sizes: the smallest and largest `hidden_size` that belong to it.
        tags: what opens and closes its reasoning; None where it does not think. A template at hand decides (`tags_of`).
        thinks: whether it thinks where the request does not say.
        thinking: the card's settings where the model thinks before it answers.
        plain: the same where it does not.
        source: the model card.
        uses: the guide's settings by use (`USES`).
        guide: where those are from.
        quirks: of its template.
    """

    model_types: tuple[str, ...]
    hidden_sizes: tuple[int, int]
    tags: Tags | None
    thinks: bool
    thinking: Settings
    plain: Settings
    source: str
    uses: Mapping[str, Settings]
    guide: str
    quirks: Quirks = field(default_factory=Quirks)


ANY_SIZE = (1, 1 << 30)
_QWEN35_THINKING = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5}
_QWEN35_USES = {
    "reasoning": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "chat": {"temperature": 0.7, "top_p": 0.9},
    "deterministic": {"temperature": 0.0},
}
_QWEN35_GUIDE = "the Qwen3.5 family guide of mlx-optiq, recommended sampling"
_QWEN35_QUIRKS = Quirks(system_first=True, question_needed=True, argument_mappings=True, drops_reasoning=True)
_QWEN3_THINKING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
_QWEN3_PLAIN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}
_QWEN3_CARD = "https://huggingface.co/Qwen/Qwen3-8B, best practices"

FAMILIES: Table[Family] = Table("family of models")
# The 0.8B and 2B cards agree with each other and differ from the larger ones without thinking, which is their default.
FAMILIES.add(
    "qwen3.5-small",
    Family(
        ("qwen3_5", "qwen3_5_text"),
        (1, 2048),
        tags=THINK,
        thinks=False,
        thinking=_QWEN35_THINKING,
        plain={"temperature": 1.0, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "presence_penalty": 2.0},
        source="https://huggingface.co/Qwen/Qwen3.5-0.8B, sampling parameters, text tasks",
        uses=_QWEN35_USES,
        guide=_QWEN35_GUIDE,
        quirks=_QWEN35_QUIRKS,
    ),
)
FAMILIES.add(
    "qwen3.5",
    Family(
        ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
        ANY_SIZE,
        tags=THINK,
        thinks=True,
        thinking=_QWEN35_THINKING,
        plain={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5},
        source="https://huggingface.co/Qwen/Qwen3.5-4B, sampling parameters, general tasks",
        uses=_QWEN35_USES,
        guide=_QWEN35_GUIDE,
        quirks=_QWEN35_QUIRKS,
    ),
)
FAMILIES.add(
    "qwen3",
    Family(
        ("qwen3", "qwen3_moe"),
        ANY_SIZE,
        tags=THINK,
        thinks=True,
        thinking=_QWEN3_THINKING,
        plain=_QWEN3_PLAIN,
        source=_QWEN3_CARD,
        uses={"reasoning": _QWEN3_THINKING, "chat": _QWEN3_PLAIN, "deterministic": {"temperature": 0.0}},
        guide=_QWEN3_CARD,
        quirks=Quirks(drops_reasoning=True),
    ),
)


def family_of(text_config: Mapping[str, Any]) -> str | None:
    """The first family of the table that a language model's config belongs to, or None."""
    hidden = text_config.get("hidden_size")
    if not isinstance(hidden, int):
        return None
    for name, family in FAMILIES.items():
        low, high = family.hidden_sizes
        if text_config.get("model_type") in family.model_types and low <= hidden <= high:
            return name
    return None


def preset(family: str | None, thinking: bool, use: str | None = None) -> Settings:
    """The family's settings for a use or, without one, for a mode; empty without a family.

    Args:
        family: a name in `FAMILIES`, None for a model of no known family.
        thinking: the mode.
        use: one of `USES`.

    Raises:
        InputError: a use is asked for and no family is known.
    """
    if family is None:
        if use is not None:
            known = ", ".join(FAMILIES)
            raise InputError(f"--preset is {use}, and this model is of no known family ({known}); give --temp and the like")
        return {}
    row = FAMILIES[family]
    return row.uses[use] if use is not None else row.thinking if thinking else row.plain
