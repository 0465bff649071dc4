"""The packaged text: counts, licences, hashes, disjoint sets, no evaluation question, obeyed constraints."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optiq.errors import InputError
from optiq.measure import text
from optiq.measure.text import DOMAINS, SETS, read_samples, samples

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("OPTIQ_SHARED", ROOT.parent / "shared"))
FOLDER = Path(text.__file__).parent
COUNTS = {"calibration": 40, "dev": 12, "score": 20}
LICENCES = {"Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "public domain"}


def normalise(value: str) -> str:
    return re.sub(r"\s+", " ", value).strip().lower()


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def windows(value: Any, size: int = 60) -> set[str]:
    return {s[i : i + size] for s in map(normalise, strings(value)) for i in range(len(s) - size + 1)}


def set_windows(set_name: str) -> set[str]:
    return set().union(*(windows([s.text, s.messages, s.tools]) for s in samples(set_name)))


@pytest.mark.parametrize("set_name", SETS)
def test_counts_ids_and_licences(set_name: str) -> None:
    found = samples(set_name)
    assert Counter(s.domain for s in found) == dict.fromkeys(DOMAINS, COUNTS[set_name])
    assert len({s.id for s in found}) == len(found)
    assert all((s.text is None) != (s.messages is None) for s in found)
    assert {s.licence for s in found} <= LICENCES
    assert all(s.source for s in found)
    page = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    assert all(f"**{s.licence}**" in page for s in found)


def test_manifest_pins_every_file() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 1
    assert set(manifest["files"]) == {f"{name}.jsonl" for name in SETS}
    for name, entry in manifest["files"].items():
        payload = (FOLDER / name).read_bytes()
        assert (len(payload), hashlib.sha256(payload).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert sum(entry["bytes"] for entry in manifest["files"].values()) < 2_500_000


def test_sets_share_no_window_and_no_tool() -> None:
    found = {name: set_windows(name) for name in SETS}
    tools = {n: {t["function"]["name"] for s in samples(n) for t in s.tools or ()} for n in SETS}
    for one, two in (("calibration", "dev"), ("calibration", "score"), ("dev", "score")):
        assert not sorted(found[one] & found[two])[:5]
        assert not tools[one] & tools[two]


def test_chats_are_well_formed() -> None:
    for sample in (s for name in SETS for s in samples(name) if s.messages):
        roles = [m["role"] for m in sample.messages or ()]
        assert "user" in roles, sample.id
        assert "system" not in roles[1:], sample.id
        assert roles[-1] == "assistant", sample.id
        offered = {t["function"]["name"] for t in sample.tools or ()}
        for tool in sample.tools or ():
            for field in tool["function"]["parameters"]["properties"].values():
                assert field["type"] in {"string", "number", "integer", "boolean", "array", "object"}, sample.id
        for message in sample.messages or ():
            assert message["content"] or message.get("tool_calls"), sample.id
            for call in message.get("tool_calls", ()):
                assert isinstance(call["function"]["arguments"], dict), sample.id
                assert call["function"]["name"] in offered, sample.id


def questions(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("gsm8k/test*.jsonl")):
        yield from (json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines())
    for path in sorted(folder.glob("mmlu/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as handle:
            yield from (row[0] for row in csv.reader(handle) if row)
    for path in sorted(folder.glob("if*/*.jsonl")):
        yield from (json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines())
    for path in sorted(folder.glob("bfcl_v3/*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from (m["content"] for turn in json.loads(line)["question"] for m in turn)
    for path in sorted(folder.glob("humaneval/HumanEval.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from (json.loads(line)["prompt"] for line in lines)


@pytest.mark.skipif(not (SHARED / "data" / "eval").is_dir(), reason="no evaluation data (OPTIQ_SHARED/data/eval)")
def test_no_evaluation_question() -> None:
    asked = [normalise(question) for question in questions(SHARED / "data" / "eval")]
    assert len(asked) > 5000
    long = {question[i : i + 60] for question in asked for i in range(len(question) - 59)}
    whole = [question for question in asked if 40 <= len(question) < 60]
    for set_name in SETS:
        assert not sorted(set_windows(set_name) & long)[:5]
        everything = "\n".join(normalise(v) for s in samples(set_name) for v in strings([s.text, s.messages]))
        assert not [question for question in whole if question in everything][:5]


@pytest.mark.skipif(not (SHARED / "data" / "MANIFEST.md").is_file(), reason="no source data (OPTIQ_SHARED/data)")
def test_build_script_gives_the_packaged_bytes(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = ROOT / "scripts" / "build_text.py"
    command = [sys.executable, str(script), "--data", str(SHARED / "data"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


# --- instructions: each stored constraint is checked on the answer, and its figure must stand in the request

Check = dict[str, Any]


def words(answer: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in answer.split())


def bullets_ok(answer: str, c: Check) -> bool:
    listed = [line for line in answer.split("\n") if line.startswith(f"{c['mark']} ")]
    return len(listed) == c["n"] == len([line for line in body(answer).split("\n") if line.strip()])


def numbered_ok(answer: str, c: Check) -> bool:
    lines = [line for line in body(answer).split("\n") if line.strip()]
    return len(lines) == c["n"] and all(line.startswith(f"{i}. ") for i, line in enumerate(lines, 1))


def json_ok(answer: str, c: Check) -> bool:
    value = json.loads(answer)
    return list(value) == [c["key"]] and len(value[c["key"]]) == c["n"] and all(isinstance(v, str) for v in value[c["key"]])


def body(answer: str) -> str:
    """A list without what another constraint puts around it: tags, a postscript, a last phrase."""
    answer = re.sub(r"^<(\w+)>\n(.*)\n</\1>$", r"\2", answer, flags=re.S)
    head, _, tail = answer.rpartition("\n\n")
    return head if head and not re.match(r"\d+\. |[-*] ", tail) else answer


CHECKS: dict[str, Callable[[str, Check], bool]] = {
    "words_max": lambda a, c: words(a) <= c["n"],
    "words_min": lambda a, c: words(a) >= c["n"],
    "words_between": lambda a, c: c["low"] <= words(a) <= c["high"],
    "sentences": lambda a, c: len(re.findall(r"[.!?](?=\s|$)", a)) == c["n"] and "\n" not in a,
    "paragraphs": lambda a, c: len([p for p in re.split(r"\n\s*\n", a) if p.strip()]) == c["n"],
    "bullets": bullets_ok,
    "numbered": numbered_ok,
    "json": json_ok,
    "keyword": lambda a, c: c["word"] in a.lower(),
    "keyword_count": lambda a, c: len(re.findall(rf"\b{c['word']}\b", a.lower())) >= c["n"],
    "avoid": lambda a, c: not re.search(rf"\b({c['first']}|{c['second']})\b", a.lower()),
    "no_comma": lambda a, c: "," not in a,
    "no_digits": lambda a, c: not re.search(r"\d", a),
    "no_exclamation": lambda a, c: "!" not in a,
    "lowercase": lambda a, c: a == a.lower(),
    "uppercase": lambda a, c: a == a.upper(),
    "quoted": lambda a, c: a[0] == a[-1] == '"' and '"' not in a[1:-1],
    "tags": lambda a, c: a.startswith(f"<{c['tag']}>") and a.endswith(f"</{c['tag']}>"),
    "starts": lambda a, c: re.match(rf"{re.escape(c['word'])}\b", a) is not None,
    "ends": lambda a, c: a.endswith(c["phrase"]),
    "postscript": lambda a, c: a.split("\n\n")[-1].startswith(c["mark"]),
}


@pytest.mark.parametrize("set_name", SETS)
def test_instruction_answers_obey_their_constraints(set_name: str) -> None:
    rows = [json.loads(line) for line in (FOLDER / f"{set_name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    kinds: Counter[str] = Counter()
    for row in (r for r in rows if r["domain"] == "instructions"):
        checks = row["constraints"]
        answers = [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"]
        assert {c["message"] for c in checks} == set(answers), row["id"]
        for check in checks:
            asked, answer = (row["messages"][check["message"] - k]["content"] for k in (1, 0))
            assert CHECKS[check["kind"]](answer, check), (row["id"], check, answer)
            figures = [v for k, v in check.items() if k not in ("kind", "message")]
            told = asked.split("\n\n")[-1]
            assert all(str(v) in told or str(v + 1 if isinstance(v, int) else v) in told for v in figures), (
                row["id"],
                check,
            )
            kinds[check["kind"]] += 1
        per_turn = Counter(c["message"] for c in checks)
        assert max(per_turn.values()) <= 3
    assert len(kinds) >= 15, kinds
    assert kinds.most_common(1)[0][1] < 0.25 * kinds.total(), kinds


def test_arithmetic_in_thoughts_is_right() -> None:
    sums = re.compile(r"(?=(?:(?<=: )|(?<=\. )|(?<== )|(?<=is ))(-?\(?\d[\d ()+*/-]*) = (-?\d+)(?![\d./]| [-+*/] ))")
    seen = 0
    for sample in (s for name in SETS for s in samples(name) if s.domain == "reasoning"):
        for message in sample.messages or ():
            for expression, result in sums.findall(message["content"]):
                assert eval(expression) == int(result), (sample.id, expression, result)  # digits and signs only
                seen += 1
    assert seen > 100


# --- the reader ------------------------------------------------------------------------------------------------------


def test_unknown_set() -> None:
    with pytest.raises(InputError, match="text set 'test' does not exist; the sets are calibration, dev, score"):
        samples("test")


def test_reads_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    chat = {
        "domain": "chat",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ],
        "tools": [{"name": "f"}],
    }
    lines = [json.dumps({"text": "A line\u2028separator."}, ensure_ascii=False), "", json.dumps(chat)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain, talk = read_samples(path)
    assert (plain.domain, plain.text, plain.id) == ("custom", "A line\u2028separator.", "mine/1")
    assert talk.messages is not None
    assert talk.messages[1]["content"] == ""
    assert (talk.domain, talk.id, talk.tools) == ("chat", "mine/3", ({"name": "f"},))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"bad\.jsonl, line 2: not valid JSON"),
        ("[1]", r"line 2: a list; expected an object with 'text' or 'messages'"),
        ('{"domain": "x"}', r"line 2: neither 'text' nor 'messages'"),
        ('{"text": "a", "messages": []}', r"line 2: both 'text' and 'messages'"),
        ('{"text": " "}', r"line 2: 'text' is empty"),
        ('{"text": "a", "domain": 3}', r"line 2: 'domain' is 3"),
        ('{"text": "a", "tools": {}}', r"line 2: 'tools' must be a list"),
        ('{"messages": []}', r"line 2: 'messages' must be a list with at least one"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', r"line 2: message 0 has role 'bot'"),
        ('{"messages": [{"role": "user", "content": [1]}]}', r"line 2: message 0 has a 'content' that is not a string"),
        ('{"messages": [{"role": "system", "content": "a"}]}', r"line 2: 'messages' has no user message"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_samples(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no samples"):
        read_samples(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_samples(tmp_path / "binary.jsonl")
