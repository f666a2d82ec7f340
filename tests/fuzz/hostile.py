"""Strangers that want to do harm, for the soak: each takes as much as it is let, of one thing.

Each is a coroutine that never ends by itself. What it got, it counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode

from relay.model import messages as protocol

SILENT: Final = 400
"""So many silent connections a stranger tries to hold, to each port."""

AT_ONCE: Final = 10
"""So many connections each of the others holds."""

PAUSE_SECONDS: Final = 0.05

_HEAD: Final = b"GET / HTTP/1.1\r\nHost: relay\r\n"


@dataclass
class Target:
    """The relay that they are at, and a token that is good there."""

    port: int
    health_port: int
    token: Callable[[], str]
    counts: Counter[str]

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[ClientConnection]:
        """Come in as anybody with a token does."""
        async with connect(f"ws://127.0.0.1:{self.port}?token={self.token()}", proxy=None, max_size=None) as client:
            yield client


async def silent(target: Target, port: int) -> None:
    """Hold connections that say nothing; connect again where one was ended."""
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        while True:
            await asyncio.sleep(PAUSE_SECONDS / 10)
            ended = [each for each in held if each[0].at_eof()]
            for each in ended:
                held.remove(each)
                each[1].close()
            target.counts["hostile: silent connections ended"] += len(ended)
            if len(held) < SILENT:
                held.append(await asyncio.open_connection("127.0.0.1", port))
    finally:
        for _, writer in held:
            writer.close()


async def endless_handshake(target: Target) -> None:
    """Send headers without end."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        with contextlib.suppress(ConnectionError):
            writer.write(_HEAD)
            for _ in range(5):
                writer.write(b"A: " + b"b" * 8000 + b"\r\n")
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.wait_for(reader.read(), 30)
        writer.close()
        target.counts["hostile: endless handshakes ended"] += 1


async def long_names(target: Target) -> None:
    """Ask for boards with names as long as a message may be, and leave them."""
    async with target.client() as client:
        for number in itertools.count():
            name = f"{number:08}" + "x" * 1_048_000
            for kind in ("subscribe", "unsubscribe"):
                await client.send(json.dumps({"type": kind, "boardId": name}))
                await asyncio.wait_for(client.recv(), 30)
                target.counts["hostile: long names refused"] += 1
            await client.send('{"type":"ping"}')
            await asyncio.wait_for(client.recv(), 30)
            await asyncio.sleep(PAUSE_SECONDS)


async def new_names(target: Target) -> None:
    """Ask for boards with ever new names, as long as they may be, and leave them."""
    async with target.client() as client:
        for number in itertools.count():
            name = f"b{number:08}".ljust(protocol.MAX_BOARD_CHARACTERS, "\N{SLIGHTLY SMILING FACE}")
            for kind in ("subscribe", "unsubscribe"):
                await client.send(json.dumps({"type": kind, "boardId": name}))
            target.counts["hostile: new names"] += 1
            await asyncio.sleep(PAUSE_SECONDS)


async def unfinished(target: Target) -> None:
    """Send most of a message, as large as one may be, and not its end."""
    while True:
        async with target.client() as client:
            part = Frame(Opcode.TEXT, b" " * 60_000, fin=False).serialize(mask=True)
            client.transport.write(part)
            for _ in range(15):
                client.transport.write(Frame(Opcode.CONT, b" " * 60_000, fin=False).serialize(mask=True))
                await asyncio.sleep(PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.wait_closed(), random.uniform(1, 20))
        target.counts["hostile: unfinished messages"] += 1


async def reads_nothing(target: Target) -> None:
    """Ask for answers without end, and read none of them."""
    while True:
        async with target.client() as client:
            client.transport.pause_reading()
            ping = Frame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=True)
            while not client.transport.is_closing() and client.transport.get_write_buffer_size() < 1_000_000:
                client.transport.write(ping * 10_000)
                await asyncio.sleep(PAUSE_SECONDS)
            await asyncio.sleep(random.uniform(1, 20))
            client.transport.abort()
        target.counts["hostile: readers of nothing"] += 1


async def odd_codes(target: Target) -> None:
    """Close with a code that nobody has used yet."""
    for code in itertools.cycle(range(3000, 5000)):
        async with target.client() as client:
            await client.close(code)
        target.counts["hostile: odd codes"] += 1
        await asyncio.sleep(PAUSE_SECONDS)


async def other_protocols(target: Target) -> None:
    """Speak TLS, the PROXY protocol, or HTTP of the wrong kind."""
    for data in itertools.cycle(
        (b"\x16\x03\x01\x02\x00\x01", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"POST / HTTP/1.0\r\n\r\n", b"\0" * 9000)
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(data)
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        target.counts["hostile: other protocols"] += 1
        await asyncio.sleep(PAUSE_SECONDS)


async def same_token(target: Target) -> None:
    """Present a token again and again."""
    async with target.client() as client:
        message = json.dumps({"type": "authenticate", "token": target.token()})
        while True:
            await client.send(message)
            await asyncio.wait_for(client.recv(), 30)
            target.counts["hostile: same token"] += 1
            await asyncio.sleep(PAUSE_SECONDS)


def crowd(target: Target) -> list[Coroutine[Any, Any, None]]:
    """Return all of them."""
    kinds = (
        endless_handshake,
        long_names,
        new_names,
        unfinished,
        reads_nothing,
        odd_codes,
        other_protocols,
        same_token,
    )
    several = [_again(kind, target) for kind in kinds for _ in range(AT_ONCE if kind is unfinished else 2)]
    return [silent(target, target.port), silent(target, target.health_port), *several]


async def _again(kind: Callable[[Target], Coroutine[Any, Any, None]], target: Target) -> None:
    """Begin again whenever the relay has ended it.

    A connection that fails while the task is cancelled hides that it is.
    """
    task = asyncio.current_task()
    while task and not task.cancelling():
        try:
            await kind(target)
        except (WebSocketException, OSError, TimeoutError, InvalidStatus) as ex:
            target.counts[f"hostile: {kind.__name__} ended by {type(ex).__name__}"] += 1
        await asyncio.sleep(PAUSE_SECONDS)
