"""Follows a board for `relay tail`, over one connection after another.

It is a resumable client of the WebSocket endpoint (docs/clients.md), so a broken connection costs only a pause, and
each change is shown once. It uses the client library for connections and pauses, but keeps messages as the JSON that
arrived (messages.py).

Rules:
- A delivery is shown completely before its cursor is kept; one that was not shown comes again.
- Temporary failures are retried forever; a permanent one is a TailError.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from relay.client import link
from relay.client.core import HOPELESS_CODES, PING_SECONDS, longest_pause
from relay.commands import terminal
from relay.commands.tail.messages import Delivery, Message, Parts, Reader, TailError
from relay.commands.tail.show import Filter
from relay.text import harmless

_PING: Final = '{"type":"ping"}'
_random: Final = random.Random()  # noqa: S311  # chance, not a secret


class States:
    """Reports the state of the connection when it changes, but not for attempts that fail like the last one."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._last = ("", "")

    def __call__(self, state: str, why: str = "") -> None:
        """Report a state: connecting, catching up, live or offline, and why."""
        if (state, why) == self._last or (state == "connecting" and self._last[0] == "offline"):
            return
        self._last = (state, why)
        self._tell(f"relay tail: {state}" + (f": {harmless(why)}" if why else ""))


# The connection --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The board to follow, at which relay, with which token."""

    url: str
    board: str
    token: Callable[[], str | None] = lambda: None
    """Called before each attempt, because tokens expire."""
    ping_seconds: float = PING_SECONDS


async def follow(
    target: Target, cursor: str | None, tell: Callable[[str, str], None]
) -> AsyncGenerator[Delivery, None]:
    """Yield what follows the cursor, forever. A cursor counts as soon as the next delivery is requested.

    Raises TailError for a permanent failure.
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
    """Return the seconds to wait after a failure, with full jitter."""
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
    """Send pings, as the guide asks of clients, and abort the connection if nothing arrived since the last one."""
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
    """Describe a permanent failure; return None for any other."""
    if isinstance(ex, ConnectionClosed) and ex.rcvd and ex.rcvd.code in HOPELESS_CODES:
        return harmless(f"the relay closed the connection: {ex.rcvd.reason or 'no reason'} ({ex.rcvd.code})")
    why = link.hopeless(ex, credential="a good token in RELAY_TOKEN or --token-file", address="--url")
    return why and harmless(why)


def _reason(ex: Exception) -> str:
    if isinstance(ex, ConnectionClosed) and ex.rcvd:
        return f"closed with {ex.rcvd.code} {ex.rcvd.reason}".rstrip()
    return harmless(link.reason(ex))


# The command -----------------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Check that this is the address of a WebSocket endpoint. Raises TailError."""
    try:
        link.check(url)
    except ValueError as ex:
        raise TailError(harmless(str(ex))) from None


def token_from(file: Path | None, token: str | None) -> Callable[[], str | None]:
    """Return a function that returns the token: the file's, read each time, or else the given one.

    Both this and the function raise TailError if the file cannot be read or the token is invalid.
    """

    def read() -> str | None:
        return _checked(_read(file), str(file)) if file else _checked(token, "RELAY_TOKEN") if token else None

    read()
    return read


def _checked(token: str, where: str) -> str | None:
    try:
        return link.check_token(token.strip())
    except ValueError:
        raise TailError(f"{where} holds no token: expected one, in one line, without spaces") from None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as ex:
        why = ex.strerror if isinstance(ex, OSError) else "it is not text"
        raise TailError(f"cannot read {file}: {why}") from None


class CursorFile:
    """The cursor at which a run ends, for the next run."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # replace the target of a link, not the link

    def load(self) -> str | None:
        """Return the cursor; None the first time. Raises TailError if the file cannot be read."""
        return (_read(self._path).strip() or None) if self._path.exists() else None

    def save(self, cursor: str) -> None:
        """Replace the cursor atomically. Raises TailError if that fails."""
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
    """What to print and how, and when to stop."""

    filter: Filter
    show: Callable[[Message], None]
    tell: Callable[[str], None]
    """Prints the state of the connection, in one line."""
    count: int | None = None
    cursor_file: CursorFile | None = None


async def run(target: Target, output: Output) -> None:
    """Show a board's messages until `count` were shown or the task is cancelled. Raises TailError.

    A delivery that `count` cuts short does not advance the cursor file, so the next run begins with it.
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
