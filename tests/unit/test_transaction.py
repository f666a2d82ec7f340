"""What becomes of a transaction's entries: the messages of each board, by what the transaction changed in all."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.model import messages as protocol
from relay.model.messages import Meaning, Message
from relay.model.transaction import Image, Transaction, cancelled
from relay.postgres import decode
from relay.postgres.decode import Entry, Watch
from relay.postgres.faults import UnreadableRow, WatchOutdated
from tests.unit.tasks import (
    BOARDS,
    WATCH,
    Columns,
    applied,
    deleted,
    held,
    images,
    inserted,
    messages,
    row,
    said,
    task,
    updated,
)

# What each change is to clients


def test_a_row_that_appears_is_sent_whole() -> None:
    assert said(inserted(row(estimated_hours=1.5, done_at=None))) == {
        "b": [
            (
                "task.created",
                {"id": 1, "boardId": "b", "lane": "todo", "estimatedHours": 1.5, "doneAt": None},
            )
        ]
    }


def test_of_an_update_only_what_changed_is_sent() -> None:
    change = updated(row(title="x", estimated_hours=1), row(title="x", estimated_hours=2))
    assert said(change) == {"b": [("task.updated", {"id": 1, "changes": {"estimatedHours": 2}})]}


def test_a_change_to_null_and_one_from_null_are_changes() -> None:
    change = updated(row(title="x", notes=None), row(title=None, notes=""))
    assert said(change) == {"b": [("task.updated", {"id": 1, "changes": {"title": None, "notes": ""}})]}


def test_a_change_of_lane_alone_is_a_move() -> None:
    assert said(updated(row(), row(lane="done"))) == {
        "b": [("task.moved", {"id": 1, "fromLane": "todo", "toLane": "done"})]
    }


def test_a_change_of_lane_and_more_is_a_move_and_then_an_update_with_the_lane() -> None:
    assert said(updated(row(title="x"), row(lane="done", title="y"))) == {
        "b": [
            ("task.moved", {"id": 1, "fromLane": "todo", "toLane": "done"}),
            ("task.updated", {"id": 1, "changes": {"lane": "done", "title": "y"}}),
        ]
    }


@pytest.mark.parametrize(("old", "new"), [(None, "done"), ("done", None)])
def test_a_lane_may_be_null(old: str | None, new: str | None) -> None:
    assert said(updated(row(lane=old), row(lane=new))) == {
        "b": [("task.moved", {"id": 1, "fromLane": old, "toLane": new})]
    }


def test_an_update_that_changes_nothing_visible_is_not_sent() -> None:
    assert said(updated(row(title="x"), row(title="x"))) == {}


def test_a_row_that_leaves_is_sent_by_its_id() -> None:
    assert said(deleted(row())) == {"b": [("task.deleted", {"id": 1})]}


def test_a_row_that_moves_to_another_board_leaves_one_and_appears_on_the_other() -> None:
    assert said(updated(row(title="x"), row(board="c", title="y"))) == {
        "b": [("task.deleted", {"id": 1})],
        "c": [("task.created", {"id": 1, "boardId": "c", "lane": "todo", "title": "y"})],
    }


def test_a_change_of_key_is_one_task_that_leaves_and_another_that_appears() -> None:
    assert said(updated(row(), row(key=7))) == {
        "b": [("task.deleted", {"id": 1}), ("task.created", {"id": 7, "boardId": "b", "lane": "todo"})]
    }


def test_a_change_of_key_and_board_goes_to_both_boards() -> None:
    assert said(updated(row(), row(key=7, board="c"))) == {
        "b": [("task.deleted", {"id": 1})],
        "c": [("task.created", {"id": 7, "boardId": "c", "lane": "todo"})],
    }


@pytest.mark.parametrize(
    "change",
    [
        inserted(row(board=None)),
        updated(row(board=None, title="x"), row(board=None, title="y")),
        deleted(row(board=None)),
    ],
)
def test_a_row_without_a_board_is_sent_to_nobody(change: Entry) -> None:
    assert said(change, boards=[*BOARDS, None]) == {}


def test_a_row_that_gets_a_board_appears_there() -> None:
    assert said(updated(row(board=None), row())) == {
        "b": [("task.created", {"id": 1, "boardId": "b", "lane": "todo"})]
    }


def test_a_row_that_loses_its_board_leaves_it() -> None:
    assert said(updated(row(), row(board=None))) == {"b": [("task.deleted", {"id": 1})]}


@pytest.mark.parametrize(
    "change",
    [
        inserted(row()),
        deleted(row()),
        updated(row(), row(lane="done")),
        updated(row(), row(key=7)),
        updated(row(), row(board=None)),
    ],
)
def test_a_board_that_nobody_follows_gets_nothing(change: Entry) -> None:
    assert said(change, boards=["c"]) == {}


def test_a_row_that_moves_between_boards_is_sent_to_those_that_are_followed() -> None:
    change = updated(row(), row(board="c"))
    assert [list(said(change, boards=[board])) for board in ("b", "c", "d")] == [["b"], ["c"], []]


# How a row becomes a task


def keys(watch: Watch, *columns: str) -> dict[str, object]:
    """Return the task that a row becomes whose every column holds its own name."""
    found = task(watch, json.dumps({column: column for column in columns}))
    return {key: msgspec.json.decode(value) for key, value in found.items()}


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("title", "title"),
        ("estimated_hours", "estimatedHours"),
        ("due_at_utc", "dueAtUtc"),
        ("line_2", "line2"),
        ("a__b", "aB"),
        ("_private", "_private"),
        ("private_", "private_"),
        ("alreadyCamel", "alreadyCamel"),
        ("Some Name", "Some Name"),
        ("größe_in_m", "größeInM"),
    ],
)
def test_columns_are_named_in_camel_case(column: str, key: str) -> None:
    assert keys(WATCH, "id", "board_id", "lane", column)[key] == column


def test_columns_that_would_share_a_name_keep_their_own() -> None:
    assert keys(WATCH, "id", "board_id", "lane", "foo_bar", "fooBar", "foo__bar", "foo_baz") == {
        "id": "id",
        "boardId": "board_id",
        "lane": "lane",
        "foo_bar": "foo_bar",
        "fooBar": "fooBar",
        "foo__bar": "foo__bar",
        "fooBaz": "foo_baz",
    }


def test_the_id_the_board_and_the_lane_have_their_names_whatever_their_columns_are_called() -> None:
    watch = replace(WATCH, id_column="task_id", board_column="project", lane_column="current_state")
    assert keys(watch, "task_id", "project", "current_state") == {
        "id": "task_id",
        "boardId": "project",
        "lane": "current_state",
    }


def test_a_column_called_like_what_it_is_not_makes_way() -> None:
    watch = replace(WATCH, id_column="task_id", board_column="project", lane_column="state")
    assert keys(watch, "id", "task_id", "lane", "state", "board_id", "project") == {
        "id": "task_id",
        "id_": "id",
        "lane": "state",
        "lane_": "lane",
        "boardId": "project",
        "board_id": "board_id",
    }


@given(
    st.lists(
        st.sampled_from(
            ["id", "id_", "_id", "lane", "lane_", "boardId", "boardId_", "board_id", "board_id_", "board__id"]
        ),
        unique=True,
    ),
    st.booleans(),
)
def test_no_column_is_lost_to_another_of_its_name(columns: list[str], guides_names: bool) -> None:
    roles = ("id", "board_id", "lane") if guides_names else ("task_id", "project", "state")
    watch = Watch(1, "public.tasks", *roles, frozenset())
    everything = {*roles, *columns}
    assert set(keys(watch, *sorted(everything)).values()) == everything


def test_hidden_columns_are_not_shown() -> None:
    watch = replace(WATCH, hidden=frozenset({"secret", "search_text"}))
    assert keys(watch, "id", "board_id", "lane", "secret", "search_text", "title").keys() == {
        "id",
        "boardId",
        "lane",
        "title",
    }


def test_a_hidden_column_takes_no_name_from_another() -> None:
    watch = replace(WATCH, hidden=frozenset({"fooBar"}))
    assert keys(watch, "id", "board_id", "lane", "foo_bar", "fooBar")["fooBar"] == "foo_bar"


@pytest.mark.parametrize("number", ["1.50", "12345678901234567890.123", "1e400", "-0.0", "9007199254740993", "0.10"])
def test_numbers_keep_their_digits(number: str) -> None:
    image = '{"id":1,"board_id":"b","lane":"todo","n":%s}'
    new = inserted(row())._replace(new_row=image % number)
    changed = updated(row(), row())._replace(old_row=image % "1", new_row=image % number)
    found = [next(iter(messages([entry])["b"])) for entry in (new, changed)]
    assert [message.json.decode() for message in found if isinstance(message, Message)] == [
        f'{{"type":"task.created","data":{{"id":1,"boardId":"b","lane":"todo","n":{number}}}}}',
        f'{{"type":"task.updated","data":{{"id":1,"changes":{{"n":{number}}}}}}}',
    ]


def test_a_number_that_gains_a_digit_has_changed() -> None:
    old, new = (f'{{"id":1,"board_id":"b","lane":"x","n":{n}}}' for n in ("1.5", "1.50"))
    assert len(said(updated(row(), row())._replace(old_row=old, new_row=new))["b"]) == 1


@pytest.mark.parametrize("missing", ["id", "board_id", "lane"])
def test_a_row_without_the_columns_that_make_it_a_task_says_that_the_watch_is_outdated(missing: str) -> None:
    lacking = dict.fromkeys({"id", "board_id", "lane"} - {missing})
    with pytest.raises(WatchOutdated, match=r"public\.tasks.*relay sql watch"):
        task(WATCH, json.dumps(lacking))


@pytest.mark.parametrize(
    "image", ["", "[]", "{", '{"id":1,"board_id":"b","lane":"x","j":"\\ud800"}', "{} {}", '{"":"a"}']
)
def test_a_row_that_is_not_a_json_object_cannot_be_shown(image: str) -> None:
    with pytest.raises(UnreadableRow, match=r"public\.tasks"):
        task(WATCH, image)


def test_why_a_row_cannot_be_shown_is_one_line_whatever_code_of_users_raises() -> None:
    with pytest.raises(UnreadableRow, match=r"cannot be shown: P0001 two lines$"):
        task(WATCH, "!P0001 two\nlines")


# What a transaction did in all


def test_rows_stay_in_the_order_of_their_first_images() -> None:
    found = said(*(inserted(row(key)) for key in [5, 3, 9, 1]))
    assert [data["id"] for _, data in found["b"]] == [5, 3, 9, 1]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_row_that_changed_many_times_is_updated_once_from_first_to_last_in_whatever_order(
    order: tuple[int, ...],
) -> None:
    versions = [row(hours=hours, title="x") for hours in range(5)]
    history = list(map(updated, versions, versions[1:]))
    assert said(*(history[place] for place in order)) == {"b": [("task.updated", {"id": 1, "changes": {"hours": 4}})]}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([inserted(row()), updated(row(), row(lane="done"))], ["task.created"]),
        ([updated(row(), row(lane="done")), deleted(row(lane="done"))], ["task.deleted"]),
        ([inserted(row()), deleted(row())], []),
        ([inserted(row()), updated(row(), row(title="x")), deleted(row(title="x"))], []),
        ([updated(row(), row(lane="done")), updated(row(lane="done"), row())], []),
        ([deleted(row()), inserted(row())], []),
        ([deleted(row()), inserted(row(lane="done"))], ["task.moved"]),
        ([updated(row(), row(7)), updated(row(7), row())], []),
        ([updated(row(), row(board="c")), updated(row(board="c"), row(title="x"))], ["task.updated"]),
        ([updated(row(), row(board=None)), updated(row(board=None), row(title="x"))], ["task.updated"]),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_what_was_done_and_undone_was_never_committed(
    entries: list[Entry], expected: list[str], turned: bool
) -> None:
    found = said(*(reversed(entries) if turned else entries))
    assert [kind for kind, _ in found.get("b", [])] == expected
    assert found.keys() <= {"b"}


def test_a_board_that_only_saw_a_row_pass_is_sent_nothing() -> None:
    there_and_back = [updated(row(), row(board="c")), updated(row(board="c"), row(lane="done"))]
    assert said(*there_and_back) == {"b": [("task.moved", {"id": 1, "fromLane": "todo", "toLane": "done"})]}


def test_keys_that_are_swapped_are_two_updates() -> None:
    one, two = row(1, title="x"), row(2, title="y")
    entries = [
        updated(one, row(3, title="x")),
        updated(two, row(1, title="y")),
        updated(row(3, title="x"), row(2, title="x")),
    ]
    assert said(*entries) == {
        "b": [
            ("task.updated", {"id": 1, "changes": {"title": "y"}}),
            ("task.updated", {"id": 2, "changes": {"title": "x"}}),
        ]
    }


def test_keys_that_all_move_up_by_one_leave_no_task_behind() -> None:
    old = [row(key, title=str(key)) for key in (1, 2, 3)]
    new = [row(key + 1, title=str(key)) for key in (1, 2, 3)]
    found = said(*map(updated, old, new))
    assert applied(held(*old)["b"], found["b"]) == held(*new)["b"]


def test_an_image_that_came_twice_and_left_once_has_come() -> None:
    came_back = [inserted(row()), deleted(row()), inserted(row())]
    for order in permutations(came_back):
        assert [kind for kind, _ in said(*order)["b"]] == ["task.created"]


def test_rows_of_two_tables_with_the_same_key_are_two_rows() -> None:
    other = replace(WATCH, id=2)
    entries = [deleted(row()), inserted(row(title="x"))]
    both = [
        image
        for entry, watch in zip(entries, (WATCH, other), strict=True)
        for image in entry.images(watch, BOARDS)[0]
    ]
    found = Transaction(10, both).messages(BOARDS)["b"]
    assert not isinstance(found, str)
    assert [message.type for message in found] == ["task.deleted", "task.created"]


def test_a_row_whose_columns_stand_in_another_order_is_another_image_of_the_same_row() -> None:
    """As in partitions: values that happen to stand in the same places are not taken for the same."""
    here, there = {**row(), "x": 1, "y": 2}, {**row(), "y": 1, "x": 2}
    assert said(deleted(here), inserted(there)) == {"b": [("task.updated", {"id": 1, "changes": {"x": 2, "y": 1}})]}


def test_images_whose_texts_are_the_same_end_to_end_are_two() -> None:
    image = '{"id":1,"board_id":"b","lane":"todo","x":%s,"y":%s}'
    came = inserted(row())._replace(new_row=image % (1, 12))
    left = deleted(row())._replace(old_row=image % (11, 2))
    assert len(cancelled(images(came, left))) == 2


# What cannot be shown

UNREADABLE: Final = {
    "no text": r'"\ud800"',
    "too deep": "[" * 5000 + "]" * 5000,
    "too large": f'"{"n" * decode.MAX_TASK_BYTES}"',
    "too large in bytes": f'"{"é" * (decode.MAX_TASK_BYTES // 2)}"',
}
"""What a column may hold, as JSON, so that its row cannot be shown."""


def holding(text: str, entry: Entry) -> Entry:
    """Return the entry with this text as the value of each column that is an ellipsis."""
    old, new = (None if image is None else image.replace('"..."', text) for image in (entry.old_row, entry.new_row))
    return entry._replace(old_row=old, new_row=new)


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_an_image_that_cannot_be_read_is_absent_and_reported(text: str) -> None:
    became_unreadable = holding(text, updated(row(j="x"), row(j="...")))
    assert said(became_unreadable) == {"b": [("task.deleted", {"id": 1})]}
    assert said(holding(text, updated(row(j="..."), row(j="x"))))["b"][0][0] == "task.created"
    assert said(holding(text, updated(row(j="..."), row(j="...", title="x")))) == {}
    assert said(holding(text, inserted(row(j="..."))), inserted(row(2)))["b"][0][1]["id"] == 2
    _, [problem] = became_unreadable.images(WATCH, BOARDS)
    assert "public.tasks" in problem


def test_an_image_that_the_journal_lacks_is_absent_and_the_reason_is_reported() -> None:
    entry = updated(row(), row(title="x"))._replace(new_row=None, reason="row_unreadable: the row is larger")
    assert said(entry) == {"b": [("task.deleted", {"id": 1})]}
    _, [problem] = entry.images(WATCH, BOARDS)
    assert "public.tasks" in problem
    assert "the row is larger" in problem


def test_a_row_that_is_too_large_is_absent_and_one_that_is_so_only_by_what_is_hidden_is_not() -> None:
    large = row(notes="n" * decode.MAX_TASK_BYTES)
    assert said(inserted(large)) == {}
    assert said(updated(row(notes="n"), large)) == {"b": [("task.deleted", {"id": 1})]}
    hiding = replace(WATCH, hidden=frozenset({"notes"}))
    found, problems = inserted(large).images(hiding, BOARDS)
    assert (len(found), problems) == (1, [])


# What no history can produce


@pytest.mark.parametrize(
    "entries",
    [
        [inserted(row(title="x")), inserted(row(title="y"))],
        [deleted(row(title="x")), deleted(row(title="y"))],
        [updated(row(title="a"), row(title="b")), updated(row(title="c"), row(title="d"))],
        [inserted(row()), inserted(row())],
    ],
)
def test_two_images_before_or_two_after_have_the_board_read_again(entries: list[Entry]) -> None:
    for order in permutations(entries):
        assert messages([inserted(row(5)), *order, inserted(row(6))]) == {"b": "changes_missing"}


def test_only_the_board_with_such_a_row_is_read_again() -> None:
    found = messages([inserted(row(title="x")), inserted(row(title="y")), inserted(row(2, board="c"))])
    assert found["b"] == "changes_missing"
    assert len(found["c"] or []) == 1


# Any transaction


@dataclass(frozen=True)
class History:
    """The rows before a transaction and after it, and the entries that it made."""

    before: list[Columns]
    entries: list[Entry]
    after: list[Columns]


_BOARDS_OF_ROWS: Final = st.sampled_from(["b", "c", "d", None])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw a transaction that inserts, updates and deletes rows, which may share a key on the way."""
    rows = [row(key, draw(_BOARDS_OF_ROWS), title="x", notes="n") for key in draw(st.sets(st.integers(1, 3)))]
    before, entries = list(rows), []
    for _ in range(draw(st.integers(0, 12))):
        old = draw(st.sampled_from([*rows, None]))
        new = draw(st.none() | _changed(old))
        if old is not None:
            rows.remove(old)
        if new is not None:
            rows.append(new)
        entries += _entries(old, new)
    seen: set[int] = set()
    for one in list(rows):
        if one["id"] in seen:
            rows.remove(one)
            entries.append(deleted(one))
        seen.add(one["id"])
    return History(before, entries, rows)


