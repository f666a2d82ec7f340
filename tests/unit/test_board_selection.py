"""Selections of a board: what their subscribers hold is what they would of a board that has nothing else."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.client.replica import Replica, lane_name
from relay.model import messages
from relay.model.messages import Message
from relay.model.selection import ALL, Changed, Selection, Whole, board_of, is_selection, selected, selection_of
from relay.model.transaction import Image, Transaction
from relay.nats.stream import ADDITION_BYTES, extended, message_of

LANES = ["todo", "done", None, 7]
COLUMNS = ["title", "size", "lane", "position"]

Task = dict[str, Any]
Tasks = dict[int | str, Task]


class Table:
    """A table whose rows are tasks as they are."""

    id = 1
    in_doubt = False

    def task(self, columns: messages.Row, board: str) -> messages.Row:
        assert board == "default"
        return columns

    def extras_that_differ(self, *_images: messages.Row) -> frozenset[str]:
        return frozenset()


TABLE = Table()


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def row(task: Task) -> dict[str, msgspec.Raw]:
    return {key: raw(value) for key, value in task.items()}


def data(tasks: Tasks) -> bytes:
    return messages.board_data([row(task) for task in tasks.values()])


def changes(before: Tasks, after: Tasks) -> list[Message]:
    """Return the messages of the transaction that made one board the other."""
    images = [Image(TABLE, str(key), "default", row(task), -1) for key, task in before.items()]
    images += [Image(TABLE, str(key), "default", row(task), +1) for key, task in after.items()]
    found = Transaction(1, images).messages({"default"}).get("default", [])
    assert not isinstance(found, str)
    return found


def narrowed(tasks: Tasks, selection: Selection) -> Tasks:
    """Return what is to be held of a board."""
    lanes, columns, chosen = selection.lanes, selection.columns, selection.tasks
    return {
        key: {
            name: value
            for name, value in task.items()
            if columns is None or name in {*columns, "id", "boardId", "lane"}
        }
        for key, task in tasks.items()
        if (lanes is None or lane_name(task["lane"]) in lanes) and (chosen is None or str(task["id"]) in chosen)
    }


def applied(replica: Replica, found: list[Message]) -> None:
    replica.apply([json.loads(message.json) for message in found])


BOARDS = st.dictionaries(
    st.sampled_from([1, 2, "3", 'a"b']),
    st.fixed_dictionaries(
        {
            "lane": st.sampled_from(LANES),
            "title": st.sampled_from("ab"),
            "size": st.integers(0, 1),
            "position": st.just(1),
        }
    ),
    max_size=4,
).map(lambda found: {key: {"id": key, "boardId": "default", **task} for key, task in found.items()})

SELECTIONS = st.builds(
    selected,
    st.none() | st.sets(st.sampled_from([*map(lane_name, LANES), "nowhere"])),
    st.none() | st.sets(st.sampled_from(COLUMNS)),
    st.none() | st.sets(st.sampled_from([1, 2, "3", 'a"b', "nothing"])),
)


@settings(max_examples=300)
@given(st.lists(BOARDS, min_size=1, max_size=5), SELECTIONS)
def test_a_selection_is_followed_as_a_board_would_be_that_has_nothing_else(
    boards: list[Tasks], selection: Selection
) -> None:
    """Each message fits what a client holds, or it would not apply it; also when it has come through the stream."""
    near, far = Replica(), Replica()
    for replica in (near, far):
        replica.replace(json.loads(selection.data(Whole(data(boards[0])))))
    assert near.tasks == narrowed(boards[0], selection)
    for before, after in itertools.pairwise(boards):
        found = changes(before, after)
        passed = [message_of(extended(message)) for message in found]
        assert passed == found
        for replica, whole in ((near, found), (far, passed)):
            its = selection.messages(Changed(whole))
            assert not isinstance(its, str)
            alone = changes(narrowed(before, selection), narrowed(after, selection))
            assert sorted(one.json for one in its) == sorted(one.json for one in alone)
            applied(replica, its)
            assert replica.tasks == narrowed(after, selection)


def test_a_selection_lists_its_lanes_and_says_no_order_that_its_columns_do_not_have() -> None:
    lanes = {"1": [{"id": 1, "title": "T"}], "2": [], "3": []}
    whole = {"lanes": lanes, "laneNames": {"2": "B", "1": "A", "3": None}, "laneOrder": ["2", "1", "3"]}
    ordered = {"orderBy": [{"key": "title", "descending": False, "nullsFirst": False}]}

    def of(selection: Selection, board: object) -> Any:
        return json.loads(selection.data(Whole(json.dumps(board).encode())))

    assert of(selected(["3", "1", "4"], None), whole) == {
        "lanes": {"1": lanes["1"], "3": []},
        "laneNames": {"1": "A", "3": None},
        "laneOrder": ["1", "3"],
    }
    assert of(selected(["1", "4"], None), {"lanes": lanes}) == {"lanes": {"1": lanes["1"], "4": []}}
    tasks = [{"id": key} for key in (12, 2, "c", 1, "b", 30, 4, "a")]
    assert of(selected(tasks=["a", "b", "c", 1, 2, 30, 7, 12]), {"lanes": {"a": tasks, "b": []}}) == {
        "lanes": {"a": [task for task in tasks if task["id"] != 4], "b": []}
    }
    assert of(selected(None, ["title"]), {"lanes": {}} | ordered) == {"lanes": {}} | ordered
    assert of(selected(None, ["size"]), {"lanes": {}} | ordered) == {"lanes": {}}


def test_what_is_too_large_to_come_along_has_the_selection_read_again() -> None:
    """Where the task stays in the selection, or leaves it, nothing is missing."""
    before: Tasks = {1: {"id": 1, "boardId": "default", "lane": "todo", "title": "x" * ADDITION_BYTES}}
    moved = [message_of(extended(one)) for one in changes(before, {1: before[1] | {"lane": "done"}})]
    changed = Changed(moved)
    assert selected(["done"], None, [1]).messages(changed) == "row_unreadable"
    assert selected(["done"], None, [2]).messages(changed) == []
    assert [one.type for one in selected(["todo"], None).messages(changed)] == ["task.deleted"]  # type: ignore[union-attr]
    assert selected(None, ["title"]).messages(changed) == moved
    assert max(len(extended(one)) for one in moved) < ADDITION_BYTES


def test_names_of_selections_are_those_of_no_boards() -> None:
    name = selected(["todo", "done"], [], [7]).of("default")
    assert name == selected(["done", "todo", "done"], (), ["7"]).of("default")
    assert (board_of(name), selection_of(name), is_selection(name)) == (
        "default",
        selected(["done", "todo"], [], [7]),
        True,
    )
    assert (board_of("a"), selection_of("a"), is_selection("a"), ALL.of("a")) == ("a", ALL, False, "a")


@pytest.mark.parametrize("name", ["title", 'a "b"', "back\\slash", "line\nbreak", "", "é"])
def test_columns_are_selected_whatever_they_are_called(name: str) -> None:
    """Of a whole board, and digit by digit as they are."""
    task = {"id": raw(1), "boardId": raw("b"), "lane": raw("todo"), name: msgspec.Raw(b"1.50"), "other": raw(2)}
    whole = messages.board_data([task])
    [found] = json.loads(selected(None, [name]).data(Whole(whole)), parse_float=str)["lanes"]["todo"]
    assert found == {"id": 1, "boardId": "b", "lane": "todo", name: "1.50"}
