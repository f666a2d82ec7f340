"""Cursors: good as they were made, and refused when anything about them is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.cursor import CursorRefused, Epoch
from relay.model.snapshot import Snapshot

EPOCH = Epoch("0" * 12, {"0" * 12: b"key", "1" * 12: b"other"}, "a" * 12)
SNAPSHOT = Snapshot.parse("5:9:6,7")


def refused(epoch: Epoch, board: str, cursor: str) -> str:
    with pytest.raises(CursorRefused) as caught:
        epoch.open(board, cursor)
    return caught.value.reason


@given(st.text(), st.integers(1, 2**63), st.sets(st.integers(0, 100)))
def test_a_cursor_opens_as_the_snapshot_that_was_sealed(board: str, xmin: int, gaps: set[int]) -> None:
    snapshot = Snapshot(xmin, xmin + 101, frozenset(xmin + gap for gap in gaps))
    assert EPOCH.open(board, EPOCH.seal(board, snapshot)) == snapshot


def test_a_cursor_of_an_earlier_run_is_good_while_the_run_is_known() -> None:
    earlier = replace(EPOCH, run="1" * 12)
    assert EPOCH.open("a", earlier.seal("a", SNAPSHOT)) == SNAPSHOT
    assert refused(replace(EPOCH, keys={EPOCH.run: b"key"}), "a", earlier.seal("a", SNAPSHOT)) == "epoch_changed"


@given(st.data())
def test_a_cursor_with_anything_changed_is_refused(data: st.DataObject) -> None:
    cursor = EPOCH.seal("a", SNAPSHOT)
    place = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.characters(exclude_characters=cursor[place]))
    assert refused(EPOCH, "a", cursor[:place] + other + cursor[place + 1 :]) in {"cursor_invalid", "epoch_changed"}


@given(st.text().filter(lambda board: board != "a"))
def test_a_cursor_of_another_board_is_refused(board: str) -> None:
    assert refused(EPOCH, board, EPOCH.seal("a", SNAPSHOT)) == "cursor_invalid"


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    assert refused(EPOCH, "a", text) == "cursor_invalid"


def test_megabytes_of_anything_are_refused() -> None:
    assert refused(EPOCH, "a", "0" * 12 + "." + "a" * 12 + "." + "1," * 500_000 + "." + "x" * 22) == "cursor_invalid"


def test_a_cursor_from_before_the_tables_changed_is_refused() -> None:
    assert refused(replace(EPOCH, shape="b" * 12), "a", EPOCH.seal("a", SNAPSHOT)) == "schema_changed"