def _changed(old: Columns | None) -> st.SearchStrategy[Columns]:
    columns: dict[str, st.SearchStrategy[Any]] = {
        "id": st.integers(1, 4),
        "board_id": _BOARDS_OF_ROWS,
        "lane": st.sampled_from(["todo", "done"]),
        "title": st.sampled_from("xyz"),
        "notes": st.sampled_from(["n", None]),
    }
    whole = row(1, None, title="x", notes=None) if old is None else old
    changed = st.fixed_dictionaries(columns) if old is None else st.fixed_dictionaries({}, optional=columns)
    return changed.map(lambda values: {**whole, **values})  # in the order of the table's columns


def _entries(old: Columns | None, new: Columns | None) -> list[Entry]:
    if old is not None and new is not None:
        return [updated(old, new)]
    return [deleted(old)] if old is not None else [inserted(new)] if new is not None else []


def difference(history: History) -> dict[tuple[str, int], list[tuple[str, Any]]]:
    """Tell what is to be said of each task of each board, by what was there before and is after."""
    before, after = held(*_shown(history.before)), held(*_shown(history.after))
    found = {}
    for board in BOARDS:
        for key in before[board].keys() | after[board].keys():
            if expected := _difference(before[board].get(key), after[board].get(key)):
                found[board, key] = expected
    return found  # type: ignore[return-value]


