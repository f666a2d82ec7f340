"""`relay tail`: a board's messages as they come, for people and for scripts.

A client like any other, that knows a running relay by its WebSocket endpoint alone. It follows its board resumably
(docs/clients.md), so a connection that breaks costs nothing but a pause: each change is shown once.

Its parts, from the socket up: `follow` keeps a connection (made by relay.client), and gives one delivery after
another; `Parts` makes deliveries of what comes; `Reader` reads their messages; `Filter` says which are wanted;
`line` shows one.

Rules:
- A delivery is shown whole before its cursor counts: what was not shown comes again.
- Values are shown as the JSON that came, never as numbers of ours: no digit is lost.
- Nothing of a task reaches the terminal unescaped (see terminal.py).
- What waiting may mend is waited for, for ever; what it cannot is a TailError.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import click
import msgspec
from msgspec import Raw
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from relay.client import link
from relay.client.core import HOPELESS_CODES, PING_SECONDS, longest_pause
from relay.commands import terminal
from relay.text import harmless

VALUE_CHARACTERS: Final = 60
"""A longer value is cut, except in JSON."""

_NULL: Final = Raw(b"null")
_PING: Final = '{"type":"ping"}'
_COLOURS: Final = {
    "board.sync": "magenta",
    "task.created": "green",
    "task.updated": "yellow",
    "task.moved": "bright_blue",
    "task.deleted": "red",
}
_random: Final = random.Random()  # noqa: S311  # chance, not a secret


class TailError(Exception):
    """What waiting cannot mend, in one line."""


# What came -------------------------------------------------------------------------------------------------


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
        self._lanes = {_text(task.id): lane for lane, tasks in board.lanes.items() for task in tasks}
        counts = {lane: len(tasks) for lane, tasks in board.lanes.items()}
        return Message(json, envelope.type, counts=counts, reason=envelope.reason)

    def _read_change(self, json: bytes, envelope: _Envelope) -> Message:
        values = msgspec.json.decode(envelope.data, type=dict[str, Raw])
        task = _text(values.pop("id"))
        match envelope.type:
            case "task.moved":
                lanes: tuple[str, ...] = (_text(values.pop("fromLane")), _text(values.pop("toLane")))
                self._lanes[task] = lanes[-1]
            case "task.created":
                lanes = (_text(values.pop("lane")),)
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


def _text(value: Raw) -> str:
    """Give a string as it is, and anything else as JSON."""
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return bytes(value).decode(errors="replace")


# What is shown ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which messages are wanted; what is empty wants all.

    A board.sync is about every task, so only `types` and `first_board` keep it back.
    """

    types: frozenset[str] = frozenset()
    lanes: frozenset[str] = frozenset()
    """A task that is there, or leaves it, or comes to it; and one whose lane is not known."""
    tasks: frozenset[str] = frozenset()
    text: str = ""
    """Part of the id, a lane or a value."""
    first_board: bool = True
    """Whether to show the board that was asked for; one that comes for a reason is shown anyway."""

    def wants(self, message: Message) -> bool:
        """Tell whether to show a message."""
        if self.types and message.type not in self.types:
            return False
        if message.task is None:
            return self.first_board or message.reason is not None or message.type != "board.sync"
        return (
            (not self.tasks or message.task in self.tasks)
            and (not self.lanes or not message.lanes or not self.lanes.isdisjoint(message.lanes))
            and any(
                self.text in value for value in (message.task, *message.lanes, *map(_text, message.values.values()))
            )
        )


def line(message: Message, at: datetime, *, colours: bool) -> str:
    """Show a message in one line."""

    def style(text: str, **styles: str | bool) -> str:
        return click.style(text, **styles) if colours else text  # type: ignore[arg-type]

    parts = [
        style(f"{at:%H:%M:%S}.{at.microsecond // 1000:03}", dim=True),
        style(f"{harmless(message.type):12}", fg=_COLOURS.get(message.type, "cyan")),
    ]
    if message.type == "board.sync":
        total = sum(message.counts.values())
        parts.append(style(f"{total} task{'' if total == 1 else 's'}", bold=True))
        parts += [f"{harmless(lane)} {count}" for lane, count in message.counts.items()]
        parts += [f"({harmless(message.reason)})"] if message.reason else []
    if message.task is not None:
        parts.append(style(harmless(message.task), bold=True))
    if message.lanes:
        parts.append(" → ".join(map(harmless, message.lanes)))
    parts += [f"{style(harmless(name), dim=True)}={_shown(value)}" for name, value in message.values.items()]
    return "  ".join(parts)


