"""Snapshots, against a little Postgres that knows what is visible."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.snapshot import Snapshot
from tests.unit.little_postgres import LittlePostgres


@dataclass(frozen=True)
class Moment:
    """A snapshot, and what is known of the moment at which it was taken."""

    snapshot: Snapshot
    committed: frozenset[int]
    ended: int


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Moment], list[int]]:
    """Draw moments of one server in the order they were taken, and all that had committed in the end."""
    postgres = LittlePostgres()
    moments = []
    for step in draw(st.lists(st.sampled_from(["begin", "commit", "roll back", "read"]), max_size=40)):
        if step == "begin":
            postgres.begin()
        elif step == "read":
            moments.append(Moment(postgres.snapshot(), frozenset(postgres.committed), postgres.ended))
        elif postgres.running:
            xid = draw(st.sampled_from(postgres.running))
            (postgres.commit if step == "commit" else postgres.roll_back)(xid)
    return moments, postgres.committed


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    xmin = draw(st.integers(1, 2**63))
    xmax = draw(st.integers(xmin, xmin + 50))
    xip = draw(st.frozensets(st.integers(xmin, xmax - 1))) if xmax > xmin else frozenset()
    return Snapshot(xmin, xmax, xip)


def test_a_snapshot_is_read_from_what_postgres_prints() -> None:
    assert Snapshot.parse("751:760:751,755") == Snapshot(751, 760, frozenset({751, 755}))


def test_a_snapshot_with_nothing_running_is_read() -> None:
    assert Snapshot.parse("751:751:") == Snapshot(751, 751, frozenset())


def test_a_snapshot_is_written_with_its_running_transactions_in_order() -> None:
    assert str(Snapshot(751, 2**40, frozenset({90_000, 751, 8_000}))) == f"751:{2**40}:751,8000,90000"


@given(snapshots())
def test_what_is_written_is_read_back(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "10:20",
        "10:20:11:12",
        "a:20:",
        "10:b:",
        "10:20:c",
        "10:20:11,",
        "10:20:,11",
        "10:20:11,,12",
        ":20:",
        "10::",
        "1.0:20:",
        "20:10:",
        "0:10:",
        "-1:10:",
        "10:20:9",
        "10:20:20",
        "10:10:10",
        "9" * 5_000 + ":10:",
        f"10:{2**64}:",
        # Python's int() accepts these:
        " 10:20:",
        "10:20:11, 12",
        "+10:20:",
        "1_0:20:",
        "١٠:20:",  # noqa: RUF001
    ],
)
def test_an_invalid_snapshot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no snapshot"):
        Snapshot.parse(text)


@given(histories())
def test_a_snapshot_sees_exactly_what_had_committed(history: tuple[list[Moment], list[int]]) -> None:
    moments, committed = history
    for moment in moments:
        assert {xid for xid in committed if moment.snapshot.sees(xid)} == moment.committed


@given(histories())
def test_a_snapshot_covers_those_taken_before_it_and_no_later_one(history: tuple[list[Moment], list[int]]) -> None:
    moments, _ = history
    for one in moments:
        for other in moments:
            assert one.snapshot.covers(other.snapshot) == (one.ended >= other.ended)


@given(histories())
def test_a_snapshot_covers_another_if_it_sees_all_that_the_other_sees(
    history: tuple[list[Moment], list[int]],
) -> None:
    moments, _ = history
    for one in moments:
        for other in moments:
            seen = (one.snapshot.sees(xid) or not other.snapshot.sees(xid) for xid in range(60))
            assert one.snapshot.covers(other.snapshot) == all(seen)


def test_a_snapshot_covers_no_other_that_saw_a_late_commit_of_a_low_id() -> None:
    before, after = Snapshot.parse("10:20:10"), Snapshot.parse("20:20:")
    assert (before.covers(after), after.covers(before)) == (False, True)
