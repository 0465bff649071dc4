"""What may be chosen: divisibility, candidates, and pinned widths."""

from __future__ import annotations

import pytest

from optiq.errors import InputError
from optiq.plan.options import (
    Keep,
    apply_keeps,
    fallback_notes,
    make_options,
    parse_bits,
    parse_group_sizes,
    parse_keep,
    restrict,
)
from optiq.plan.types import Item, Option


def item(name: str, shape: tuple[int, ...], bits: tuple[int, ...] = (2, 4, 8)) -> Item:
    options = make_options(shape, bits, (32, 64, 128))
    return Item(name, "linear", shape, options, tuple(2.0**-option.bits for option in options))


def test_options_rise_in_bytes_and_fit_the_shape() -> None:
    options = make_options((16, 192), (4, 8), (32, 64, 128))
    assert [(option.bits, option.group_size) for option in options] == [(4, 64), (4, 32), (8, 64), (8, 32)]
    assert [option.bytes for option in options] == sorted(option.bytes for option in options)


def test_tensor_that_no_group_divides_stays_bf16_and_is_noted() -> None:
    assert make_options((64, 172), (4, 8), (32, 64, 128)) == (Option(16, 0, 64 * 172 * 2),)
    (note,) = fallback_notes([item("layers.0.mlp.down_proj", (64, 172)), item("layers.0.mlp.up_proj", (172, 64))])
    assert note.startswith("1 tensor stays in bf16: no group size of 32, 64, 128 divides the last axis (172)")
    assert fallback_notes([item("a", (64, 64))]) == []
    assert "no group size of 128 divides the last axis (64): a" in fallback_notes([item("a", (64, 64))], (128,))[0]


def test_candidate_16_offers_bf16_beside_the_rest() -> None:
    assert [option.bits for option in make_options((8, 64), (4, 16), (64,))] == [4, 16]


def test_keep_pins_by_name_or_ending() -> None:
    items = [item("model.layers.0.q_proj", (8, 64)), item("lm_head", (8, 64)), item("odd", (8, 172))]
    kept, notes = apply_keeps(items, [Keep("q_proj", 8), Keep("lm_head", 16), Keep("odd", 4)])
    assert {option.bits for option in kept[0].options} == {8}
    assert kept[1].options == (Option(16, 0, 1024),) and kept[1].damage == (0.0,)
    assert kept[2] == items[2] and "cannot be quantized, stays bf16" in notes[0]


def test_the_last_keep_counts() -> None:
    kept, _ = apply_keeps([item("a.b", (8, 64))], [Keep("*", 2), Keep("a.*", 8)])
    assert {option.bits for option in kept[0].options} == {8}


@pytest.mark.parametrize("text", ["lm_head", "=4", "lm_head=7", "lm_head=x", "lm_head="])
def test_bad_keep_is_told(text: str) -> None:
    with pytest.raises(InputError, match="is not PATTERN=BITS"):
        parse_keep(text)


def test_keep_texts() -> None:
    assert parse_keep("*.mlp.*=4") == Keep("*.mlp.*", 4)
    assert parse_keep("lm_head=bf16") == parse_keep("lm_head=16") == Keep("lm_head", 16)


def test_keep_that_fits_nothing_or_was_not_measured_is_told() -> None:
    with pytest.raises(InputError, match="fits no tensor; names look like 'a.b'"):
        apply_keeps([item("a.b", (8, 64))], [Keep("c", 4)])
    with pytest.raises(InputError, match="a.b was not measured at 5 bits"):
        apply_keeps([item("a.b", (8, 64))], [Keep("a.b", 5)])


def test_lists_of_bits_and_groups() -> None:
    assert parse_bits("8,4,4") == (4, 8)
    assert parse_group_sizes("32") == (32,)
    with pytest.raises(InputError, match="7 is not one of"):
        parse_bits("4,7")
    with pytest.raises(InputError, match="not a list of integers"):
        parse_group_sizes("64;32")


def test_restrict_filters_and_refuses_the_empty() -> None:
    items = [item("a", (8, 128)), item("odd", (8, 172))]
    narrowed = restrict(items, bits=(4,), group_sizes=(64,))
    assert [(option.bits, option.group_size) for option in narrowed[0].options] == [(4, 64)]
    assert len(narrowed[0].damage) == 1 and narrowed[1] == items[1]
    with pytest.raises(InputError, match="a has no measured option with bits 3"):
        restrict(items, bits=(3,))
