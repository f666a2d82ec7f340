"""The probe: back only when all of it is, and in time."""

from __future__ import annotations

import pytest

from relay.postgres.probe import WAYS, Probe, Way

BUDGET = 10.0


def test_probe_is_back_when_notification_and_journal_are() -> None:
    """Whichever comes first, it took until the other came; nothing that comes again counts."""
    probe = Probe(now=0.0)
    label = probe.write(now=1.0)

    assert probe.returned(label, "journal", now=1.5) is None
    assert probe.returned(label, "journal", now=1.6) is None
    assert probe.returned(label, "notification", now=3.0) == 2.0
    assert probe.returned(label, "notification", now=4.0) is None
    assert probe.took == 2.0
    assert probe.problem(now=1000.0, budget=BUDGET) is None


def test_probes_of_others_and_older_ones_do_not_count() -> None:
    """Another relay's, and the one before, come back without an effect."""
    probe, other = Probe(now=0.0), Probe(now=0.0)
    older = probe.write(now=1.0)
    label = probe.write(now=2.0)
    foreign = other.write(now=2.0)

    for strange in (older, foreign, "", label + "0"):
        for way in WAYS:
            assert probe.returned(strange, way, now=3.0) is None
    assert probe.returned(label, "notification", now=3.0) is None
    assert probe.returned(label, "journal", now=3.0) == 1.0


@pytest.mark.parametrize(
    ("came", "words"),
    [
        ("journal", "no notification comes"),
        ("notification", "the journal is not read in time"),
        (None, "the journal is not read in time"),
    ],
)
def test_what_is_missing_is_named_after_the_budget(came: Way | None, words: str) -> None:
    """The time counts from when a probe was due first, however often another is written."""
    probe = Probe(now=0.0)
    probe.due(now=5.0)
    for now in (6.0, 8.0):
        label = probe.write(now)
        if came:
            probe.returned(label, came, now)

    assert probe.problem(now=10.0, budget=BUDGET) is None
    assert probe.problem(now=10.1, budget=BUDGET) == f"no probe has come back for 10 seconds: {words}" + (
        ": is there a transaction pooler in between?" if came == "journal" else ""
    )


def test_probe_that_cannot_be_written_is_a_problem() -> None:
    """One that is due and not written is waited for like any; between two of them nothing is."""
    probe = Probe(now=0.0)
    label = probe.write(now=0.0)
    probe.returned(label, "notification", now=0.1)
    probe.returned(label, "journal", now=0.1)
    assert probe.problem(now=100.0, budget=BUDGET) is None

    probe.due(now=100.0)
    probe.due(now=105.0)
    assert probe.problem(now=110.0, budget=BUDGET) is None
    assert "none could be written" in (probe.problem(now=110.1, budget=BUDGET) or "")
