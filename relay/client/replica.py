"""The Python client's copy of one board, and the changes that the program has not read yet. Pure.

Rules:
- Messages are applied together or not at all, so a board always equals the table at some moment.
- Tasks are never changed in place: a change makes a new dict, so a program can keep the old one.
- A message that does not fit raises `Misfit`, and changes nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from relay.order import OrderKey, arranged

Task = dict[str, Any]
"""A row as the relay sends it: camelCase keys, JSON values. Integers keep every digit."""

TaskId = str | int | float
"""An id as in the messages: "1" and 1 are two tasks."""

BACKLOG_CHANGES: Final = 10_000
"""Maximum number of changes that wait for the program, in addition to the first waiting batch."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change, which the board already contains."""

    type: str
    """`task.created`, `task.updated`, `task.moved`, `task.deleted`, or `board.sync`: the board was replaced."""
    id: TaskId | None = None
    """The task's id; None if the whole board was replaced."""
    task: Task | None = None
    """The task after it; None if it was deleted."""
    before: Task | None = None
    """The task before it; None if it was created."""
    changes: Task | None = None
    """The changed columns of a `task.updated`."""
    from_lane: Any = None
    to_lane: Any = None
    reason: str | None = None
    """The reason for a `board.sync` that was not requested; see docs/clients.md."""
    tasks: Mapping[TaskId, Task] | None = None
    """The board after a `board.sync`, which the next changes apply to."""
    batch: int | None = None
    """The same number for all changes that became visible together; None from a server without cursors."""


def parse(text: str | bytes) -> dict[str, Any] | None:
    """Parse a message; return None for anything else: no JSON, no object, no type."""
    try:
        try:
            message = json.loads(text)
        except json.JSONDecodeError:
            return None
        except ValueError:  # an integer too long for int(), or not UTF-8, which fails again
            message = json.loads(text, parse_int=_long_integer)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None


def _long_integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


def lane_name(lane: object) -> str:
    """Return the key under which a lane is listed: a string itself, null or a number as JSON."""
    return lane if isinstance(lane, str) else json.dumps(lane, default=str)


class Misfit(Exception):
    """A message cannot be applied to the board. The text says what was found."""

    def __init__(self, found: str = "a message of another shape than expected") -> None:
        super().__init__(found)


_SHARED: Final = " (ids must differ across all watched tables: see relay check)"


_Held = Callable[[Any], Task | None]


class Replica:
    """The tasks of one board, by id and by lane. A method that raises Misfit has changed nothing."""

    def __init__(self) -> None:
        self.tasks: dict[TaskId, Task] = {}
        self.lane_names: dict[str, str | None] | None = None
        self._order: tuple[OrderKey, ...] | None = None
        self._lanes: dict[str, dict[TaskId, Task]] = {}
        self._shown: dict[str, list[Task]] = {}

    @property
    def lanes(self) -> dict[str, list[Task]]:
        """Each lane's tasks in order. The list of an unchanged lane stays the same object."""
        for lane, tasks in self._lanes.items():
            if lane not in self._shown:
                found = list(tasks.values())
                self._shown[lane] = found if self._order is None else arranged(found, self._order, dict.get)
        return {lane: self._shown[lane] for lane in self._lanes}

    def replace(self, data: object) -> None:
        """Replace the board, given the data of a `board.sync`."""
        tasks: dict[TaskId, Task] = {}
        lanes: dict[str, dict[TaskId, Task]] = {}
        for lane, listed in _object(_object(data).get("lanes")).items():
            if not isinstance(listed, list):
                raise Misfit
            its = lanes[lane] = {}
            for each in listed:
                task = _object(each)
                name = _id(task)
                if name in tasks:
                    raise Misfit(f"two tasks with the id {json.dumps(name)}{_SHARED}")
                its[name] = tasks[name] = task if lane_name(task.get("lane")) == lane else task | {"lane": lane}
        self.tasks, self._lanes, self._shown = tasks, lanes, {}
        self.lane_names = _names(_object(data).get("laneNames"))
        self._order = _order(_object(data).get("orderBy"))

    def apply(self, messages: Iterable[object], batch: int | None = None) -> list[Change]:
        """Apply messages together, and return the changes."""
        staged: dict[TaskId, Task | None] = {}

        def held(name: TaskId) -> Task | None:
            return staged[name] if name in staged else self.tasks.get(name)

        changes = []
        for each in messages:
            message = _object(each)
            step = _STEPS.get(_text(message.get("type")))
            if step is None:
                continue  # a newer relay's
            change = replace(step(_object(message.get("data")), held), batch=batch)
            assert change.id is not None
            staged[change.id] = change.task
            changes.append(change)
        for change in changes:
            self._commit(change)
        return changes

    def _commit(self, change: Change) -> None:
        name, before, task = change.id, change.before, change.task
        assert name is not None
        leaves = None if before is None else lane_name(before.get("lane"))
        enters = None if task is None else lane_name(task.get("lane"))
        if leaves is not None and leaves != enters:
            del self._lane(leaves)[name]
        if task is None or enters is None:
            del self.tasks[name]
        else:
            self.tasks[name] = self._lane(enters)[name] = task

    def _lane(self, lane: str) -> dict[TaskId, Task]:
        self._shown.pop(lane, None)
        return self._lanes.setdefault(lane, {})


