"""TurboQuant key/value caches for stock mlx-lm; everything lives in `optiq.kv.turboquant`.

from turboquant_mlx import TurboQuantKVCache, apply_patch
"""

from __future__ import annotations

from optiq.kv.turboquant import (
    TurboQuantKVCache,
    VOnlyTurboQuantCache,
    apply_patch,
    make_adaptive_cache,
    remove_patch,
)

__all__ = ["TurboQuantKVCache", "VOnlyTurboQuantCache", "apply_patch", "make_adaptive_cache", "remove_patch"]
