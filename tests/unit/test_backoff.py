"""Pauses between attempts, and what recurs: a fault that comes at once each time, until an attempt has lasted."""

from __future__ import annotations

import pytest

from relay.backoff import CALM_SECONDS, FIRST_SECONDS, Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(longest=8 * FIRST_SECONDS)
    for most in (FIRST_SECONDS * times for times in (1, 2, 4, 8, 8)):
        backoff.begin(0.0)
        assert most / 2 <= backoff.fail(0.1, f"fault {most}") <= most


def test_pauses_begin_over_only_when_an_attempt_has_lasted() -> None:
    """Also where faults take turns: each of them came right after the attempt began."""
    backoff = Backoff(longest=64 * FIRST_SECONDS)
    for number in range(6):
        backoff.begin(0.0)
        backoff.fail(CALM_SECONDS / 2, "one" if number % 2 else "other")
    backoff.begin(0.0)
    assert backoff.fail(CALM_SECONDS / 2, "one") >= 32 * FIRST_SECONDS
    backoff.begin(0.0)
    assert backoff.fail(CALM_SECONDS, "one") <= FIRST_SECONDS


def test_a_fault_that_comes_once_does_not_recur() -> None:
    backoff = Backoff()
    backoff.begin(0.0)
    backoff.fail(1.0, "NATS is away")
    assert backoff.recurring(1.0) is None


@pytest.mark.parametrize("again", ["entry 12 is too large", "entry 13 is too large"])
def test_the_same_fault_soon_again_recurs_until_an_attempt_has_lasted(again: str) -> None:
    """Also while the next attempt seems to go well; numbers do not make two faults different."""
    backoff = Backoff()
    backoff.begin(0.0)
    backoff.fail(1.0, "entry 12 is too large")
    backoff.begin(2.0)
    backoff.fail(3.0, again)

    assert backoff.recurring(100.0) == f"this comes again and again: {again}"
    backoff.begin(101.0)
    assert backoff.recurring(101.0 + CALM_SECONDS / 2)
    assert backoff.recurring(101.0 + CALM_SECONDS) is None


def test_another_fault_or_an_attempt_that_lasted_does_not_recur() -> None:
    backoff = Backoff()
    backoff.begin(0.0)
    backoff.fail(1.0, "NATS is away")
    backoff.begin(2.0)
    backoff.fail(3.0, "the stream is gone")
    assert backoff.recurring(3.0) is None
    backoff.begin(4.0)
    backoff.fail(4.0 + CALM_SECONDS, "the stream is gone")
    assert backoff.recurring(5.0 + CALM_SECONDS) is None
