"""The canary: back only when all of it is, and in time."""

from __future__ import annotations

from typing import Final, get_args

import pytest

from relay.postgres.feed import Canary, Way

WAYS: Final[tuple[Way, ...]] = get_args(Way)
BUDGET = 10.0


def test_canary_is_back_when_doorbell_and_journal_are() -> None:
    """Whichever comes first, it took until the other came; nothing that comes again counts."""
    canary = Canary(now=0.0)
    label = canary.write(now=1.0)

    assert canary.came(label, "journal", now=1.5) is None
    assert canary.came(label, "journal", now=1.6) is None
    assert canary.came(label, "doorbell", now=3.0) == 2.0
    assert canary.came(label, "doorbell", now=4.0) is None
    assert canary.took == 2.0
    assert canary.problem(now=1000.0, budget=BUDGET) is None


def test_canaries_of_others_and_older_ones_do_not_count() -> None:
    """Another relay's, and the one before, come back without an effect."""
    canary, other = Canary(now=0.0), Canary(now=0.0)
    older = canary.write(now=1.0)
    label = canary.write(now=2.0)
    foreign = other.write(now=2.0)

    for strange in (older, foreign, "", label + "0"):
        for way in WAYS:
            assert canary.came(strange, way, now=3.0) is None
    assert canary.came(label, "doorbell", now=3.0) is None
    assert canary.came(label, "journal", now=3.0) == 1.0


@pytest.mark.parametrize(
    ("came", "words"),
    [
        ("journal", "the doorbell is not heard"),
        ("doorbell", "the journal is not read in time"),
        (None, "the journal is not read in time"),
    ],
)
def test_what_is_missing_is_named_after_the_budget(came: Way | None, words: str) -> None:
    """The time counts from when a canary was due first, however often another is written."""
    canary = Canary(now=0.0)
    canary.due(now=5.0)
    for now in (6.0, 8.0):
        label = canary.write(now)
        if came:
            canary.came(label, came, now)

    assert canary.problem(now=10.0, budget=BUDGET) is None
    assert canary.problem(now=10.1, budget=BUDGET) == f"no canary has come back for 10 seconds: {words}" + (
        ": is there a transaction pooler in between?" if came == "journal" else ""
    )


def test_canary_that_cannot_be_written_is_a_problem() -> None:
    """One that is due and not written is waited for like any; between two of them nothing is."""
    canary = Canary(now=0.0)
    label = canary.write(now=0.0)
    canary.came(label, "doorbell", now=0.1)
    canary.came(label, "journal", now=0.1)
    assert canary.problem(now=100.0, budget=BUDGET) is None

    canary.due(now=100.0)
    canary.due(now=105.0)
    assert canary.problem(now=110.0, budget=BUDGET) is None
    assert "none could be written" in (canary.problem(now=110.1, budget=BUDGET) or "")
