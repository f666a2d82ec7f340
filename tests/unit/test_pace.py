"""When the feed reads the journal: notified when little happens, polling when much does."""

from __future__ import annotations

import math

import pytest

from relay.postgres.feed import (
    BUSY_TRANSACTIONS,
    LOOK_SECONDS,
    POLL_SECONDS,
    POLLING_SECONDS,
    SLOW_POLL_SECONDS,
    Pace,
)


def looks(pace: Pace, per_second: float, seconds: float, start: float = 0.0) -> float:
    """Let a feed read a hundred times a second, at so many transactions a second; return the time after it."""
    for step in range(round(seconds * 100)):
        pace.looked(start + step / 100, round(per_second * (step + 1) / 100) - round(per_second * step / 100), 0)
    return start + seconds


def test_a_new_feed_waits_for_notifications() -> None:
    pace = Pace(silent=False)
    pace.looked(0, 0, 0)
    assert (pace.must_poll(0), pace.wait(0)) == (False, LOOK_SECONDS)


def test_few_transactions_leave_it_to_notifications() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 0.8, 5)
    assert (pace.must_poll(now), pace.wait(now)) == (False, LOOK_SECONDS)


def test_many_transactions_have_it_poll() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 1.2, 5)
    assert pace.must_poll(now)
    pace.polls(now)
    assert pace.wait(now) == POLL_SECONDS


def test_it_promises_again_before_the_promise_ends_and_not_with_each_read() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 2, 1)
    pace.polls(now)
    soon = looks(pace, BUSY_TRANSACTIONS * 2, POLLING_SECONDS * 0.4, now)
    assert not pace.must_poll(soon)
    later = looks(pace, BUSY_TRANSACTIONS * 2, POLLING_SECONDS * 0.2, soon)
    assert pace.must_poll(later)


def test_it_does_not_promise_again_when_it_is_quiet() -> None:
    pace = Pace(silent=False)
    now = looks(pace, BUSY_TRANSACTIONS * 2, 1)
    pace.polls(now)
    assert not pace.must_poll(looks(pace, 1, POLLING_SECONDS, now))


def test_the_promise_of_another_has_it_poll_too() -> None:
    """Triggers that do not notify another relay do not notify this one either."""
    pace = Pace(silent=False)
    pace.looked(0, 1, 0.7)
    assert (pace.must_poll(0), pace.wait(0), pace.wait(0.69)) == (False, POLL_SECONDS, POLL_SECONDS)


def test_after_a_promise_it_polls_slowly_for_those_that_commit_late() -> None:
    pace = Pace(silent=False)
    pace.looked(0, 1, 0.5)
    assert pace.wait(0.5) == SLOW_POLL_SECONDS
    assert pace.wait(0.5 + LOOK_SECONDS) == LOOK_SECONDS


def test_where_triggers_never_notify_it_always_polls_slowly() -> None:
    pace = Pace(silent=True)
    pace.looked(0, 0, 0)
    assert pace.wait(0) == pace.wait(1e6) == SLOW_POLL_SECONDS


@pytest.mark.parametrize("away", [1, 1e9, math.inf])
def test_a_long_time_without_a_read_is_a_quiet_one(away: float) -> None:
    pace = Pace(silent=False)
    looks(pace, BUSY_TRANSACTIONS * 10, 1)
    pace.looked(1 + away, 0, 0)
    assert not pace.must_poll(1 + away)
