"""Rows and the journal's entries about them, short to write; and a strict client, to whom messages mean a board."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from relay.model.messages import Meaning, Message, Row
from relay.model.transaction import Image, Transaction
from relay.postgres.decode import Entry, Watch

WATCH = Watch(1, "public.tasks", "id", "board_id", "lane", frozenset())

BOARDS = frozenset({"b", "c"})

Columns = Mapping[str, Any]
"""A row of the table."""


def row(key: object = 1, board: str | None = "b", **columns: object) -> Columns:
    """Return a row."""
    return {"id": key, "board_id": board, "lane": "todo", **columns}


def task(watch: Watch, image: str) -> Row:
    """Return what clients see of a row."""
    return watch.task(watch.columns(image), "b")


def inserted(new: Columns) -> Entry:
    return _entry(None, new)


def updated(old: Columns, new: Columns) -> Entry:
    return _entry(old, new)


def deleted(old: Columns) -> Entry:
    return _entry(old, None)


def _entry(old: Columns | None, new: Columns | None) -> Entry:
    key, old_key = (None if one is None else str(one["id"]) for one in (new, old))
    return Entry(
        xid=10,
        watch=WATCH.id,
        op="R",
        key=key or old_key or "",
        old_key=old_key if new is not None and key != old_key else None,
        old_board=None if old is None else old["board_id"],
        new_board=None if new is None else new["board_id"],
        old_row=None if old is None else json.dumps(old),
        new_row=None if new is None else json.dumps(new),
        reason=None,
    )


def images(*entries: Entry, boards: Iterable[str | None] = BOARDS) -> list[Image]:
    """Return the images that entries of one transaction move on or off the boards."""
    return [image for entry in entries for image in entry.images(WATCH, frozenset(boards))[0]]


def messages(entries: Iterable[Entry], boards: Iterable[str | None] = BOARDS) -> dict[str, Meaning]:
    """Return the messages of one transaction to each board, or why the board must be read again."""
    boards = frozenset(boards)
    return Transaction(10, images(*entries, boards=boards)).messages(boards)


def said(*entries: Entry, boards: Iterable[str | None] = BOARDS) -> dict[str, list[tuple[str, Any]]]:
    """Return the type and data of every message of one transaction to each board."""
    found = {}
    for board, its_messages in messages(entries, boards).items():
        assert not isinstance(its_messages, str), f"{board} is to be read again"
        found[board] = [_type_and_data(message) for message in its_messages]
    return found


def _type_and_data(message: Message) -> tuple[str, Any]:
    decoded = json.loads(message.json)
    assert decoded.keys() == {"type", "data"}
    assert decoded["type"] == message.type
    return decoded["type"], decoded["data"]


Tasks = dict[object, dict[str, object]]
"""The tasks of a board by their id."""


def applied(tasks: Tasks, received: Sequence[tuple[str, Any]]) -> Tasks:
    """Apply a board's messages as a client does, but take none that does not fit what is held."""
    tasks = {key: dict(task) for key, task in tasks.items()}
    for kind, data in received:
        key = data["id"]
        match kind:
            case "task.created":
                assert key not in tasks, f"{key} appears, which is there"
                tasks[key] = data
            case "task.updated":
                assert key in tasks, f"{key} is updated, which is not there"
                tasks[key] |= data["changes"]
            case "task.moved":
                assert tasks.get(key, {}).get("lane") == data["fromLane"], f"{key} moves from where it is not"
                tasks[key]["lane"] = data["toLane"]
            case "task.deleted":
                assert key in tasks, f"{key} leaves, which is not there"
                del tasks[key]
            case _:
                raise AssertionError(kind)
    return tasks


def held(*rows: Columns) -> dict[str, Tasks]:
    """Return the boards on which exactly these rows are."""
    boards: dict[str, Tasks] = {board: {} for board in BOARDS}
    for each in rows:
        if each["board_id"] is not None:
            task = {"boardId" if name == "board_id" else name: value for name, value in each.items()}
            boards[each["board_id"]][task["id"]] = task
    return boards
