"""Bodies of requests: how deep and how long they may be, before anything walks them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from optiq.serve.http import body
from optiq.serve.http.openai_fields import LONGEST_GRAMMAR, Format
from optiq.serve.http.problem import Refusal


def _nested(depth: int) -> bytes:
    """A JSON object of so many objects and lists within each other."""
    inner: Any = [] if depth % 2 == 0 else {}
    for level in range(depth - 1, 0, -1):
        inner = {"a": inner} if level % 2 else [inner]
    return json.dumps(inner).encode()


def test_bodies_may_be_so_deep_and_no_deeper() -> None:
    assert list(body.parsed(_nested(body.DEEPEST))) == ["a"]
    for depth in (body.DEEPEST + 1, 600, 100_000):
        raw = b'{"a":' * depth + b"1" + b"}" * depth
        with pytest.raises(Refusal, match="nested too deeply, expected at most 128 objects and lists within each other"):
            body.parsed(raw)
    with pytest.raises(Refusal, match="nested too deeply"):
        body.parsed(_nested(body.DEEPEST + 1))


@pytest.mark.parametrize("kind", ["regex", "lark"])
def test_grammars_may_be_so_long_and_no_longer(kind: str) -> None:
    taken = body.checked(Format, {"type": kind, "grammar": "a" * LONGEST_GRAMMAR}).spec("response_format")
    assert taken is not None and len(taken.text) == LONGEST_GRAMMAR
    with pytest.raises(Refusal, match="^grammar: String should have at most 100000 characters"):
        body.checked(Format, {"type": kind, "grammar": "a" * (LONGEST_GRAMMAR + 1)})
