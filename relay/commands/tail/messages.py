"""The messages that `relay tail` receives: assembles batches from parts, and reads messages. Pure.

Rules:
- A batch is delivered whole, with the cursor to continue from.
- Values stay the JSON that arrived, so that no digit is lost. Therefore this does not use the client's parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from relay.text import harmless

_NULL: Final = Raw(b"null")


class TailError(Exception):
    """A permanent failure, in one line."""


class Delivery(NamedTuple):
    """Messages that belong together, each as the JSON that arrived."""

    messages: list[bytes]
    cursor: str | None
    """The cursor after these messages."""
    reason: str | None = None
    """The reason for a board that was not requested."""


class _Envelope(msgspec.Struct):
    type: str
    data: Raw = Raw(b"null")
    cursor: str | None = None
    reason: str | None = None


class _Error(msgspec.Struct):
    code: str = "unknown"
    message: str = ""


class Parts:
    """The parts of an unfinished batch on one connection."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def take(self, text: bytes) -> Delivery | None:
        """Return the delivery that this message completes, if any. Raises TailError for errors and bad messages."""
        try:
            envelope = msgspec.json.decode(text, type=_Envelope)
            match envelope.type:
                case "batch":
                    return self._take_part(envelope)
                case "error":
                    error = msgspec.json.decode(envelope.data, type=_Error)
                    raise TailError(harmless(f"the relay refused: {error.message} ({error.code})"))
                case "pong" | "authenticated":
                    return None
        except msgspec.DecodeError:
            raise TailError(f"{harmless(repr(text[:40]))} came: expected a relay's message, so check --url") from None
        self._parts = []
        return Delivery([text], envelope.cursor, envelope.reason)

    def _take_part(self, envelope: _Envelope) -> Delivery | None:
        self._parts += map(bytes, msgspec.json.decode(envelope.data, type=list[Raw]))
        if envelope.cursor is None:
            return None
        whole, self._parts = self._parts, []
        return Delivery(whole, envelope.cursor)


@dataclass(frozen=True)
class Message:
    """A decoded message."""

    json: bytes
    type: str
    task: str | None = None
    """The task's id; None if the message is about a board."""
    lanes: tuple[str, ...] = ()
    """The task's lane, or its old and new lane; empty while unknown."""
    values: Mapping[str, Raw] = field(default_factory=dict)
    """The columns in the message, as JSON, without nulls of a created task."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The number of tasks in each lane of a board."""
    reason: str | None = None


class _Task(msgspec.Struct):
    id: Raw


class _Board(msgspec.Struct):
    lanes: dict[str, list[_Task]]


class Reader:
    """Decodes messages in order, and remembers the lane of each task, which not every message contains."""

    def __init__(self) -> None:
        self._lanes: dict[str, str] = {}

    def read(self, json: bytes) -> Message:
        """Decode the next message. Raises TailError if it is invalid."""
        try:
            envelope = msgspec.json.decode(json, type=_Envelope)
            if envelope.type == "board.sync":
                return self._read_board(json, envelope)
            if envelope.type.startswith("task."):
                return self._read_change(json, envelope)
        except (msgspec.DecodeError, KeyError):
            raise TailError(f"{harmless(repr(json[:40]))} came, which cannot be read: check --url") from None
        return Message(json, envelope.type, values={"data": envelope.data})

    def _read_board(self, json: bytes, envelope: _Envelope) -> Message:
        board = msgspec.json.decode(envelope.data, type=_Board)
        self._lanes = {text_of(task.id): lane for lane, tasks in board.lanes.items() for task in tasks}
        counts = {lane: len(tasks) for lane, tasks in board.lanes.items()}
        return Message(json, envelope.type, counts=counts, reason=envelope.reason)

    def _read_change(self, json: bytes, envelope: _Envelope) -> Message:
        values = msgspec.json.decode(envelope.data, type=dict[str, Raw])
        task = text_of(values.pop("id"))
        match envelope.type:
            case "task.moved":
                lanes: tuple[str, ...] = (text_of(values.pop("fromLane")), text_of(values.pop("toLane")))
                self._lanes[task] = lanes[-1]
            case "task.created":
                lanes = (text_of(values.pop("lane")),)
                self._lanes[task] = lanes[-1]
                values = {name: value for name, value in values.items() if name != "boardId" and value != _NULL}
            case "task.deleted":
                lanes = _known(self._lanes.pop(task, None))
            case _:
                lanes = _known(self._lanes.get(task))
                if "changes" in values:
                    values = msgspec.json.decode(values["changes"], type=dict[str, Raw])
        return Message(json, envelope.type, task, lanes, values)


def _known(lane: str | None) -> tuple[str, ...]:
    return () if lane is None else (lane,)


def text_of(value: Raw) -> str:
    """Return a string as it is, and anything else as JSON."""
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return bytes(value).decode(errors="replace")
