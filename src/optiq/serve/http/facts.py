"""What a server has to know of a model directory besides its weights: tokenizer, template, family, context, stop tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq.kv.options import Maker
from optiq.models.families import FAMILIES, family_of
from optiq.models.generation import context_length, generation_config, stop_ids, text_config
from optiq.models.load import load_tokenizer
from optiq.models.thinking import tags_of
from optiq.serve.gateway import Gateway
from optiq.serve.http.context import MAX_REPLY_TOKENS, Served
from optiq.serve.request import FULL_PRECISION


@dataclass(frozen=True)
class Choices:
    """What a command line decides for all requests that do not say otherwise.

    Args:
        settings: sampling settings by name.
        use: of the family's presets.
        max_tokens: of a reply.
        thinking: whether to think; None leaves it to the template.
        caches: how keys and values are kept.
        draft: whether speculation may draft.
        context: at most so many tokens of prompt and reply; 0 for what the model was made for.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    use: str | None = None
    max_tokens: int = MAX_REPLY_TOKENS
    thinking: bool | None = None
    caches: Maker = FULL_PRECISION
    draft: bool = False
    context: int = 0


def read_facts(path: Path, name: str, gateway: Gateway, choices: Choices) -> Served:
    """A model directory with its gateway, as routes see it.

    Raises:
        OptiqError: a file is missing or damaged.
    """
    tokenizer = load_tokenizer(path)
    template = _template(tokenizer)
    family = family_of(text_config(path))
    tags = tags_of(template) if template else None
    if tags is None and family is not None and template:
        tags = FAMILIES[family].tags
    made_for = context_length(path) or 0
    return Served(
        name,
        int((path / "config.json").stat().st_mtime),
        gateway,
        tokenizer,
        template=template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else "",
        family=family,
        tags=tags,
        context=min(choices.context, made_for) if choices.context and made_for else choices.context or made_for,
        stop_ids=stop_ids(path, tokenizer),
        generation_config=generation_config(path),
        settings=choices.settings,
        use=choices.use,
        max_tokens=choices.max_tokens,
        thinking=choices.thinking,
        caches=choices.caches,
        draft=choices.draft,
        vocabulary=len(tokenizer._tokenizer),
    )


def _template(tokenizer: Any) -> str:
    """The text of the chat template; of several the default one."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default", "")
    return found if isinstance(found, str) else ""
