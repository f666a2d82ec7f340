"""What a relay sends to `relay tail`: deliveries made of parts, and messages read from them. Pure.

Rules:
- A batch is delivered whole, with the cursor to go on from.
- Values stay the JSON that came, never numbers of ours: no digit is lost. So this does not use the client's parsing.
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
    """What waiting cannot repair, in one line."""


class Delivery(NamedTuple):
    """Messages that belong together, each as the JSON that came."""

    messages: list[bytes]
    cursor: str | None
    """Where these have led to, to resume from."""
    reason: str | None = None
    """Why a board was sent that was not asked for."""


class _Envelope(msgspec.Struct):
    type: str
    data: Raw = Raw(b"null")
    cursor: str | None = None
    reason: str | None = None


class _Error(msgspec.Struct):
    code: str = "unknown"
    message: str = ""


class Parts:
    """What has come over one connection of a batch that is not whole yet."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def take(self, text: bytes) -> Delivery | None:
        """Return what is whole with this message. Raises TailError for an error, and for what no relay sends."""
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
    """One message, read."""

    json: bytes
    type: str
    task: str | None = None
    """Its id; None if the message is of a board."""
    lanes: tuple[str, ...] = ()
    """The task's lane, or from which to which it moved; none while it is not known."""
    values: Mapping[str, Raw] = field(default_factory=dict)
    """The columns that it tells, as JSON; of a task that was created, those that are not null."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many tasks each lane of a board has."""
    reason: str | None = None


class _Task(msgspec.Struct):
    id: Raw


class _Board(msgspec.Struct):
    lanes: dict[str, list[_Task]]


class Reader:
    """Reads messages, in their order, and remembers in which lane each task is, for not every message tells."""

    def __init__(self) -> None:
        self._lanes: dict[str, str] = {}

    def read(self, json: bytes) -> Message:
        """Read the next message. Raises TailError for what is none."""
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
    """Give a string as it is, and anything else as JSON."""
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return bytes(value).decode(errors="replace")