def _names(value: object) -> dict[str, str | None] | None:
    return (
        None
        if value is None
        else {lane: None if name is None else _text(name) for lane, name in _object(value).items()}
    )


def _order(value: object) -> tuple[OrderKey, ...] | None:
    if value is None:
        return None  # tasks stay in the order in which they come
    if not isinstance(value, list):
        raise Misfit
    return tuple(_order_key(_object(each)) for each in value)


def _order_key(by: Task) -> OrderKey:
    values = by.get("values")
    if values is not None and not isinstance(values, list):
        raise Misfit
    return OrderKey(
        _text(by.get("key")),
        by.get("descending") is True,
        by.get("nullsFirst") is True,
        None if values is None else tuple(map(_text, values)),
    )


def _object(value: object) -> Task:
    if not isinstance(value, dict):
        raise Misfit
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Misfit
    return value


def _id(data: Task) -> TaskId:
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise Misfit
    return name


def _known(data: Task, held: _Held) -> tuple[TaskId, Task]:
    name = _id(data)
    before = held(name)
    if before is None:
        raise Misfit(f"a change of the task {json.dumps(name)}, which is not there")
    return name, before


def _created(data: Task, held: _Held) -> Change:
    name = _id(data)
    if held(name) is not None:
        raise Misfit(f"a second task with the id {json.dumps(name)}{_SHARED}")
    return Change("task.created", name, task=data)


def _updated(data: Task, held: _Held) -> Change:
    name, before = _known(data, held)
    changes = _object(data.get("changes"))
    if changes.get("id", name) != name:
        raise Misfit
    return Change("task.updated", name, task=before | changes, before=before, changes=changes)


def _moved(data: Task, held: _Held) -> Change:
    name, before = _known(data, held)
    if "toLane" not in data:
        raise Misfit
    lane = data["toLane"]
    return Change(
        "task.moved",
        name,
        task=before | {"lane": lane},
        before=before,
        from_lane=data.get("fromLane"),
        to_lane=lane,
    )


def _deleted(data: Task, held: _Held) -> Change:
    name, before = _known(data, held)
    return Change("task.deleted", name, before=before)


_STEPS: Final[Mapping[str, Callable[[Task, _Held], Change]]] = {
    "task.created": _created,
    "task.updated": _updated,
    "task.moved": _moved,
    "task.deleted": _deleted,
}


class Backlog:
    """Changes that the program has not read yet. If there are too many, one `board.sync` replaces them.

    A waiting `board.sync` shows the board as it is when the program reads it, so nothing is kept behind it.
    """

    def __init__(self, limit: int = BACKLOG_CHANGES) -> None:
        self._limit = limit
        self._waiting: deque[Change] = deque()

    def put(self, changes: Sequence[Change]) -> None:
        """Keep changes that the board now contains. A `board.sync` must come alone."""
        if self._waiting and self._waiting[-1].type == "board.sync":
            return
        if self._waiting and len(self._waiting) + len(changes) > self._limit:
            self._waiting = deque([Change("board.sync", reason="fell_behind")])
        else:
            self._waiting += changes

    def get(self) -> Change | None:
        """Return the next change; None if the program has read them all."""
        return self._waiting.popleft() if self._waiting else None
