"""Rows and their changes, short to write; and a strict client, to whom the messages of a board mean a board."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from relay.changes import Change, Side, Transaction, Version, Watch
from relay.protocol import Message, Row

WATCH = Watch(1, "public.tasks", "id", "board_id", "lane", frozenset())

BOARDS = frozenset({"b", "c"})


def side(place: int, *, key: object = 1, board: str | None = "b", part: int = 1, **columns: object) -> Side:
    """Return the version of a row that stands at this place."""
    image = {"id": key, "board_id": board, "lane": "todo", **columns}
    return Side(task(WATCH, json.dumps(image)), board, Version(part, f"(0,{place})"))


def task(watch: Watch, image: str) -> Row:
    """Return what clients see of a row."""
    return watch.task(watch.columns(image))


def inserted(new: Side, *, depth: int = 1) -> Change:
    return Change(WATCH.id, None, new, depth=depth)


def updated(old: Side, new: Side, *, here: bool = False, depth: int = 1) -> Change:
    return Change(WATCH.id, old, new, here, depth)


def deleted(old: Side, *, here: bool = False, depth: int = 1) -> Change:
    return Change(WATCH.id, old, None, here, depth)


def said(*changes: Change, boards: Iterable[str | None] = BOARDS) -> dict[str, list[tuple[str, Any]]]:
    """Return what each board's subscribers are told of one transaction: type and data of every message."""
    found = Transaction(10, list(changes)).messages(frozenset(boards))
    return {
        board: [_type_and_data(message) for message in its_messages]
        for board, its_messages in found.items()
        if its_messages is not None
    }


def untold(*changes: Change) -> set[str]:
    """Return the boards that must be read again after one transaction."""
    found = Transaction(10, list(changes)).messages(BOARDS)
    return {board for board, its_messages in found.items() if its_messages is None}


def _type_and_data(message: Message) -> tuple[str, Any]:
    decoded = json.loads(message.json)
    assert decoded.keys() == {"type", "data"}
    assert decoded["type"] == message.type
    return decoded["type"], decoded["data"]


Tasks = dict[object, dict[str, object]]
"""The tasks of a board by their id."""


def applied(tasks: Tasks, told: Sequence[tuple[str, Any]]) -> Tasks:
    """Apply a board's messages as a client does, but take none that does not fit what is held."""
    tasks = {key: dict(task) for key, task in tasks.items()}
    for kind, data in told:
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


def all_applied(boards: Mapping[str, Tasks], *changes: Change) -> dict[str, Tasks]:
    """Return the boards that strict clients hold once they were told of one transaction."""
    told = said(*changes, boards=boards)
    return {board: applied(tasks, told.get(board, [])) for board, tasks in boards.items()}


def held(*sides: Side) -> dict[str, Tasks]:
    """Return the boards on which exactly these rows are."""
    boards: dict[str, Tasks] = {board: {} for board in BOARDS}
    for each in sides:
        if each.board is not None:
            task = {name: msgspec.json.decode(value) for name, value in each.task.items()}
            boards[each.board][task["id"]] = task
    return boards
