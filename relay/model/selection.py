"""Selections: some lanes of a board, some columns of its tasks, some of the tasks alone. Pure.

A subscriber of a selection is sent what a subscriber of a board would be sent that has nothing else: a task that
leaves the selected lanes is deleted, and one that enters them is created.

Rules:
- The key, the board and the lane of a task are in every selection.
- A selection of a board has a name, which no board can have: behind the board's comes U+0000. So whatever is known of
  boards by name holds for selections too, such as cursors, which are good for one selection alone.
- The messages of a selection are made of those of the board, and of what these carry beside: the lane that a task is
  or was in, and of a task that changed its lane, all of it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import msgspec

from relay.model import messages
from relay.model.messages import Meaning, Message, Row

_ALWAYS: Final = frozenset({"id", "boardId", "lane"})
_SEPARATOR: Final = "\0"
_KNOWN: Final = 1024
_READERS: Final = 64  # each may take more memory than all else of its selection, and is quickly made

_decode_board: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_lanes: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_tasks: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_row: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
_NO_TASKS: Final = msgspec.Raw(b"[]")


class _Content(msgspec.Struct):
    data: dict[str, msgspec.Raw]


_decode_message: Final = msgspec.json.Decoder(_Content).decode


class _Key(msgspec.Struct):
    id: msgspec.Raw


class _Keyed(msgspec.Struct):
    data: _Key


_decode_key: Final = msgspec.json.Decoder(_Key).decode
_decode_keyed: Final = msgspec.json.Decoder(_Keyed).decode


class Whole:
    """The data of a whole board, taken apart once for all selections of it, and only as far as these need."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @cached_property
    def board(self) -> Mapping[str, msgspec.Raw]:
        """The keys of the data."""
        return _decode_board(self._data)

    @cached_property
    def lanes(self) -> Mapping[str, msgspec.Raw]:
        """The tasks of each lane."""
        return _decode_lanes(self.board["lanes"])

    def of(self, ids: Iterable[str]) -> dict[str, list[msgspec.Raw]]:
        """Return the tasks that have these ids, by lane and in their order."""
        chosen: dict[str, list[msgspec.Raw]] = {lane: [] for lane in self.lanes}
        for _, lane, task in sorted(place for each in ids for place in self._places.get(each, ())):
            chosen[lane].append(task)
        return chosen

    @cached_property
    def _places(self) -> Mapping[str, list[tuple[int, str, msgspec.Raw]]]:
        """Where the tasks with each id are, how manieth in which lane."""
        places: defaultdict[str, list[tuple[int, str, msgspec.Raw]]] = defaultdict(list)
        for lane, tasks in self.lanes.items():
            for number, task in enumerate(_split(tasks)):
                places[messages.text_of(_decode_key(task).id)].append((number, lane, task))
        return places