def _shown(rows: Sequence[Columns]) -> list[Columns]:
    return [one for one in rows if one["board_id"] in BOARDS]


def _difference(old: dict[str, object] | None, new: dict[str, object] | None) -> list[tuple[str, Any]]:
    if old is None or new is None:
        return [("task.deleted", {"id": old["id"]})] if old else [("task.created", new)]
    moved = [("task.moved", {"id": new["id"], "fromLane": old["lane"], "toLane": new["lane"]})]
    changed = {name: value for name, value in new.items() if value != old[name]}
    rest = [("task.updated", {"id": new["id"], "changes": changed})]
    return (moved if "lane" in changed else []) + (rest if changed.keys() - {"lane"} else [])


def by_task(found: dict[str, Meaning]) -> dict[tuple[str, int], list[tuple[str, Any]]]:
    sorted_out = defaultdict(list)
    for board, its_messages in found.items():
        assert not isinstance(its_messages, str), f"{board} is to be read again"
        for message in its_messages:
            decoded = json.loads(message.json)
            sorted_out[board, decoded["data"]["id"]].append((decoded["type"], decoded["data"]))
    return dict(sorted_out)


@settings(max_examples=150)
@given(histories(), st.randoms(use_true_random=False))
def test_any_transaction_in_whatever_order_is_the_difference_that_it_made(
    history: History, chance: random.Random
) -> None:
    shuffled = images(*history.entries)
    chance.shuffle(shuffled)
    for its_images in (images(*history.entries), shuffled):
        assert by_task(Transaction(10, its_images).messages(BOARDS)) == difference(history)


