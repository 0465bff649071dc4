"""The progress channel in its four forms."""

from __future__ import annotations

import io
import json
import logging

import pytest

from optiq import events as channel
from optiq.errors import InputError
from optiq.events import QUIET, Events, open_events


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _drive(events: Events) -> None:
    with events.stage("encode", 3, "blocks") as stage:
        for block in range(3):
            stage.advance(note=f"block [{block}]")
    events.info("some [bold]news")
    events.warn("take care")
    events.result({"kl": float("nan"), "bpw": 5.0})


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_schema_time_and_type() -> None:
    stream = io.StringIO()
    _drive(open_events("jsonl", stream))
    lines = _lines(stream)
    assert [line["type"] for line in lines] == ["stage_start", "advance", "stage_end", "info", "warning", "result"]
    assert all(line["schema"] == 1 and isinstance(line["time"], float) for line in lines)
    assert lines[1] | {"time": 0} == {
        "schema": 1,
        "time": 0,
        "type": "advance",
        "stage": "encode",
        "done": 3,
        "total": 3,
        "unit": "blocks",
        "note": "block [2]",
    }
    assert lines[2]["ok"] is True
    assert lines[-1]["data"] == {"kl": None, "bpw": 5.0}


def test_a_failed_stage_is_closed_and_says_so() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), open_events("jsonl", stream).stage("encode", 3) as stage:
        stage.advance()
        raise RuntimeError
    assert (_lines(stream)[-1]["ok"], _lines(stream)[-1]["done"]) == (False, 1)


def test_advances_are_limited_to_ten_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(channel.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with open_events("jsonl", stream).stage("encode") as stage:
        for _ in range(1000):
            now[0] += 0.002
            stage.advance()
    shown = [line for line in _lines(stream) if line["type"] == "advance"]
    assert 18 <= len(shown) <= 20  # two seconds


def test_plain_lines() -> None:
    stream = io.StringIO()
    _drive(open_events("plain", stream))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "encode ..."
    assert lines[1].startswith("encode: 3/3 blocks in ")
    assert lines[2:] == ["some [bold]news", "optiq: warning: take care"]


def test_quiet_still_warns() -> None:
    stream = io.StringIO()
    _drive(open_events("quiet", stream))
    assert stream.getvalue() == "optiq: warning: take care\n"


def test_bars_on_a_terminal_and_lines_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    bars = open_events("auto", terminal)
    _drive(bars)
    bars.close()
    bars.close()
    _drive(open_events("auto", pipe))
    assert "✓ encode  3/3 blocks" in terminal.getvalue()
    assert "some [bold]news" in terminal.getvalue()
    assert pipe.getvalue().startswith("encode ...")


def test_a_reader_that_went_away_does_not_stop_the_work() -> None:
    stream = io.StringIO()
    stream.close()
    events = open_events("jsonl", stream)
    _drive(events)
    with events.stage("more", 1) as stage:
        stage.advance()
    assert stage.done == 1


def test_the_library_default_drops_progress_and_logs_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="optiq"):
        _drive(QUIET)
    assert [record.getMessage() for record in caplog.records] == ["take care"]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="unknown events mode 'loud'; known: auto, plain, jsonl, quiet"):
        open_events("loud")