def _shown(value: Raw) -> str:
    text = bytes(value).decode(errors="replace")
    return harmless(text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…")


class States:
    """How the connection is, told once for each change; attempts that fail as the last one did are not told."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._last = ("", "")

    def __call__(self, state: str, why: str = "") -> None:
        """Tell a state: connecting, catching up, live or offline, and why."""
        if (state, why) == self._last or (state == "connecting" and self._last[0] == "offline"):
            return
        self._last = (state, why)
        self._tell(f"relay tail: {state}" + (f": {harmless(why)}" if why else ""))


# The connection --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Which board, where, and as whom."""

    url: str
    board: str
    token: Callable[[], str | None] = lambda: None
    """Asked before each attempt, for tokens expire."""
    ping_seconds: float = PING_SECONDS


async def follow(
    target: Target, cursor: str | None, tell: Callable[[str, str], None]
) -> AsyncGenerator[Delivery, None]:
    """Yield what comes after the cursor, for ever; who asks for the next has done with the one before.

    Raises TailError for what waiting cannot mend.
    """
    attempt = 0
    while True:
        parts, asked_from, least = Parts(), cursor, 0.0
        tell("connecting", link.without_secrets(target.url))
        try:
            async with _connected(target) as connection:
                await connection.send(_subscribe(target.board, cursor))
                if cursor is not None:
                    tell("catching up", "")
                while True:
                    if delivery := parts.take(await connection.recv(decode=False)):
                        if asked_from is not None and delivery.reason:
                            tell(
                                "catching up", f"cannot go on from the cursor ({delivery.reason}), here is the board"
                            )
                        asked_from, attempt = None, 0
                        yield delivery
                        cursor = delivery.cursor or cursor
                        tell("live", "")
        except link.FAILURES as ex:
            if why := hopeless(ex):
                raise TailError(why) from None
            least = link.retry_after(ex)
            tell("offline", _reason(ex))
        await asyncio.sleep(least + pause(attempt))
        attempt += 1


def pause(attempt: int) -> float:
    """Return how long to wait after a failure, in seconds: full jitter, so that not everybody comes back at once."""
    return _random.uniform(0, longest_pause(attempt + 1))


@contextlib.asynccontextmanager
async def _connected(target: Target) -> AsyncIterator[ClientConnection]:
    heard = asyncio.Event()
    async with link.connected(target.url, target.token(), heard.set) as connection:
        pinging = asyncio.create_task(_ping(connection, heard, target.ping_seconds))
        try:
            yield connection
        finally:
            pinging.cancel()


async def _ping(connection: ClientConnection, heard: asyncio.Event, seconds: float) -> None:
    """Send pings, as the guide asks clients to, and cut the connection if nothing at all came since the last."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            heard.clear()
            await connection.send(_PING)
            await asyncio.sleep(seconds)
            if not heard.is_set():
                connection.transport.abort()


def _subscribe(board: str, cursor: str | None) -> str:
    return msgspec.json.encode({"type": "subscribe", "boardId": board, "cursor": cursor}).decode()


def hopeless(ex: Exception) -> str | None:
    """Say what waiting cannot mend, and what may; None for anything else."""
    if isinstance(ex, ConnectionClosed) and ex.rcvd and ex.rcvd.code in HOPELESS_CODES:
        return harmless(f"the relay closed the connection: {ex.rcvd.reason or 'no reason'} ({ex.rcvd.code})")
    told = link.hopeless(ex, credential="a good token in RELAY_TOKEN or --token-file", address="--url")
    return told and harmless(told)


def _reason(ex: Exception) -> str:
    if isinstance(ex, ConnectionClosed) and ex.rcvd:
        return f"closed with {ex.rcvd.code} {ex.rcvd.reason}".rstrip()
    return harmless(link.reason(ex))


# The command -----------------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Raise TailError for what is no address of a WebSocket endpoint."""
    try:
        link.check(url)
    except ValueError as ex:
        raise TailError(harmless(str(ex))) from None


def token_from(file: Path | None, token: str | None) -> Callable[[], str | None]:
    """Return what gives the token: the file's, read anew each time, or else the one that is given.

    Raises TailError, then and at once, for a file that cannot be read, and for what no token can be.
    """

    def read() -> str | None:
        return _checked(_read(file), str(file)) if file else _checked(token, "RELAY_TOKEN") if token else None

    read()
    return read


def _checked(token: str, where: str) -> str:
    token = token.strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise TailError(f"{where} holds no token: expected one, in one line, without spaces")
    return token


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as ex:
        why = ex.strerror if isinstance(ex, OSError) else "it is not text"
        raise TailError(f"cannot read {file}: {why}") from None


class CursorFile:
    """Where a run leaves off, for the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # what a link leads to is replaced, not the link

    def load(self) -> str | None:
        """Return the cursor, None the first time. Raises TailError for a file that cannot be read."""
        return (_read(self._path).strip() or None) if self._path.exists() else None

    def save(self, cursor: str) -> None:
        """Replace the cursor, such that the file is never half of it. Raises TailError if that cannot be done."""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(cursor + "\n")
                Path(temporary).replace(self._path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as ex:
            raise TailError(f"cannot write {self._path}: {ex.strerror}: choose another --cursor-file") from None


@dataclass(frozen=True)
class Output:
    """What to print, and where to leave off."""

    filter: Filter
    show: Callable[[Message], None]
    tell: Callable[[str], None]
    """Takes what is about the connection, in one line."""
    count: int | None = None
    cursor_file: CursorFile | None = None


async def run(target: Target, output: Output) -> None:
    """Show a board's messages until `count` have been, or the task is cancelled. Raises TailError.

    A delivery that `count` cuts short does not move the cursor of the file: the next run begins with it.
    """
    terminal.cancel_when_reader_leaves()
    check_url(target.url)
    reader, shown = Reader(), 0
    cursor = output.cursor_file.load() if output.cursor_file else None
    async with contextlib.aclosing(follow(target, cursor, States(output.tell))) as deliveries:
        async for delivery in deliveries:
            wanted = [message for message in map(reader.read, delivery.messages) if output.filter.wants(message)]
            room = len(wanted) if output.count is None else output.count - shown
            for message in wanted[:room]:
                output.show(message)
            shown += min(len(wanted), room)
            if output.cursor_file and delivery.cursor and len(wanted) <= room:
                output.cursor_file.save(delivery.cursor)
            if shown == output.count:
                return
