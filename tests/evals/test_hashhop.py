"""HashHop's generator: exactly one answer, the asked-for size, nothing that gives the answer away."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiq.errors import InputError
from optiq.evals.data import Data
from optiq.evals.task import Answer, with_option
from optiq.evals.tasks.hashhop import LINE, HashHop, chains


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 80))
def test_every_question_has_exactly_one_answer(seed: int, hops: int, lines: int) -> None:
    pairs, start, end = chains(random.Random(seed), hops, lines)
    lefts = [left for left, _ in pairs]
    assert len(set(lefts)) == len(lefts) == hops * max(1, lines // hops)
    following = dict(pairs)
    at = start
    for _ in range(hops):
        at = following[at]
    assert at == end and end not in following  # the chain ends there, so more hops lead nowhere else
    assert start not in {right for _, right in pairs}
    assert len({right for _, right in pairs}) == len(pairs)  # nor do two chains meet
    assert all(re.fullmatch("[A-Za-z]{16}", word) for pair in pairs for word in pair)


@given(st.integers(200, 20_000), st.integers(1, 4))
def test_the_list_fills_the_context_that_is_asked_for(characters: int, hops: int) -> None:
    task = HashHop(count=1, hops=(hops,), characters=characters)
    (sample,) = task.samples(Data())
    listed = sample.messages[0]["content"].split("\n\n")[0]
    assert characters - (hops + 1) * LINE <= len(listed) + 1 <= characters


def test_the_protocol_is_100_questions_that_are_always_the_same() -> None:
    samples = HashHop().samples(Data())
    assert samples == HashHop().samples(Data()) != with_option(HashHop(), "seed", "1").samples(Data())
    assert [sample.gold["hops"] for sample in samples] == [hops for hops in (1, 2, 3, 4) for _ in range(25)]
    assert len({sample.id for sample in samples}) == 100
    assert 11_900 < len(samples[0].messages[0]["content"]) < 12_400
    assert [s.gold["hops"] for s in with_option(HashHop(count=4), "hops", "2+3").samples(Data())] == [2, 2, 3, 3]


def test_the_last_whole_word_of_the_reply_counts() -> None:
    task = HashHop(count=4)
    for sample in task.samples(Data()):
        end = sample.gold["end"]
        start = re.findall(r"Start at (\w+)", sample.messages[0]["content"])[0]
        assert task.score(sample, Answer(f"{start} = {end}.")).correct
        wrong = ("", start, f"{end} = {start}", end[:-1], end + "x", end.swapcase(), f"{end} {end[::-1]}")
        assert not any(task.score(sample, Answer(text)).correct for text in wrong)


def test_impossible_options_are_one_line() -> None:
    with pytest.raises(InputError, match=r"hashhop\.characters is 50, expected at least 144, or 0"):
        HashHop(characters=50).samples(Data())
    with pytest.raises(InputError, match=r"hashhop\.hops is \(0,\)"):
        HashHop(hops=(0,)).samples(Data())
    with pytest.raises(InputError, match=r"hashhop\.hops is '1,2', expected whole numbers such as 1\+2"):
        with_option(HashHop(), "hops", "1,2")
