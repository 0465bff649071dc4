"""Load a model directory for use: mlx-lm's loader with the classes of `optiq.models.arch`."""

from __future__ import annotations

import os
from typing import Any

from optiq.errors import ModelError
from optiq.models import arch
from optiq.models.checkpoint import Checkpoint
from optiq.models.hub import resolve


def load(model: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Model and tokenizer of a local directory or hub id, ready for `mlx_lm.generate`.

    Directories that the reference product published load as well: its side files are not read by the loader.

    Raises:
        OptiqError: not found, damaged, or an architecture that is not known.
    """
    from mlx_lm.utils import load_model, load_tokenizer

    path = resolve(model)
    Checkpoint.open(path)
    try:
        loaded, config = load_model(path, get_model_classes=lambda config: arch.classes(config))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: mlx-lm cannot load it ({error}).") from error
    return loaded, load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
