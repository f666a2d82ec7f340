"""What a relay tells of itself: sums, the histogram, and what is worth a warning."""

from __future__ import annotations

import pytest

from relay.model.status import LATENCY_BUCKETS, Counts, Database, Histogram, Journal, Status, figures, merged, metrics

MIB = 1024**2


def test_histogram_counts_each_value_in_its_bucket() -> None:
    """A bound belongs to its bucket, and what is beyond the last to one more."""
    histogram = Histogram()
    for seconds in (0.0, LATENCY_BUCKETS[0], 0.0011, LATENCY_BUCKETS[-1], 11.0):
        histogram = histogram.observe(seconds)

    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1, 1)
    assert sum(histogram.counts) == 5
    assert histogram.seconds == pytest.approx(21.0021)


def test_counts_of_two_are_added() -> None:
    """Numbers add up, those by label for each label, the histogram for each bucket; the two stay as they are."""
    one = Counts(messages={"task.created": 1, "task.moved": 2}, bytes=3, closed={"1000": 1}, suppressed=1)
    other = Counts(
        messages={"task.created": 10, "board.sync": 20}, bytes=30, closed={"1000": 2, "1012": 5}, entries=7
    )
    one = one.model_copy(update={"commit_to_socket": Histogram().observe(0.002)})
    other = other.model_copy(update={"commit_to_socket": Histogram().observe(0.002)})

    assert one + other == Counts(
        messages={"task.created": 11, "task.moved": 2, "board.sync": 20},
        bytes=33,
        closed={"1000": 3, "1012": 5},
        suppressed=1,
        entries=7,
        commit_to_socket=Histogram().observe(0.002).observe(0.002),
    )
    assert one.messages == {"task.created": 1, "task.moved": 2}


def status(queue_usage: float = 0.0, size: int = MIB, overdue: float = 0.0, *, paused: bool = False) -> Status:
    journal = Journal(
        rows=1, bytes=size, age_seconds=1, overdue_seconds=overdue, keep_bytes=MIB, stop_bytes=4 * MIB, paused=paused
    )
    side = Database(journal=journal, queue_usage=queue_usage, probe_seconds=None, lag_seconds=0)
    return Status(running=True, port=1, database=side)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (status(overdue=301.0), "the journal is not pruned: a part of it has been due for 301 seconds"),
        (status(size=3 * MIB + 1), "the journal is nearly full: it has 3145729 bytes, and stops at 4194304"),
        (status(queue_usage=0.5), "the notification queue is 50% full"),
        (status(paused=True), "journalling is paused"),
    ],
)
def test_each_warning_says_what_was_found(found: Status, words: str) -> None:
    """One line for each, with what to do."""
    (warning,) = found.warnings
    assert warning.startswith(words)
    assert "\n" not in warning


def test_nothing_is_worth_a_warning_up_to_the_bounds() -> None:
    """A journal that is pruned in time, has room, and a queue that moves."""
    assert status(queue_usage=0.49, size=3 * MIB, overdue=300.0).warnings == []
    assert Status(running=True, port=1).warnings == []


def test_figures_of_several_processes_make_one_as_they_are_defined() -> None:
    one = Status(running=True, port=1, connections=2, max_connections=9, feed_up=True, lag_seconds=0.5, crowded=True)
    other = Status(running=True, port=1, connections=3, max_connections=9, lag_seconds=2.5, backlog=7)

    found = merged([one, other])

    assert found["connections"] == 5
    assert found["max_connections"] == 9
    assert found["backlog"] == 7
    assert found["lag_seconds"] == 2.5
    assert found["feed_up"] is False
    assert found["crowded"] is True
    assert merged([])["feed_up"] is False


def test_a_count_that_does_not_apply_stays_unknown() -> None:
    assert (Counts() + Counts()).entries is None
    assert (Counts() + Counts(entries=2) + Counts(entries=3)).entries == 5


def test_every_metric_has_a_name_of_its_own_and_a_meaning() -> None:
    every = list(metrics())

    assert len({metric.name for metric in every}) == len(every) > 30
    assert all(metric.meaning for metric in every)


def test_unknown_figures_are_not_metrics() -> None:
    names = {metric.name for metric, _ in figures(Status(running=True, port=1))}

    assert "relay_connections" in names
    assert "relay_journal_rows" not in names
    assert "relay_stream_entries" not in names
