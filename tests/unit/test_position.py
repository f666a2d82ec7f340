"""The position of a feed, and what breaks continuity."""

from __future__ import annotations

import pytest

from relay.model.cursor import Epoch, Reason
from relay.model.snapshot import Snapshot
from relay.model.transaction import Transaction
from relay.postgres.position import Position

EPOCH = Epoch(run="1", keys={"1": b""}, shape="first")
LATER = Epoch(run="2", keys={"1": b"", "2": b""}, shape="first")
SEEN = Snapshot.parse("20:20:")
BEFORE, AFTER = Snapshot.parse("10:10:"), Snapshot.parse("30:30:")


@pytest.mark.parametrize(
    ("epoch", "now", "horizon", "paused", "reason"),
    [
        (EPOCH, AFTER, BEFORE, False, None),
        (LATER, AFTER, BEFORE, False, None),
        (Epoch(run="3", keys={"3": b""}, shape="first"), AFTER, BEFORE, False, "epoch_changed"),
        (EPOCH, BEFORE, BEFORE, False, "epoch_changed"),
        (EPOCH, AFTER, BEFORE, True, "journalling_paused"),
        (EPOCH, AFTER, AFTER, False, "journal_pruned"),
        (Epoch(run="1", keys={"1": b""}, shape="other"), AFTER, BEFORE, False, "schema_changed"),
    ],
)
def test_a_session_goes_on_from_the_position_or_says_why_it_cannot(
    epoch: Epoch, now: Snapshot, horizon: Snapshot, paused: bool, reason: Reason | None
) -> None:
    position = Position(EPOCH, SEEN)

    assert position.begin(epoch, now, horizon, shaped=0, paused=paused) == reason
    assert position.snapshot == (now if reason else SEEN)
    assert position.epoch == epoch
    assert position.breaks == ({reason: 1} if reason else {})


def test_transactions_that_may_be_older_than_the_shape_are_outdated() -> None:
    """Whether the change was seen within a session, between two, or by another relay."""
    position = Position()
    position.begin(EPOCH, SEEN, BEFORE, shaped=28, paused=False)
    assert outdated(position) == [25]
    position.reshape("other", 30)
    assert outdated(position) == [25, 29]
    position.begin(Epoch(run="3", keys={"3": b""}, shape="third"), AFTER, BEFORE, shaped=3, paused=False)
    assert outdated(position) == []


def outdated(position: Position) -> list[int]:
    transactions = [Transaction(xid) for xid in (25, 29, 30)]
    position.mark_outdated(transactions)
    return [one.xid for one in transactions if one.outdated]


def test_a_batch_that_was_passed_on_in_part_breaks_continuity_once() -> None:
    position = Position(EPOCH, SEEN)
    position.pass_part()

    assert position.begin(EPOCH, AFTER, BEFORE, shaped=0, paused=False) == "batch_cut_short"
    assert position.begin(EPOCH, AFTER, BEFORE, shaped=0, paused=False) is None


def test_the_first_session_begins_with_what_is_visible_now() -> None:
    position = Position()

    assert position.begin(EPOCH, AFTER, BEFORE, shaped=0, paused=True) is None
    assert position.snapshot == AFTER