@settings(max_examples=100)
@given(histories(), st.lists(st.tuples(_changed(None), st.integers(1, 3))), st.randoms(use_true_random=False))
def test_images_that_came_as_often_as_they_left_make_no_difference(
    history: History, passing: list[tuple[Columns, int]], chance: random.Random
) -> None:
    noise = [entry for one, times in passing for _ in range(times) for entry in (inserted(one), deleted(one))]
    entries = [*history.entries, *noise]
    chance.shuffle(entries)
    assert by_task(messages(entries)) == difference(history)


@settings(max_examples=100)
@given(histories(), st.integers(0, 40), st.randoms(use_true_random=False))
def test_a_large_transaction_that_is_read_row_by_row_and_in_pieces_is_the_same(
    history: History, cut: int, chance: random.Random
) -> None:
    """As a session reads it: of a row's images, those that did not cancel out are kept until the next piece."""
    shuffled = images(*history.entries)
    chance.shuffle(shuffled)
    in_one = cancelled(shuffled)
    in_two = cancelled([*cancelled(shuffled[:cut]), *shuffled[cut:]])
    assert _counted(in_two) == _counted(in_one)
    by_row = defaultdict(list)
    for image in in_one:
        by_row[image.key].append(image)
    parts = [by_task(Transaction(10, its_images).messages(BOARDS)) for its_images in by_row.values()]
    assert {task: found for part in parts for task, found in part.items()} == difference(history)


