"""Who runs next: order of arrival, turns of reading, slices beside decoding."""

from __future__ import annotations

import pytest

from optiq.errors import InputError
from optiq.serve.memory import Budget, Footprint
from optiq.serve.reading import next_stop, plan_cuts
from optiq.serve.request import Reason, Refused
from optiq.serve.scheduler import GRID, Policy, Scheduler


def start(scheduler, *names):
    for name in names:
        scheduler.submit(name)
        assert scheduler.next_waiting() == name
        scheduler.started(name)


def test_requests_start_in_order_of_arrival_and_only_where_a_row_is_free():
    scheduler = Scheduler(Policy(max_rows=2))
    for name in "abc":
        scheduler.submit(name)
    scheduler.started("a")
    scheduler.ready("a")
    assert scheduler.next_waiting() == "b"
    scheduler.started("b")
    assert scheduler.next_waiting() is None
    scheduler.ended("a")
    assert scheduler.next_waiting() == "c"


def test_a_full_line_refuses():
    scheduler = Scheduler(Policy(max_waiting=1))
    scheduler.submit("a")
    with pytest.raises(Refused, match="1 requests are waiting") as caught:
        scheduler.submit("b")
    assert caught.value.reason is Reason.QUEUE


def test_a_slice_of_reading_is_what_the_gap_allows():
    scheduler = Scheduler(Policy(gap=3))
    start(scheduler, "a", "b")
    assert scheduler.turn().slice_s is None
    scheduler.ready("a")
    scheduler.stepped(0.02)
    turn = scheduler.turn()
    assert (turn.decode, turn.read) == (("a",), "b")
    assert turn.slice_s == pytest.approx(0.04)


def test_a_long_prompt_lets_another_one_read_after_its_turn():
    scheduler = Scheduler(Policy(turn_tokens=100))
    start(scheduler, "long", "short")
    scheduler.read("long", 60)
    assert scheduler.turn().read == "long"
    scheduler.read("long", 60)
    assert scheduler.turn().read == "short"
    scheduler.ready("short")
    assert scheduler.turn().read == "long"


@pytest.mark.parametrize("state", ["waiting", "reading", "decoding"])
def test_who_ends_leaves_no_trace(state):
    scheduler = Scheduler(Policy())
    scheduler.submit("a")
    if state != "waiting":
        scheduler.started("a")
    if state == "decoding":
        scheduler.ready("a")
    scheduler.ended("a")
    assert scheduler.idle
    scheduler.ended("a")


@pytest.mark.parametrize(
    "bad", [{"max_rows": 0}, {"max_waiting": 0}, {"chunk": 100}, {"chunk": 0}, {"gap": 1.0}, {"turn_tokens": 0}]
)
def test_a_policy_is_checked(bad):
    with pytest.raises(InputError, match="expected"):
        Policy(**bad)


def test_cuts_lie_on_the_grid_and_leave_the_last_token():
    assert plan_cuts(1000, [130, 64, 5000, 10], 0) == [64, 128, 960]
    assert plan_cuts(GRID, [], 0) == []
    assert plan_cuts(GRID + 1, [], 0) == [GRID]
    assert plan_cuts(1000, [], 300) == [256, 512, 768, 960]


def test_chunks_stop_at_cuts_and_start_on_the_grid():
    cuts, at, stops = plan_cuts(1000, [130], 0), 0, []
    while at < 999:
        at = next_stop(at, 1000, cuts, 512)
        stops.append(at)
    assert stops == [128, 640, 960, 999]
    assert all(stop % GRID == 0 for stop in stops[:-1])


def test_a_budget_promises_no_more_than_it_has():
    budget = Budget(1000)
    assert budget.missing(600, 300, 64) == 0
    budget.promise("a", 600)
    assert budget.missing(500, 0, 64) == 100
    budget.learn(640, 64)
    assert budget.missing(300, 0, 64) == 540
    assert not budget.possible(500, 64)
    budget.release("a")
    assert budget.missing(300, 0, 64) == 0


def test_a_footprint_counts_room_for_later_tokens():
    assert Footprint(100, 2).of(1) == 100 + 2 * 256
    assert Footprint(100, 0.5).of(257) == 100 + 256
