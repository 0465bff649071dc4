"""The package's face: version, lazy verbs, and what the house promises about its files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import optiq

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_version_and_licence_agree() -> None:
    assert PROJECT["project"]["version"] == optiq.__version__
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_independence_is_stated() -> None:
    assert optiq.__doc__ is not None
    assert "not affiliated with, derived from or endorsed by the `mlx-optiq` package" in " ".join(optiq.__doc__.split())


@pytest.mark.parametrize("verb", sorted(set(optiq.__all__) - {"__version__"}))
def test_every_public_verb_is_a_function(verb: str) -> None:
    assert callable(getattr(optiq, verb))
    assert verb in dir(optiq)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'optiq' has no attribute 'quantise'"):
        optiq.quantise  # noqa: B018


def test_the_embedded_model_is_whole(tiny_model: Path) -> None:
    names = {path.name for path in tiny_model.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