def _counted(found: Sequence[Image]) -> Counter[object]:
    return Counter((image.key, image.board, image.sign, *map(bytes, image.columns.values())) for image in found)


# What it costs

MANY: Final = 20_000


def _there_and_back(versions: list[Columns]) -> list[Entry]:
    steps = list(map(updated, versions, versions[1:]))
    return [*steps, *map(updated, versions[:0:-1], versions[-2::-1])]


@pytest.mark.parametrize(
    "entries",
    [
        lambda: [entry for _ in range(MANY) for entry in (inserted(row()), deleted(row()))],
        lambda: [inserted(row()) for _ in range(MANY)] + [deleted(row()) for _ in range(MANY)],
        lambda: _there_and_back([row(hours=hours) for hours in range(MANY)]),
        lambda: _there_and_back([row(key) for key in range(MANY)]),
    ],
    ids=["one image in turn", "one image many times", "one row", "one row under many keys"],
)
def test_work_is_linear_in_the_entries(entries: Callable[[], list[Entry]]) -> None:
    """Forty thousand entries that cancel out cost a fraction of a second of CPU; their square would be minutes."""
    moved = images(*entries())
    began = time.thread_time()
    assert Transaction(10, moved).messages(BOARDS) == {}
    assert time.thread_time() - began < 2


def test_of_boards_that_nobody_follows_nothing_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[protocol.Row] = []
    create = protocol.task_created

    def noted(task: protocol.Row) -> Message:
        encoded.append(task)
        return create(task)

    monkeypatch.setattr(protocol, "task_created", noted)
    assert said(inserted(row(1, "c")), inserted(row(2)), boards={"b"}).keys() == {"b"}
    assert len(encoded) == 1
