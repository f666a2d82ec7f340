"""What becomes of a transaction's changes: the messages of each board, in the order of the rows' versions."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.changes import Change, Side, Transaction, UnreadableRow, Version, Watch, WatchOutdated
from tests.unit.tasks import (
    BOARDS,
    WATCH,
    all_applied,
    applied,
    deleted,
    held,
    inserted,
    said,
    side,
    task,
    untold,
    updated,
)
from tests.unit.true_histories import History, histories

# What each change is to clients


def test_a_row_that_appears_is_told_whole() -> None:
    assert said(inserted(side(1, estimated_hours=1.5, done_at=None))) == {
        "b": [
            (
                "task.created",
                {"id": 1, "boardId": "b", "lane": "todo", "estimatedHours": 1.5, "doneAt": None},
            )
        ]
    }


def test_of_an_update_only_what_changed_is_told() -> None:
    change = updated(side(1, title="x", estimated_hours=1), side(2, title="x", estimated_hours=2))
    assert said(change) == {"b": [("task.updated", {"id": 1, "changes": {"estimatedHours": 2}})]}


def test_a_change_to_null_and_one_from_null_are_changes() -> None:
    change = updated(side(1, title="x", notes=None), side(2, title=None, notes=""))
    assert said(change) == {"b": [("task.updated", {"id": 1, "changes": {"title": None, "notes": ""}})]}


def test_a_change_of_lane_alone_is_a_move() -> None:
    assert said(updated(side(1), side(2, lane="done"))) == {
        "b": [("task.moved", {"id": 1, "fromLane": "todo", "toLane": "done"})]
    }


def test_a_change_of_lane_and_more_is_a_move_and_then_an_update_with_the_lane() -> None:
    assert said(updated(side(1, title="x"), side(2, lane="done", title="y"))) == {
        "b": [
            ("task.moved", {"id": 1, "fromLane": "todo", "toLane": "done"}),
            ("task.updated", {"id": 1, "changes": {"lane": "done", "title": "y"}}),
        ]
    }


@pytest.mark.parametrize(("old", "new"), [(None, "done"), ("done", None)])
def test_a_lane_may_be_null(old: str | None, new: str | None) -> None:
    assert said(updated(side(1, lane=old), side(2, lane=new))) == {
        "b": [("task.moved", {"id": 1, "fromLane": old, "toLane": new})]
    }


def test_an_update_that_changes_nothing_visible_is_not_told() -> None:
    assert said(updated(side(1, title="x"), side(2, title="x"))) == {}


def test_a_row_that_leaves_is_told_by_its_id() -> None:
    assert said(deleted(side(1))) == {"b": [("task.deleted", {"id": 1})]}


def test_a_row_that_moves_to_another_board_leaves_one_and_appears_on_the_other() -> None:
    assert said(updated(side(1, title="x"), side(2, board="c", title="y"))) == {
        "b": [("task.deleted", {"id": 1})],
        "c": [("task.created", {"id": 1, "boardId": "c", "lane": "todo", "title": "y"})],
    }


def test_a_change_of_key_is_one_task_that_leaves_and_another_that_appears() -> None:
    assert said(updated(side(1), side(2, key=7))) == {
        "b": [("task.deleted", {"id": 1}), ("task.created", {"id": 7, "boardId": "b", "lane": "todo"})]
    }


def test_a_change_of_key_and_board_is_told_to_both_boards() -> None:
    assert said(updated(side(1), side(2, key=7, board="c"))) == {
        "b": [("task.deleted", {"id": 1})],
        "c": [("task.created", {"id": 7, "boardId": "c", "lane": "todo"})],
    }


@pytest.mark.parametrize(
    "change",
    [
        inserted(side(1, board=None)),
        updated(side(1, board=None, title="x"), side(2, board=None, title="y")),
        deleted(side(1, board=None)),
    ],
)
def test_a_row_without_a_board_is_told_to_nobody(change: Change) -> None:
    assert said(change, boards=[*BOARDS, None]) == {}


def test_a_row_that_gets_a_board_appears_there() -> None:
    assert said(updated(side(1, board=None), side(2))) == {
        "b": [("task.created", {"id": 1, "boardId": "b", "lane": "todo"})]
    }


def test_a_row_that_loses_its_board_leaves_it() -> None:
    assert said(updated(side(1), side(2, board=None))) == {"b": [("task.deleted", {"id": 1})]}


@pytest.mark.parametrize(
    "change",
    [
        inserted(side(1)),
        deleted(side(1)),
        updated(side(1), side(2, lane="done")),
        updated(side(1), side(2, key=7)),
        updated(side(1), side(2, board=None)),
    ],
)
def test_a_board_that_nobody_follows_is_told_nothing(change: Change) -> None:
    assert said(change, boards=["c"]) == {}


def test_of_a_row_that_moves_between_boards_those_who_are_followed_are_told() -> None:
    change = updated(side(1), side(2, board="c"))
    assert [list(said(change, boards=[board])) for board in ("b", "c", "d")] == [["b"], ["c"], []]


def test_every_version_of_a_row_is_told() -> None:
    versions = [side(place, hours=place) for place in range(1, 6)]
    told = said(*map(updated, versions, versions[1:]))
    assert [data["changes"]["hours"] for _, data in told["b"]] == [2, 3, 4, 5]


def test_changes_of_different_rows_stay_in_the_journals_order() -> None:
    told = said(*(inserted(side(place, key=key)) for place, key in enumerate([5, 3, 9, 1])))
    assert [data["id"] for _, data in told["b"]] == [5, 3, 9, 1]


# How a row becomes a task


def keys(watch: Watch, *columns: str) -> dict[str, object]:
    """Return the task that a row becomes whose every column holds its own name."""
    row = task(watch, json.dumps({column: column for column in columns}))
    return {key: msgspec.json.decode(value) for key, value in row.items()}


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
    def at(place: int, n: str) -> Side:
        image = f'{{"id":1,"board_id":"b","lane":"todo","n":{n}}}'
        return Side(task(WATCH, image), "b", Version(1, f"(0,{place})"))

    changes = [inserted(at(1, number)), updated(at(1, "1"), at(2, number))]
    told = [Transaction(10, [change]).messages(BOARDS)["b"] or [] for change in changes]
    assert [message.json.decode() for [message] in told] == [
        f'{{"type":"task.created","data":{{"id":1,"boardId":"b","lane":"todo","n":{number}}}}}',
        f'{{"type":"task.updated","data":{{"id":1,"changes":{{"n":{number}}}}}}}',
    ]


def test_a_number_that_gains_a_digit_has_changed() -> None:
    old, new = (
        Side(task(WATCH, f'{{"id":1,"board_id":"b","lane":"x","n":{n}}}'), "b", Version(1, n))
        for n in ("1.5", "1.50")
    )
    assert len(said(updated(old, new))["b"]) == 1


@pytest.mark.parametrize("missing", ["id", "board_id", "lane"])
def test_a_row_without_the_columns_that_make_it_a_task_says_that_the_watch_is_outdated(missing: str) -> None:
    row = dict.fromkeys({"id", "board_id", "lane"} - {missing})
    with pytest.raises(WatchOutdated, match=r"public\.tasks.*relay sql watch"):
        task(WATCH, json.dumps(row))


@pytest.mark.parametrize("image", ["", "[]", "{", '{"id":1,"board_id":"b","lane":"x","j":"\\ud800"}', "{} {}"])
def test_a_row_that_is_no_json_object_cannot_be_shown(image: str) -> None:
    with pytest.raises(UnreadableRow, match=r"public\.tasks"):
        task(WATCH, image)


# What a table does not keep together


def test_a_row_deleted_and_inserted_again_leaves_and_appears() -> None:
    told = said(deleted(side(1, lane="todo")), inserted(side(2, lane="done")))
    assert [kind for kind, _ in told["b"]] == ["task.deleted", "task.created"]


def test_a_row_moved_to_another_table_leaves_and_appears() -> None:
    assert said(deleted(side(1, part=1, hours=3)), inserted(side(1, part=2))) == {
        "b": [("task.deleted", {"id": 1}), ("task.created", {"id": 1, "boardId": "b", "lane": "todo"})]
    }


# The order of a row's versions, which nested triggers journal in another


def test_versions_journalled_inside_out_are_put_in_order() -> None:
    v1, v2, v3 = side(1, title="x"), side(2, title="y"), side(3, title="z")
    told = said(updated(v2, v3), updated(v1, v2))
    assert [data["changes"] for _, data in told["b"]] == [{"title": "y"}, {"title": "z"}]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_versions_journalled_in_any_order_are_put_in_order(order: tuple[int, ...]) -> None:
    versions = [side(place, hours=place) for place in range(5)]
    history = list(map(updated, versions, versions[1:]))
    told = said(*(history[place] for place in order))
    assert [data["changes"]["hours"] for _, data in told["b"]] == [1, 2, 3, 4]


def test_a_row_updated_by_the_trigger_of_its_insert_appears_first() -> None:
    told = said(updated(side(1), side(2, lane="done")), inserted(side(1)))
    assert [kind for kind, _ in told["b"]] == ["task.created", "task.moved"]


def test_a_row_deleted_by_the_trigger_of_its_update_leaves_last() -> None:
    told = said(deleted(side(2, lane="done")), updated(side(1), side(2, lane="done")))
    assert [kind for kind, _ in told["b"]] == ["task.moved", "task.deleted"]


def test_a_row_deleted_by_the_trigger_of_its_insert_is_gone() -> None:
    assert all_applied(held(), deleted(side(1)), inserted(side(1))) == held()


def test_a_row_inserted_anew_by_the_trigger_of_its_delete_is_there() -> None:
    assert all_applied(held(side(1)), inserted(side(2, lane="done")), deleted(side(1))) == held(side(2, lane="done"))


def test_a_row_deleted_and_inserted_again_and_again_is_the_last_one() -> None:
    changes = [
        inserted(side(4, lane="done")),
        updated(side(2), side(3)),
        inserted(side(2)),
        deleted(side(1)),
        deleted(side(3)),
    ]
    assert all_applied(held(side(1)), *changes) == held(side(4, lane="done"))


def test_a_row_moved_between_boards_inside_out_ends_on_the_last() -> None:
    there, and_back = side(2, board="c"), side(3, lane="done")
    assert all_applied(held(side(1)), updated(there, and_back), updated(side(1), there)) == held(and_back)


def test_a_key_changed_there_and_back_inside_out_is_the_first_again() -> None:
    there, and_back = side(2, key=2), side(3, lane="done")
    assert all_applied(held(side(1)), updated(there, and_back), updated(side(1), there)) == held(and_back)


def test_the_versions_of_several_rows_are_ordered_each_in_its_places() -> None:
    told = said(
        updated(side(2, hours=2), side(3, hours=3)),
        updated(side(12, key=2, hours=2), side(13, key=2, hours=3)),
        updated(side(1, hours=1), side(2, hours=2)),
        inserted(side(21, key=3)),
        updated(side(11, key=2, hours=1), side(12, key=2, hours=2)),
    )
    assert [(data["id"], data.get("changes", {}).get("hours")) for _, data in told["b"]] == [
        (1, 2),
        (2, 2),
        (1, 3),
        (3, None),
        (2, 3),
    ]


def test_keys_that_all_move_up_by_one_leave_no_task_behind() -> None:
    old = [side(key, key=key, title=str(key)) for key in (1, 2, 3)]
    new = [side(key + 10, key=key + 1, title=str(key)) for key in (1, 2, 3)]
    assert all_applied(held(*old), *map(updated, old, new)) == held(*new)


def test_keys_that_are_swapped_leave_both_tasks() -> None:
    old = [side(1, key=1, title="x"), side(2, key=2, title="y")]
    new = [side(3, key=2, title="x"), side(4, key=1, title="y")]
    assert all_applied(held(*old), *map(updated, old, new)) == held(*new)


def test_of_a_table_rewritten_on_the_way_the_journals_order_stands() -> None:
    told = said(
        updated(side(1, hours=0), side(9, hours=1)),
        updated(side(2, hours=1), side(10, hours=2), here=True),
        updated(side(3, hours=2), side(11, hours=3), here=True),
    )
    assert [data["changes"]["hours"] for _, data in told["b"]] == [1, 2, 3]


def test_of_a_table_rewritten_while_a_row_came_and_went_the_journals_order_stands() -> None:
    changes = [
        deleted(side(1)),
        inserted(side(9)),
        deleted(side(2), here=True),
        inserted(side(10, lane="done")),
    ]
    assert all_applied(held(side(1)), *changes) == held(side(10, lane="done"))


def test_of_a_table_rewritten_before_a_row_left_the_journals_order_stands() -> None:
    changes = [updated(side(1), side(9, lane="done")), deleted(side(2, lane="done"), here=True)]
    assert all_applied(held(side(1)), *changes) == held()


def test_of_a_table_rewritten_after_a_row_appeared_the_journals_order_stands() -> None:
    changes = [inserted(side(9)), updated(side(1), side(2, lane="done"), here=True)]
    assert all_applied(held(), *changes) == held(side(2, lane="done"))


def test_of_a_table_rewritten_so_that_places_are_taken_in_turn_the_journals_order_stands() -> None:
    changes = [updated(side(1), side(2, title="x")), updated(side(2, title="x"), side(1, title="y"))]
    assert all_applied(held(side(1)), *changes) == held(side(1, title="y"))


def test_a_row_that_shared_the_key_of_another_for_a_while_takes_nothing_with_it() -> None:
    there, guest = side(1), side(2, title="guest")
    assert all_applied(held(there), inserted(guest), deleted(guest)) == held(there)


def test_a_version_that_changed_nothing_visible_and_has_no_entry_does_not_break_the_order() -> None:
    first, touched, last = side(2, title="y"), side(3, title="y"), side(4, title="z")
    changes = [updated(touched, last, here=True, depth=2), updated(side(1, title="x"), first)]
    assert all_applied(held(side(1, title="x")), *changes) == held(last)


def test_a_row_touched_without_an_entry_first_is_told_from_there_on() -> None:
    changes = [
        updated(side(2), side(3, title="x"), here=True),
        updated(side(3, title="x"), side(4, title="y"), here=True),
        updated(side(5, title="y"), side(6, title="z"), here=True),
    ]
    assert untold(*changes) == set()
    assert all_applied(held(side(1)), *changes) == held(side(6, title="z"))


def test_gaps_in_statements_that_are_not_nested_are_closed_in_their_order() -> None:
    changes = [updated(side(n), side(n + 1, title="x" * n), here=n > 1) for n in (1, 3, 5, 7)]
    assert all_applied(held(side(1)), *changes) == held(side(8, title="x" * 7))


def test_gaps_among_nested_statements_that_could_be_closed_in_two_ways_are_untold() -> None:
    changes = [
        updated(side(5), side(6, board="c"), here=True, depth=2),
        updated(side(3), side(4), here=True, depth=2),
        updated(side(1), side(2)),
    ]
    assert untold(*changes) == {"b", "c"}
    assert said(*changes) == {}


def test_a_version_from_nowhere_is_untold() -> None:
    assert untold(updated(side(3), side(4), here=True), updated(side(1), side(2))) == {"b"}


def test_a_row_that_came_was_touched_without_an_entry_and_went_is_gone() -> None:
    came, touched = side(1), side(2)
    assert all_applied(held(), inserted(came), deleted(touched, here=True)) == held()


def test_a_row_touched_without_an_entry_then_deleted_and_inserted_anew_by_a_trigger_is_the_new_one_or_untold() -> (
    None
):
    touched, anew = side(2), side(3, lane="done")
    changes = [inserted(anew, depth=2), deleted(touched, here=True)]
    assert untold(*changes) == {"b"} or all_applied(held(side(1)), *changes) == held(anew)


def test_the_order_of_a_row_does_not_hang_on_a_row_of_another_table_with_the_same_id() -> None:
    other = updated(side(1, part=2, board="c", title="x"), side(2, part=2, board="c", title="y"))
    other = replace(other, watch=2)
    told = said(updated(side(2, hours=2), side(3, hours=3)), other, updated(side(1, hours=1), side(2, hours=2)))
    assert [data["changes"]["hours"] for _, data in told["b"]] == [2, 3]


@settings(max_examples=400, deadline=None)
@given(histories())
def test_whatever_triggers_do_in_a_transaction_clients_end_with_the_table(history: History) -> None:
    assert all_applied(history.before, *history.journal) == history.after


@settings(max_examples=600, deadline=None)
@given(histories(touched=True))
def test_whatever_the_journal_lacks_clients_end_with_the_table_or_are_told_to_read_it(history: History) -> None:
    again = untold(*history.journal)
    told = said(*history.journal, boards=history.before)
    for board in history.before.keys() - again:
        assert applied(history.before[board], told.get(board, [])) == history.after[board]


@settings(max_examples=200, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_in_whatever_order_a_transaction_is_journalled_clients_end_with_the_table(
    history: History, order: random.Random
) -> None:
    order.shuffle(history.journal)
    assert all_applied(history.before, *history.journal) == history.after
