"""A short torture, and an oracle that is not fooled."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from relay.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.nats import NATS_SERVER, NO_SERVER
from tests.servers import do_without
from tests.torture.causes import CAUSES, explains
from tests.torture.edges import EdgesWorld
from tests.torture.oracle import Audit, Entry, Step
from tests.torture.run import torture


def cursor(snapshot: str) -> str:
    return f"run.shape.{snapshot}.seal"


AUDIT = Audit(
    [
        Entry(1, 1, 10, "a", "x", 1),  # a appears on x
        Entry(2, 1, 12, "a", "x", 2),  # is changed
        Entry(3, 1, 11, "b", None, None),  # b comes and goes, in one transaction
        Entry(4, 1, 13, "a", "y", 4),  # a moves to y
        Entry(5, 1, 14, "a", "y", 4),  # is changed and changed back
        Entry(6, 1, 15, "a", None, None),  # and goes
    ],
    {"run": 1, "earlier": 0, "later": 2},
)

STEPS = [Step("x", "a", None, 1), Step("x", "a", 1, 2), Step("x", "a", 2, None)]
"""What happened on x."""


@pytest.mark.parametrize(("task", "old", "new"), [("a", None, 1), ("a", 1, 2), ("a", 2, None)])
def test_each_step_of_the_history_is_one(task: str, old: int | None, new: int | None) -> None:
    """What was committed may be sent."""
    assert AUDIT.is_step(Step("x", task, old, new))


@pytest.mark.parametrize(
    ("task", "old", "new"),
    [("a", None, 2), ("a", 1, 1), ("a", 2, 1), ("a", 1, None), ("c", None, 5), ("b", None, 3)],
)
def test_no_other_step_is_one(task: str, old: int | None, new: int | None) -> None:
    """A change left out, doubled, reordered, undone in its transaction or made up is noticed."""
    assert not AUDIT.is_step(Step("x", task, old, new))


def test_a_cursor_holds_what_it_sees() -> None:
    """The audit tells what a board was at any snapshot, late committers left out."""
    assert AUDIT.at("x", cursor("10:12:")) == {"a": 1}
    assert AUDIT.at("x", cursor("12:13:")) == {"a": 2}
    assert AUDIT.at("x", cursor("10:13:10,12")) == {}
    assert (AUDIT.at("x", cursor("14:14:")), AUDIT.at("y", cursor("14:14:"))) == ({}, {"a": 4})


def test_a_cursor_of_another_epoch_sees_all_or_nothing() -> None:
    """After a crash transaction ids come again, and a cursor from before it knows nothing of them."""
    assert AUDIT.at("y", "earlier.shape.99:99:.seal") == {}
    assert AUDIT.at("x", "later.shape.3:3:.seal") == {}
    assert AUDIT.between("x", "earlier.shape.99:99:.seal", "later.shape.3:3:.seal") == Counter(STEPS)
    assert not AUDIT.knows("unknown.shape.3:3:.seal")


def test_what_leads_from_cursor_to_cursor_is_what_remained_of_each_transaction() -> None:
    """What a transaction made and undid is no step."""
    assert AUDIT.between("x", cursor("9:9:"), cursor("13:13:")) == Counter(STEPS[:2])
    assert AUDIT.between("x", cursor("10:13:12"), cursor("14:14:")) == Counter(STEPS[1:])
    assert AUDIT.between("y", cursor("14:14:"), cursor("15:15:")) == Counter()


def test_a_board_comes_for_a_reason_that_a_fault_gave_and_for_no_other() -> None:
    """A transaction, however nested, is no reason."""
    assert explains({"truncate"}, "truncate")
    assert not explains({"resync"}, "truncate")
    assert not explains(set(CAUSES), "changes_missing")
    assert explains(set(), "fell_behind")


@pytest.mark.timeout(280)
async def test_nobody_is_sent_anything_but_the_truth(tmp_path: Path) -> None:
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
