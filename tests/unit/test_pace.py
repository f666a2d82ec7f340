"""When the feed looks at the journal: rung for when little happens, by itself when much does."""

from __future__ import annotations

import math

import pytest

from relay.feed import AWAKE_LOOK_SECONDS, AWAKE_SECONDS, BUSY_TRANSACTIONS, DROWSY_LOOK_SECONDS, LOOK_SECONDS, Pace


def looks(pace: Pace, per_second: float, seconds: float, start: float = 0.0) -> float:
    """Let a feed look a hundred times a second, at so many transactions a second; return the time after it."""
    for step in range(round(seconds * 100)):
        pace.looked(start + step / 100, round(per_second * (step + 1) / 100) - round(per_second * step / 100), 0)
    return start + seconds


def test_a_new_feed_waits_for_the_doorbell() -> None:
    pace = Pace(silent=False)
    pace.looked(0, 0, 0)
    assert (pace.must_stay_awake(0), pace.wait(0)) == (False, LOOK_SECONDS)


def test_few_transactions_leave_it_to_the_doorbell() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 0.8, 5)
    assert (pace.must_stay_awake(now), pace.wait(now)) == (False, LOOK_SECONDS)


def test_many_transactions_keep_it_awake() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 1.2, 5)
    assert pace.must_stay_awake(now)
    pace.stays_awake(now)
    assert pace.wait(now) == AWAKE_LOOK_SECONDS


def test_it_promises_again_before_the_promise_ends_and_not_with_each_look() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 2, 1)
    pace.stays_awake(now)
    soon = looks(pace, BUSY_TRANSACTIONS * 2, AWAKE_SECONDS * 0.4, now)
    assert not pace.must_stay_awake(soon)
    later = looks(pace, BUSY_TRANSACTIONS * 2, AWAKE_SECONDS * 0.2, soon)
    assert pace.must_stay_awake(later)


def test_it_does_not_promise_again_when_it_is_quiet() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 2, 1)
    pace.stays_awake(now)
    assert not pace.must_stay_awake(looks(pace, 1, AWAKE_SECONDS, now))


def test_anothers_promise_keeps_it_awake_too() -> None:
    """Triggers that do not ring for another relay do not ring for this one either."""
    pace = Pace(silent=False)
    pace.looked(0, 1, 0.7)
    assert (pace.must_stay_awake(0), pace.wait(0), pace.wait(0.69)) == (False, AWAKE_LOOK_SECONDS, AWAKE_LOOK_SECONDS)


def test_after_a_promise_it_is_drowsy_for_those_that_commit_late() -> None:
    pace = Pace(silent=False)
    pace.looked(0, 1, 0.5)
    assert pace.wait(0.5) == DROWSY_LOOK_SECONDS
    assert pace.wait(0.5 + LOOK_SECONDS) == LOOK_SECONDS


def test_where_nobody_rings_it_is_always_drowsy() -> None:
    pace = Pace(silent=True)
    pace.looked(0, 0, 0)
    assert pace.wait(0) == pace.wait(1e6) == DROWSY_LOOK_SECONDS


@pytest.mark.parametrize("away", [1, 1e9, math.inf])
def test_a_long_time_without_a_look_is_a_quiet_one(away: float) -> None:
    pace = Pace(silent=False)
    looks(pace, BUSY_TRANSACTIONS * 10, 1)
    pace.looked(1 + away, 0, 0)
    assert not pace.must_stay_awake(1 + away)
