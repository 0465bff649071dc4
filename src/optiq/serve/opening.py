"""How the engine's process gets its engine: from the facts that a command line has, as JSON can carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optiq.kv.options import CacheOptions, Maker
from optiq.serve.request import Serving


@dataclass(frozen=True)
class Opened:
    """An engine, and the kinds of caches that requests know by a name alone."""

    engine: Serving
    makers: Mapping[str, Maker] = field(default_factory=dict)


def open_engine(
    model: str,
    caches: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    mtp: bool = False,
    **options: Any,
) -> Opened:
    """Load a model and put an engine around it.

    Args:
        model: its directory.
        caches: fields of `CacheOptions`.
        policy: fields of `Policy`.
        mtp: whether the model's own head guesses tokens ahead.
        options: further fields of `EngineOptions`.

    Raises:
        OptiqError: it cannot be loaded, or does not have such caches, or no such head.
    """
    from optiq.generate.drafter import load_drafters
    from optiq.models.load import load
    from optiq.serve.drafting import Drafts
    from optiq.serve.engine import Engine, EngineOptions
    from optiq.serve.scheduler import Policy

    maker = CacheOptions(**caches or {}).read()
    modules, tokenizer = load(model)
    maker.check(modules)
    drafts = Drafts(load_drafters(Path(model), modules)) if mtp else None
    engine = Engine(modules, tokenizer, EngineOptions(policy=Policy(**policy or {}), **options), drafts)
    return Opened(engine, {maker.text: maker})
