"""Faults that end one session after another: what recurs, and from when on it no longer does."""

from __future__ import annotations

import pytest

from relay.faults import CALM_SECONDS, Faults


def test_a_fault_that_comes_once_does_not_recur() -> None:
    faults = Faults()
    faults.begin(0.0)

    assert faults.end(1.0, "NATS is away")
    assert faults.recurring(1.0) is None


@pytest.mark.parametrize("again", ["entry 12 is too large", "entry 13 is too large"])
def test_the_same_fault_soon_again_recurs_until_a_session_has_lasted(again: str) -> None:
    """Also while the next session looks well; numbers do not tell faults apart."""
    faults = Faults()
    faults.begin(0.0)
    faults.end(1.0, "entry 12 is too large")
    faults.begin(2.0)

    assert not faults.end(3.0, again)
    assert faults.recurring(100.0) == f"this comes again and again: {again}"
    faults.begin(101.0)
    assert faults.recurring(101.0 + CALM_SECONDS / 2)
    assert faults.recurring(101.0 + CALM_SECONDS) is None


def test_another_fault_or_a_session_in_between_begins_over() -> None:
    faults = Faults()
    faults.begin(0.0)
    faults.end(1.0, "NATS is away")
    faults.begin(2.0)
    assert faults.end(3.0, "the stream is gone")
    faults.begin(4.0)
    assert faults.end(4.0 + CALM_SECONDS, "the stream is gone")
    assert faults.recurring(5.0 + CALM_SECONDS) is None
