"""Every kind of record is read; the first bad line is named by its number."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiq.errors import InputError
from optiq.lora import records

GOOD = '{"text": "a"}\n\n{"prompt": "a", "completion": "b"}\n{"messages": [{"role": "user", "content": "a"}]}\n'


def test_kinds_are_told_by_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(GOOD)
    assert [(r.kind, r.place) for r in records.read(file)] == [
        ("text", "a.jsonl:1"),
        ("completion", "a.jsonl:3"),
        ("chat", "a.jsonl:4"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl:5: not JSON"),
        ("[1]", r"a.jsonl:5: list, expected an object"),
        ('{"text": "a\\ud800"}', r"a.jsonl:5: half of a surrogate pair"),
        ('{"txt": "a"}', r"a.jsonl:5: keys txt; expected one of: text; prompt, completion"),
        ('{"text": 1}', r"a.jsonl:5: text is int, expected a text"),
        ('{"messages": []}', r"a.jsonl:5: messages is \[\], expected a list of messages"),
        ('{"text": "\\ud800"}', r"a.jsonl:5: half of a surrogate pair, which is no text"),
        ('{"text": ' + "9" * 5000 + "}", r"a.jsonl:5: JSON that cannot be read \(Exceeds the limit"),
        ("[" * 100_000, r"a.jsonl:5: JSON that cannot be read \(maximum recursion"),
        ('{"messages": [{"content": "a"}]}', r"a.jsonl:5: messages holds .*, expected objects with a role"),
        ('{"messages": [{"role": "user", "content": 1}]}', r"a.jsonl:5: content of user is int"),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": 1}', r"a.jsonl:5: tools is int"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', r"a.jsonl:5: a record of kind preference after text"),
    ],
)
def test_the_first_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(GOOD + line + "\n{")
    with pytest.raises(InputError, match=message):
        records.read(file)


def test_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no train.jsonl"):
        records.find(tmp_path)
    (tmp_path / "train.jsonl").write_text(GOOD)
    assert records.find(tmp_path) == (tmp_path / "train.jsonl", None)
    (tmp_path / "valid.jsonl").write_text("\n")
    assert records.find(tmp_path)[1] == tmp_path / "valid.jsonl"
    with pytest.raises(InputError, match="holds no records"):
        records.read(tmp_path / "valid.jsonl")
