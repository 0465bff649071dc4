"""The tags between which models think, whose they are, and how to take the reasoning out of a reply. No MLX, no mlx-lm.

The reply that a model writes may begin inside the block: most templates write the opening tag at the end of the prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Tags:
    """What opens and what closes the reasoning."""

    open: str
    close: str

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends inside the reasoning, so that the reply begins there."""
        return prompt.rstrip().endswith(self.open)


THINK = Tags("<think>", "</think>")

# In this order: the first whose closing tag stands in a template is the template's.
KNOWN = (
    THINK,
    Tags("[THINK]", "[/THINK]"),  # Magistral
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
)


def tags_of(template: str) -> Tags | None:
    """The tags that a chat template writes or takes out; None where it knows no reasoning."""
    return next((tags for tags in KNOWN if tags.close in template), None)


def strip_reasoning(text: str, tags: Tags = THINK) -> str:
    """A whole reply without its reasoning and without white space around the rest.

    Taken out are: what stands before a first closing tag without an opening one (the prompt had that); every closed block;
    all, where the rest begins with a block that never ends, for that holds no answer.

    Args:
        text: as the model wrote it.
        tags: the model's.
    """
    first = text.find(tags.close)
    if first >= 0 and tags.open not in text[:first]:
        text = text[first + len(tags.close) :]
    text = re.sub(re.escape(tags.open) + ".*?" + re.escape(tags.close), "", text, flags=re.DOTALL)
    return "" if text.lstrip().startswith(tags.open) else text.strip()
