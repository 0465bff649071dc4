"""Load a model directory for use: mlx-lm's loader with the classes of `optiq.models.arch`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from optiq.errors import ModelError
from optiq.kernels import memory, native
from optiq.models import arch, layers
from optiq.models.chat import TOKENIZER_FILES, has_tokenizer
from optiq.models.checkpoint import Checkpoint
from optiq.models.generation import stop_ids
from optiq.models.hub import resolve

# What constructors and loaders of mlx-lm raise where a config does not tell the truth about its weights.
_LIES = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, IndexError, OSError, RuntimeError)
_LONGEST_REASON = 240


def load(model: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Model and tokenizer of a local directory or hub id, ready for `mlx_lm.generate`.

    Directories that the reference product published load as well: its side files are not read by the loader.

    Raises:
        OptiqError: not found, damaged, or an architecture that is not known.
    """
    path = resolve(model)
    loaded, config = load_modules(path)
    return loaded, _load_tokenizer(path, config)


def load_modules(path: Path) -> tuple[Any, dict[str, Any]]:
    """The modules of a directory with their weights, and its config (end tokens of generation_config.json merged in).

    Raises:
        ModelError: damaged, or an architecture that is not known.
    """
    from mlx_lm.utils import load_model

    Checkpoint.open(path)
    if native.module() is not None:
        memory.retain()  # before the weights are read, so that they lie side by side and can move to large pages
    try:
        model, config = load_model(path, get_model_classes=lambda config: arch.classes(config))
    except _LIES as error:
        raise ModelError(
            f"{path}: mlx-lm cannot load it ({_beginning(error)}); compare config.json with the published one of this model."
        ) from error
    return layers.use_kernels(model), config


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a directory as `load` gives it, without the model.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    return _load_tokenizer(path, {"eos_token_id": sorted(stop_ids(path)) or None})


def _load_tokenizer(path: Path, config: dict[str, Any]) -> Any:
    """mlx-lm's wrapper of the tokenizer, whose end tokens are those of the config."""
    from mlx_lm.utils import load_tokenizer

    if not has_tokenizer(path):
        names = ", ".join(TOKENIZER_FILES[:2])
        raise ModelError(f"{path}: no tokenizer ({names}) beside the weights; copy the model's files there.")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # contexts are counted here: its warning of lengths is noise
    try:
        return load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: the tokenizer cannot be read ({error}); download its files again.") from error


def _beginning(error: Exception) -> str:
    """The first part of a message that may list every tensor of a model."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} …"
