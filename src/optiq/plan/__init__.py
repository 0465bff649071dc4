"""Items × options → one option per item under a byte budget: pure Python, knows nothing of MLX.

`types` holds the words, `size` the exact bytes, `options` what may be chosen for a tensor, `allocate` the exact
solver, `budget` what the user asked for in bytes, `table` the files `sensitivity.json` and `plan.json`.
"""

from optiq.plan.types import Choice, Item, Option, Plan

__all__ = ["Choice", "Item", "Option", "Plan"]
