"""Selections: parts of a board, by lanes, columns and tasks. Pure.

To its subscribers, a selection is a board that has nothing else: a task that leaves the selected lanes is deleted,
and one that enters them is created.

Rules:
- Every selection includes `id`, `boardId` and `lane`.
- A selection has a name that no board can have: the board's name, U+0000, and the selection. So whatever works with
  boards by name works with selections too: a cursor, for example, is valid for one selection only.
- The messages of a selection are derived from those of the board, which carry the lanes of the task for this purpose,
  and the whole task if its lane changed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import msgspec

from relay.model import messages
from relay.model.messages import Meaning, Message, Row

_ALWAYS: Final = frozenset({"id", "boardId", "lane"})
_SEPARATOR: Final = "\0"
_KNOWN: Final = 1024
_READERS: Final = 64  # a reader may take more memory than the rest of its selection, and is quickly made

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
    """The data of a whole board, decoded once for all its selections, and only as far as they need."""

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
        """Return the tasks with these ids, by lane and in their order."""
        chosen: dict[str, list[msgspec.Raw]] = {lane: [] for lane in self.lanes}
        for _, lane, task in sorted(place for each in ids for place in self._places.get(each, ())):
            chosen[lane].append(task)
        return chosen

    @cached_property
    def _places(self) -> Mapping[str, list[tuple[int, str, msgspec.Raw]]]:
        """The tasks of each id, with their position and lane."""
        places: defaultdict[str, list[tuple[int, str, msgspec.Raw]]] = defaultdict(list)
        for lane, tasks in self.lanes.items():
            for number, task in enumerate(_split(tasks)):
                places[messages.text_of(_decode_key(task).id)].append((number, lane, task))
        return places


class Changed:
    """What changed on a board, taken apart once for all selections of it, and only if these need that."""

    def __init__(self, found: list[Message]) -> None:
        self.messages = found

    def of(self, ids: frozenset[str]) -> list[Message]:
        """Return the messages about the tasks with these ids, in their order."""
        fewer: Collection[str] = min(ids, self._places, key=len)
        places = (place for each in fewer if each in ids for place in self._places.get(each, ()))
        return [self.messages[place] for place in sorted(places)]

    @cached_property
    def _places(self) -> Mapping[str, list[int]]:
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, message in enumerate(self.messages):
            places[messages.text_of(_decode_keyed(message.json).data.id)].append(place)
        return places


class _Unknown(Exception):
    """A task entered the selection, but its message does not carry it, because it was too large."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The lanes, by their keys in `board.sync`, the columns and the tasks, by their ids as text. None means all."""

    lanes: frozenset[str] | None = None
    columns: frozenset[str] | None = None
    tasks: frozenset[str] | None = None

    def of(self, board: str) -> str:
        """Return the name of this selection of a board."""
        if self == ALL:
            return board
        chosen = [_sorted(each) for each in (self.lanes, self.columns, self.tasks)]
        return board + _SEPARATOR + json.dumps(chosen, ensure_ascii=False)

    def data(self, whole: Whole) -> bytes:
        """Return the data of the selection's `board.sync`."""
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

    def messages(self, changed: Changed) -> Meaning:
        """Derive the selection's messages from the board's; if they lack something, return a reason to read again."""
        found = changed.messages if self.tasks is None else changed.of(self.tasks)
        try:
            return [message for one in found for message in self._of_one(one)]
        except _Unknown:
            return "row_unreadable"

    def _of_one(self, message: Message) -> Iterator[Message]:
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
        # The message before has announced the change of lane, so the lane alone is no reason for another.
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
        """Return whether the task was in one of the lanes before, and whether it is after."""
        if self.lanes is None:
            return True, True
        assert message.lanes is not None, "messages about existing tasks carry their lanes"
        before, after = message.lanes
        is_in = self._has(messages.text_of(after))
        return is_in if before is after else self._has(messages.text_of(before)), is_in

    def _orders(self, order: msgspec.Raw) -> bool:
        """Return whether the selection has all columns that tasks are ordered by."""
        keys = {by["key"] for by in msgspec.json.decode(order)}
        return self.columns is None or keys <= self.columns | _ALWAYS


@lru_cache(maxsize=_READERS)
def _reader(columns: frozenset[str]) -> Callable[[msgspec.Raw], Any]:
    """Return a decoder of these columns of tasks. It skips the others, which are most of the work."""
    keys = {f"column_{number}": column for number, column in enumerate(sorted(columns))}
    fields = [(field, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for field in keys]
    try:
        task = msgspec.defstruct("Task", fields, rename=keys)
    except ValueError:  # a name that msgspec does not allow, such as one with a quotation mark
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
    """Make a selection; None means all."""
    return Selection(*(None if each is None else frozenset(map(str, each)) for each in (lanes, columns, tasks)))


def board_of(name: str) -> str:
    """Return the board that a name of a board or selection belongs to."""
    return name.partition(_SEPARATOR)[0]


@lru_cache(maxsize=_KNOWN)
def selection_of(name: str) -> Selection:
    """Return the selection of this name; for a board, ALL."""
    _, named, text = name.partition(_SEPARATOR)
    if not named:
        return ALL
    return selected(*json.loads(text))


def is_selection(name: str) -> bool:
    """Return whether a name is that of a selection, not of a whole board."""
    return _SEPARATOR in name


def _sorted(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)