class _Unknown(Exception):
    """A task enters the selection, and it was too large to come along."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which lanes, by the names under which a `board.sync` lists them, which columns, and which tasks, by their ids.

    None is all. An id that is a number is meant by its digits.
    """

    lanes: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    tasks: frozenset[str] | None = None

    def of(self, board: str) -> str:
        """Name the selection of a board."""
        if self == ALL:
            return board
        chosen = [_sorted(each) for each in (self.lanes, self.columns, self.tasks)]
        return board + _SEPARATOR + json.dumps(chosen, ensure_ascii=False)

    def data(self, whole: Whole) -> bytes:
        """Select of a whole board: the data of its `board.sync`."""
        board: dict[str, Any] = dict(whole.board)
        lanes = whole.lanes
        tasks = lanes if self.tasks is None else whole.of(self.tasks)
        board["lanes"] = {lane: self._listed(its) for lane, its in tasks.items() if self._has(lane)}
        if self.lanes is not None and "laneNames" in board:
            names = _decode_lanes(board["laneNames"])
            board["laneNames"] = {lane: name for lane, name in names.items() if self._has(lane)}
            board["laneOrder"] = [lane for lane in names if self._has(lane)]
        elif self.lanes is not None:
            board["lanes"] = board["lanes"] | dict.fromkeys(sorted(self.lanes - lanes.keys()), _NO_TASKS)
        if "orderBy" in board and not self._orders(board["orderBy"]):
            del board["orderBy"]
        return _encode(board)

    def messages(self, found: Sequence[Message]) -> Meaning:
        """Select of what changed on the board; return a reason if that does not say it."""
        try:
            return [message for one in found for message in self._of_one(one)]
        except _Unknown:
            return "row_unreadable"

    def _of_one(self, message: Message) -> Iterator[Message]:
        if self.tasks is not None and messages.text_of(_decode_keyed(message.json).data.id) not in self.tasks:
            return
        match message.type:
            case "task.created":
                yield from self._created(_decode_message(message.json).data)
            case "task.moved":
                yield from self._moved(message)
            case "task.updated" if all(self._had(message)):
                yield from self._updated(message)
            case "task.deleted" if all(self._had(message)):
                yield message

    def _created(self, task: Row) -> Iterator[Message]:
        if self._has(messages.text_of(task["lane"])):
            yield messages.task_created(self._row(task))

    def _moved(self, message: Message) -> Iterator[Message]:
        was_in, is_in = self._had(message)
        if was_in and is_in:
            yield message
        elif was_in:
            yield messages.task_deleted(_decode_message(message.json).data["id"])
        elif is_in:
            if message.task is None:
                raise _Unknown
            yield from self._created(message.task)

    def _updated(self, message: Message) -> Iterator[Message]:
        data = _decode_message(message.json).data
        changes = _decode_row(data["changes"])
        selected = self._row(changes)
        # That the lane changed is said by the message before; here it comes beside something else.
        if selected.keys() - {"lane"}:
            yield message if len(selected) == len(changes) else messages.task_updated(data["id"], selected)

    def _listed(self, tasks: msgspec.Raw | list[msgspec.Raw]) -> Any:
        if self.columns is None:
            return tasks
        return _reader(self.columns | _ALWAYS)(msgspec.Raw(_encode(tasks)) if isinstance(tasks, list) else tasks)

    def _row(self, row: Row) -> Row:
        if self.columns is None:
            return row
        return _only(self.columns | _ALWAYS, row)

    def _has(self, lane: str) -> bool:
        return self.lanes is None or lane in self.lanes

    def _had(self, message: Message) -> tuple[bool, bool]:
        """Tell whether the task was in one of the lanes before, and whether it is after."""
        if self.lanes is None:
            return True, True
        assert message.lanes is not None, "a message of a task that is there carries its lanes"
        before, after = message.lanes
        is_in = self._has(messages.text_of(after))
        return is_in if before is after else self._has(messages.text_of(before)), is_in

    def _orders(self, order: msgspec.Raw) -> bool:
        """Tell whether a client of the selection has all columns that tasks are ordered by."""
        keys = {by["key"] for by in msgspec.json.decode(order)}
        return self.columns is None or keys <= self.columns | _ALWAYS


@lru_cache(maxsize=_READERS)
def _reader(columns: frozenset[str]) -> Callable[[msgspec.Raw], Any]:
    """Return what reads these columns of tasks and passes over the others, which are most of the work."""
    keys = {f"column_{number}": column for number, column in enumerate(sorted(columns))}
    fields = [(field, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for field in keys]
    try:
        task = msgspec.defstruct("Task", fields, rename=keys)
    except ValueError:  # a name that no field can have, such as one with a quotation mark
        return lambda tasks: [_only(columns, task) for task in _decode_tasks(tasks)]
    return msgspec.json.Decoder(list[task]).decode  # type: ignore[valid-type]


def _only(columns: frozenset[str], row: Row) -> Row:
    return {key: value for key, value in row.items() if key in columns}


ALL: Final = Selection()


def selected(
    lanes: Iterable[str] | None = None,
    columns: Iterable[str] | None = None,
    tasks: Iterable[str | int] | None = None,
) -> Selection:
    """Select lanes, columns and tasks."""
    return Selection(*(None if each is None else frozenset(map(str, each)) for each in (lanes, columns, tasks)))


def board_of(name: str) -> str:
    """Return the board of a selection, or the board that is named."""
    return name.partition(_SEPARATOR)[0]


@lru_cache(maxsize=_KNOWN)
def selection_of(name: str) -> Selection:
    """Return the selection that is named; of a board, all."""
    _, named, text = name.partition(_SEPARATOR)
    if not named:
        return ALL
    return selected(*json.loads(text))


def is_selection(name: str) -> bool:
    """Tell whether a name is that of a selection, and not of a whole board."""
    return _SEPARATOR in name


def _sorted(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)
