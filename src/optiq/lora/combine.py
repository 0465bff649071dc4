"""Several adapters of one model as one, exactly: B A of the result is the weighted sum of theirs.

    sum_k w_k s_k B_k A_k = [w_1 s_1 B_1 | w_2 s_2 B_2 | …] [A_1; A_2; …]        ranks add up, s = 1

DoRA's magnitudes are no sum of anything, so adapters with them are refused.
Data in: adapters that fit the model. Data out: parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from optiq.errors import InputError
from optiq.lora.adapters import Adapter
from optiq.lora.layers import Part


def combined(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Part]:
    """The parts of the sum of adapters.

    Args:
        adapters: of the same model.
        weights: of each.

    Raises:
        InputError: DoRA, another number of weights, or weights that are no numbers.
    """
    if len(weights) != len(adapters):
        raise InputError(f"--scales has {len(weights)} numbers for {len(adapters)} adapters; expected one each")
    if not all(map(math.isfinite, weights)):
        raise InputError(f"--scales are {', '.join(map(str, weights))}, expected finite numbers")
    for adapter in adapters:
        if any(part.magnitude is not None for part in adapter.parts.values()):
            raise InputError(f"{adapter.path} is a DoRA adapter, whose magnitudes cannot be added up; fuse it instead")
    found = {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter.parts):
        pairs = [
            (adapter.parts[path], weight) for adapter, weight in zip(adapters, weights, strict=True) if path in adapter.parts
        ]
        a = mx.concatenate([part.a.astype(mx.float32) for part, _ in pairs], axis=-2)
        b = mx.concatenate([weight * part.scale * part.b.astype(mx.float32) for part, weight in pairs], axis=-1)
        found[path] = Part(a, b, 1.0)
    return found
