"""When the feed reads the journal: notified when little happens, polling when much does."""

from __future__ import annotations

import math

import pytest

from relay.postgres.schedule import (
    BUSY_SECONDS,
    BUSY_TRANSACTIONS,
    POLL_SECONDS,
    POLLING_SECONDS,
    QUEUED_SECONDS,
    READ_SECONDS,
    SLOW_POLL_SECONDS,
    PollSchedule,
)


def reads(schedule: PollSchedule, per_second: float, seconds: float, start: float = 0.0) -> float:
    """Let a feed read a hundred times a second, at so many transactions a second; return the time after it."""
    for step in range(round(seconds * 100)):
        schedule.has_read(
            start + step / 100, round(per_second * (step + 1) / 100) - round(per_second * step / 100), 0
        )
    return start + seconds


def test_a_new_feed_waits_for_notifications() -> None:
    schedule = PollSchedule(silent=False)
    schedule.has_read(0, 0, 0)
    assert (schedule.must_poll(0), schedule.wait(0)) == (False, READ_SECONDS)


def test_few_transactions_leave_it_to_notifications() -> None:
    schedule = PollSchedule(silent=False)
    now = reads(schedule, BUSY_TRANSACTIONS * 0.8, 5)
    assert (schedule.must_poll(now), schedule.wait(now)) == (False, READ_SECONDS)


def test_many_transactions_have_it_poll() -> None:
    schedule = PollSchedule(silent=False)
    now = reads(schedule, BUSY_TRANSACTIONS * 1.2, 5)
    assert schedule.must_poll(now)
    schedule.polls(now)
    assert schedule.wait(now) == POLL_SECONDS


def test_it_promises_again_before_the_promise_ends_and_not_with_each_read() -> None:
    schedule = PollSchedule(silent=False)
    now = reads(schedule, BUSY_TRANSACTIONS * 2, 1)
    schedule.polls(now)
    soon = reads(schedule, BUSY_TRANSACTIONS * 2, POLLING_SECONDS * 0.4, now)
    assert not schedule.must_poll(soon)
    later = reads(schedule, BUSY_TRANSACTIONS * 2, POLLING_SECONDS * 0.2, soon)
    assert schedule.must_poll(later)


def test_it_does_not_promise_again_when_it_is_quiet() -> None:
    schedule = PollSchedule(silent=False)
    now = reads(schedule, BUSY_TRANSACTIONS * 2, 1)
    schedule.polls(now)
    assert not schedule.must_poll(reads(schedule, 1, POLLING_SECONDS, now))


def test_the_promise_of_another_has_it_poll_too() -> None:
    """Triggers that do not notify another relay do not notify this one either."""
    schedule = PollSchedule(silent=False)
    schedule.has_read(0, 1, 0.7)
    assert (schedule.must_poll(0), schedule.wait(0), schedule.wait(0.69)) == (False, POLL_SECONDS, POLL_SECONDS)


def test_few_transactions_whose_commits_wait_for_each_other_have_it_poll() -> None:
    """And for a while: those that do not notify do not wait, however long a commit takes."""
    schedule = PollSchedule(silent=False)
    assert schedule.must_ask(0)
    schedule.has_asked(0, queued=True)
    assert not schedule.must_ask(BUSY_SECONDS / 2)
    assert schedule.must_poll(0)
    schedule.polls(0)
    assert not schedule.must_ask(POLLING_SECONDS / 2)
    assert schedule.must_poll(QUEUED_SECONDS * 0.9)
    assert not schedule.must_poll(QUEUED_SECONDS)
    assert schedule.must_ask(QUEUED_SECONDS)


def test_after_a_promise_it_polls_slowly_for_those_that_commit_late() -> None:
    schedule = PollSchedule(silent=False)
    schedule.has_read(0, 1, 0.5)
    assert schedule.wait(0.5) == SLOW_POLL_SECONDS
    assert schedule.wait(0.5 + READ_SECONDS) == READ_SECONDS


def test_where_triggers_never_notify_it_always_polls_slowly() -> None:
    schedule = PollSchedule(silent=True)
    schedule.has_read(0, 0, 0)
    assert schedule.wait(0) == schedule.wait(1e6) == SLOW_POLL_SECONDS


@pytest.mark.parametrize("away", [1, 1e9, math.inf])
def test_a_long_time_without_a_read_is_a_quiet_one(away: float) -> None:
    schedule = PollSchedule(silent=False)
    reads(schedule, BUSY_TRANSACTIONS * 10, 1)
    schedule.has_read(1 + away, 0, 0)
    assert not schedule.must_poll(1 + away)
