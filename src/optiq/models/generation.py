"""What a model directory says about generating: recommended settings, tokens that end a reply, length of the context.

Reads config.json and generation_config.json; knows nothing of how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optiq.files import read_json
from optiq.models import shards

GENERATION_CONFIG = "generation_config.json"


def generation_config(path: Path) -> dict[str, Any]:
    """The directory's generation_config.json; empty where there is none.

    Raises:
        FormatError: it is not a JSON object.
    """
    file = Path(path) / GENERATION_CONFIG
    return read_json(file, "generation config", schema=None) if file.is_file() else {}


def text_config(path: Path) -> dict[str, Any]:
    """The part of config.json that describes the language model."""
    config = shards.read_config(Path(path))
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def stop_ids(path: Path, tokenizer: Any = None) -> frozenset[int]:
    """Every token id that ends a reply: of generation_config.json, of both levels of config.json, of the tokenizer.

    They often differ (a chat model ends a turn with one token and a document with another), so all of them count.
    """
    config = shards.read_config(Path(path))
    found: set[int] = set(getattr(tokenizer, "eos_token_ids", ()))
    for source in (generation_config(path), config, config.get("text_config")):
        value = source.get("eos_token_id") if isinstance(source, Mapping) else None
        found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return frozenset(found)


def context_length(path: Path) -> int | None:
    """Tokens that the model was made for (`max_position_embeddings`); None where the config does not say."""
    value = text_config(path).get("max_position_embeddings")
    return value if isinstance(value, int) and value > 0 else None
