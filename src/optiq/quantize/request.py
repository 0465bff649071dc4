"""What was asked of a conversion, held against the model before any long work, and said again when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from optiq.errors import InputError, ModelError
from optiq.files import size_text
from optiq.measure.text import read_samples
from optiq.models.directory import Layout
from optiq.models.topology import Tensor, Topology
from optiq.plan.allocate import impossible, smallest_bytes
from optiq.plan.options import apply_keeps, make_options, only
from optiq.plan.types import Item, Option, Plan
from optiq.quantize.settings import Settings


def check(settings: Settings, topology: Topology, layout: Layout) -> None:
    """Refuse a calibration file, keeps or a budget that cannot be met.

    Raises:
        InputError: names the smallest possible size where a budget is too small.
        ModelError: nothing in the model can be quantized.
    """
    if settings.calibration_mix is not None:
        read_samples(settings.calibration_mix)
    if not topology.tensors:
        raise ModelError(f"{layout.checkpoint.path}: no tensor of this model can be quantized; expected linear layers.")
    measured = [(t, options(t, settings.measured_bits, settings)) for t in topology.tensors]
    items = [Item(t.name, t.kind, t.shape, found, (0.0,) * len(found)) for t, found in measured]
    items, _ = narrowed(settings, topology, items)
    smallest, params = smallest_bytes(items), sum(item.params for item in items)
    fixed, header = layout.fixed_bytes, layout.header_bytes()
    total = settings.budget.total_bytes
    if total is not None and total < smallest + fixed + header:
        raise InputError(
            f"a budget of {total} bytes for the model files cannot be met: the smallest possible is "
            f"{smallest + fixed + header} bytes ({smallest} of codes, scales and biases at {8 * smallest / params:.3f} bits per "
            f"weight, {fixed} of other tensors, {header} of headers); raise the budget or allow fewer bits or larger groups"
        )
    budget = settings.budget.quantized_bytes(params, fixed, header)
    if smallest > budget:
        raise InputError(impossible(items, budget))


def options(tensor: Tensor, bits: Sequence[int], settings: Settings) -> tuple[Option, ...]:
    """What a tensor may be stored with; a family's own floor (routers) is kept."""
    wide = tuple(b for b in bits if b >= tensor.least_bits) or (max(bits),)
    return make_options(tensor.shape, wide, settings.group_sizes)


def narrowed(settings: Settings, topology: Topology, items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """Pinned tensors take their width from all that was measured, the others from the widths that were asked for.

    Raises:
        InputError: a keep that fits no tensor.
    """
    kept, notes = apply_keeps(items, settings.keep)
    tensors = {tensor.name: tensor for tensor in topology.tensors}
    free = {item.name for item in items if not any(keep.matches(item.name) for keep in settings.keep)}
    return [
        only(item, options(tensors[item.name], settings.candidate_bits, settings)) if item.name in free else item for item in kept
    ], notes


def unspent(items: Sequence[Item], plan: Plan) -> list[str]:
    """A line for the report where the budget is larger than the best plan."""
    left = plan.budget_bytes - plan.bytes
    chosen = {choice.name: choice.bytes for choice in plan.choices}
    larger = [option.bytes - chosen[item.name] for item in items for option in item.options if option.bytes > chosen[item.name]]
    if left <= 0 or left < max(larger, default=0):
        return []
    return [
        f"the budget allows {size_text(plan.budget_bytes)} of codes, scales and biases; the best that these candidates offer "
        f"takes {size_text(plan.bytes)}"
    ]
