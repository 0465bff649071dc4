"""The exception tree and the named tables."""

from __future__ import annotations

import pytest

from optiq.errors import FormatError, InputError, ModelError, OptiqError, ResourceError
from optiq.registry import Table


def test_every_error_is_an_optiq_error_with_a_kind() -> None:
    kinds = {error.kind for error in (InputError("a"), ModelError("a"), ResourceError("a"), FormatError("a"))}
    assert kinds == {"input", "model", "resource", "format"}
    assert issubclass(InputError, OptiqError)


def test_a_table_keeps_order_and_finds_values() -> None:
    table: Table[int] = Table("encoder")
    assert table.add("rtn", 1) == 1
    table.add("gptq", 2)
    assert (table.names(), list(table), len(table), table["gptq"]) == (("rtn", "gptq"), ["rtn", "gptq"], 2, 2)
    assert table.items() == (("rtn", 1), ("gptq", 2))
    assert "rtn" in table and "x" not in table


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    table: Table[int] = Table("encoder")
    table.add("search", 1)
    table.add("gptq", 2)
    with pytest.raises(InputError, match=r"unknown encoder 'serch'; known: search, gptq. Did you mean 'search'\?"):
        table["serch"]
    with pytest.raises(InputError, match="known: none"):
        Table("task")["x"]


def test_a_name_is_taken_once() -> None:
    table: Table[int] = Table("encoder")
    table.add("rtn", 1)
    with pytest.raises(ValueError, match="'rtn' is registered twice"):
        table.add("rtn", 2)
