"""Budgets become bytes exactly as typed."""

from __future__ import annotations

import pytest

from optiq.errors import InputError
from optiq.plan.budget import Budget


def test_bits_per_weight_are_exact() -> None:
    assert Budget("bpw", 5.1).quantized_bytes(80) == 51
    assert Budget("bpw", 4.5).quantized_bytes(9) == 5  # 5.0625: a ceiling rounds down


def test_total_budgets_leave_room_for_the_rest() -> None:
    assert Budget("gb", 0.001).quantized_bytes(1, fixed_bytes=1000, header_bytes=8) == 1_000_000 - 1008
    assert Budget("like", 5000).quantized_bytes(1, fixed_bytes=1000) == 4000


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300])
def test_no_positive_number(value: float) -> None:
    with pytest.raises(InputError, match="must be a positive number"):
        Budget("bpw", value).quantized_bytes(1)


def test_fixed_part_alone_passes_the_budget() -> None:
    with pytest.raises(InputError, match="ask for more than 1008 bytes"):
        Budget("like", 900).quantized_bytes(1, fixed_bytes=1000, header_bytes=8)
