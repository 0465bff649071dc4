"""Recipes at their places in a model: the list of caches that its forward pass takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optiq.errors import ModelError
from optiq.kv.cache import PackedCache
from optiq.kv.recipe import Recipe
from optiq.kv.rows import NONE, Statistics
from optiq.models import caches as stock
from optiq.models.caches import Caches, KeyValueLayer
from optiq.models.topology import block_list


def layers(model: Any) -> list[KeyValueLayer]:
    """The layers whose caches can be packed.

    Raises:
        ModelError: there are none, or what they cache are MLA latents.
    """
    found = stock.key_value_layers(model)
    if not found:
        raise ModelError("this model has no key/value cache (its layers keep a recurrent state or none); leave out --kv-…")
    if any(layer.latent for layer in found):
        raise ModelError("this model caches MLA latents, which are compressed already and not packed further; leave out --kv-…")
    return found


def depth(model: Any) -> int:
    """How many layers a model has."""
    return len(block_list(model))


def make_caches(model: Any, recipes: Recipe | Mapping[int, Recipe], known: Mapping[int, Statistics] | None = None) -> Caches:
    """Fresh caches, one per layer: packed where there is a recipe, else what the architecture asks for.

    Args:
        model: as loaded.
        recipes: one for all layers with a key/value cache, or by the index of the layer in the model.
        known: statistics by layer.

    Raises:
        ModelError: no key/value caches, or MLA latents.
    """
    found = stock.make_caches(model)
    for layer in layers(model):
        recipe = recipes if isinstance(recipes, Recipe) else recipes.get(layer.index)
        if recipe is None:
            continue
        own = PackedCache(recipe, (known or {}).get(layer.index, NONE), layer.rotary, layer.window)
        found[layer.place] = stock.with_cache(found[layer.place], own)
    return found
