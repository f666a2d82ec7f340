"""A short torture, and an oracle that is not fooled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relay.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.nats import NATS_SERVER, NO_SERVER
from tests.servers import do_without
from tests.torture.edges import EdgesWorld
from tests.torture.oracle import Audit, Entry, Step
from tests.torture.run import torture


def cursor(snapshot: str) -> str:
    return f"run.shape.{snapshot}.seal"


AUDIT = Audit(
    [
        Entry(1, 1, 10, None, "a", None, "x", 1),  # a appears on x
        Entry(2, 1, 12, "a", "a", "x", "x", 2),  # is changed
        Entry(3, 1, 11, None, "b", None, "x", 3),  # b comes
        Entry(4, 1, 11, "b", None, "x", None, None),  # and goes, in one transaction
        Entry(5, 1, 13, "a", "a", "x", "y", 4),  # a moves to y
        Entry(6, 1, 14, "a", None, "y", None, None),  # and goes
    ],
    {"run": 1, "earlier": 0, "later": 2},
)


@pytest.mark.parametrize(
    ("task", "old", "new"), [("a", None, 1), ("a", 1, 2), ("a", 2, None), ("b", None, 3), ("b", 3, None)]
)
def test_each_step_of_the_history_is_one(task: str, old: int | None, new: int | None) -> None:
    """What was committed may be told."""
    assert AUDIT.is_step(Step("x", task, old, new))


@pytest.mark.parametrize(
    ("task", "old", "new"), [("a", None, 2), ("a", 1, 1), ("a", 2, 1), ("a", 1, None), ("c", None, 5), ("b", 3, 4)]
)
def test_no_other_step_is_one(task: str, old: int | None, new: int | None) -> None:
    """A change left out, doubled, reordered or made up is noticed."""
    assert not AUDIT.is_step(Step("x", task, old, new))


def test_a_cursor_holds_what_it_sees() -> None:
    """The audit tells what a board was at any snapshot, late committers left out."""
    assert AUDIT.at("x", cursor("10:12:")) == {"a": 1}
    assert AUDIT.at("x", cursor("12:13:")) == {"a": 2}
    assert AUDIT.at("x", cursor("10:13:10,12")) == {}
    assert (AUDIT.at("x", cursor("14:14:")), AUDIT.at("y", cursor("14:14:"))) == ({}, {"a": 4})


def test_a_cursor_of_another_era_sees_all_or_nothing() -> None:
    """After a crash transaction ids come again, and a cursor from before it knows nothing of them."""
    assert AUDIT.at("y", "earlier.shape.99:99:.seal") == {}
    assert AUDIT.at("x", "later.shape.3:3:.seal") == {}
    assert AUDIT.between("x", "earlier.shape.99:99:.seal", "later.shape.3:3:.seal") == {1, 2}
    assert not AUDIT.knows("unknown.shape.3:3:.seal")


def test_what_leads_from_cursor_to_cursor_leaves_out_only_visits() -> None:
    """A task that came and went within one transaction need not be told."""
    assert AUDIT.between("x", cursor("10:10:"), cursor("13:13:")) == {1, 2}
    assert AUDIT.between("x", cursor("10:13:12"), cursor("13:13:")) == {2}
    assert AUDIT.told([1, 2, 3]) == [1, 2]


@pytest.mark.timeout(280)
async def test_nobody_is_told_anything_but_the_truth(tmp_path: Path) -> None:
    """A short round of the torture ends without a violation."""
    try:
        EmbeddedPostgres()
    except EmbeddedPostgresError as error:
        do_without(str(error))
    if NATS_SERVER is None:
        do_without(NO_SERVER)
    verdict = await torture("ci", 8, tmp_path, None, sys.stdout, EdgesWorld, round_seconds=8)

    assert verdict.violations == []
    assert verdict.changes > 0
    assert verdict.messages["resumed"] > 0
    assert verdict.faults.total() > 0
