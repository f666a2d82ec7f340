"""What a delivery costs over server-sent events, beside WebSocket: processor time of the server's side, in turns.

    python benchmarks/events.py           # about a minute
    python benchmarks/events.py --selection           # the same of a part of a board
    python benchmarks/events.py --subscribers 200 --rounds 3
    python benchmarks/events.py --asgi    # WebSocket beside an ASGI application that sends as many bytes

An endpoint and a hub, fed by this process, one change a batch; the subscribers are a process of their own, which
reads and throws away. Both kinds resume, so they are sent the same messages.

The ASGI application runs in uvicorn and does nothing but send a text that was made beforehand: `asgi` to one client
after another, so that one that does not read holds up all others; `tasks` in a task for each client, which does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import selectors
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog
import uvicorn

from relay.hub.hub import Hub
from relay.hub.ports import Resuming
from relay.model import messages
from relay.model.cursor import Epoch
from relay.model.messages import Meaning
from relay.model.snapshot import Snapshot
from relay.websocket.server import Endpoint

EPOCH = Epoch("0" * 12, {"0" * 12: b"secret"}, "1" * 12)
LONGER = 126
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
KINDS = ("websocket", "events")
ASGI_KINDS = ("websocket", "asgi", "tasks")
TEXT = (
    '{"type":"batch","boardId":"default","cursor":"000000000000.111111111111.11:11:.S4ila9NS5pg9DJP-iWx-AQ","data":[{'
    '"type":"task.updated","data":{"id":"task-1","changes":{"title":"Task %d","updatedAt":"2026-01-01T00:00:00Z"}}}]}'
)
"""What the relay sends for a change."""


def request(kind: str, *, selection: bool) -> bytes:
    """Return what a subscriber of a kind sends."""
    if kind == "events":
        query = b"?column=title&task=task-1" if selection else b""
        return b"GET /boards/default/events%b HTTP/1.1\r\nHost: relay\r\n\r\n" % query
    chosen = {"columns": ["title"], "tasks": ["task-1"]} if selection else {}
    message = json.dumps({"type": "subscribe", "boardId": "default", "cursor": None, **chosen}).encode()
    assert len(message) < LONGER  # than a frame says in one byte
    return UPGRADE + b"\x81" + bytes([0x80 | len(message)]) + b"\0\0\0\0" + message  # a mask of zeros masks nothing


@dataclass(frozen=True)
class Change:
    """A transaction that changes one task."""

    xid: int
    sync: None = None
    at: None = None

    def messages(self, _boards: Container[str | None]) -> Mapping[str, Meaning]:
        changes = {"title": msgspec.Raw(b'"Task %d"' % self.xid), "updatedAt": msgspec.Raw(b'"2026-01-01T00:00:00Z"')}
        return {"default": [messages.task_updated(msgspec.Raw(b'"task-1"'), changes)]}


class Nobody:
    """A source without boards: the one that is asked for is handed over below."""

    def ask(self, board: str, by: object = None) -> None: ...

    def ask_changes(self, resuming: Resuming) -> None: ...


class Served(Protocol):
    """A server with subscribers."""

    port: int

    @property
    def subscriptions(self) -> int: ...

    async def publish(self, number: int) -> None: ...


class Relaying:
    """The relay's endpoint and hub."""

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.port
        self._endpoint = endpoint
        self._hub = endpoint.hub
        self.port = endpoint.port

    @property
    def subscriptions(self) -> int:
        return self._hub.subscriptions

    async def publish(self, number: int) -> None:
        """Publish one change; the first time, after the board."""
        assert not self._endpoint.behind, "the subscribers were too slow"
        if number == 0:
            assert self._hub.begin_read("default")
            self._hub.synced("default", Snapshot.parse("10:10:"), b'{"lanes":{}}')
        xid = number + 10
        self._hub.publish([Change(xid)], Snapshot.parse(f"{xid + 1}:{xid + 1}:"))

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, subscribers: int) -> AsyncIterator[Served]:
        hub = Hub(Nobody())
        hub.begin(EPOCH, Snapshot.parse("10:10:"), None)
        endpoint = Endpoint(hub, heartbeat=3600.0, max_connections=subscribers)
        await endpoint.open("127.0.0.1", 0)
        try:
            yield cls(endpoint)
        finally:
            await endpoint.close()


Sending = Callable[[dict[str, Any]], Awaitable[None]]


class Asgi:
    """An ASGI application that sends each change to all its clients."""

    def __init__(self, *, tasks: bool) -> None:
        self._tasks = tasks
        self._clients: list[Sending] = []
        self._queues: list[asyncio.Queue[str]] = []
        self.port = 0

    @property
    def subscriptions(self) -> int:
        return len(self._clients)

    async def publish(self, number: int) -> None:
        """Send as many bytes as the relay does."""
        text = TEXT % number
        for queue in self._queues:
            queue.put_nowait(text)
        for send in () if self._tasks else self._clients:
            await send({"type": "websocket.send", "text": text})

    async def __call__(self, _scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Sending) -> None:
        await receive()  # that it connects
        await send({"type": "websocket.accept"})
        self._clients.append(send)
        sending = asyncio.create_task(self._send(send)) if self._tasks else None
        while (await receive())["type"] != "websocket.disconnect":
            pass  # uvicorn may or may not pass on what came with the handshake
        if sending:
            sending.cancel()

    async def _send(self, send: Sending) -> None:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._queues.append(queue)
        while True:
            await send({"type": "websocket.send", "text": await queue.get()})

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *, tasks: bool) -> AsyncIterator[Served]:
        application = cls(tasks=tasks)
        config = uvicorn.Config(
            application, port=0, ws="websockets-sansio", lifespan="off", log_level="critical", ws_ping_interval=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.05)
        application.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield application
        finally:
            server.should_exit = True
            await serving


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--subscribers", type=int, default=1000)
    options.add_argument("--batches", type=int, default=300)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--selection", action="store_true")
    options.add_argument("--asgi", action="store_true")
    given = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    kinds = ASGI_KINDS if given.asgi else KINDS
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds * given.rounds:
        asked = request(kind, selection=given.selection)
        costs[kind].append(asyncio.run(measure(kind, asked, given.subscribers, given.batches)))
    first, *others = medians = {kind: statistics.median(found) for kind, found in costs.items()}
    for kind, found in costs.items():
        print(f"{kind:>10}: {medians[kind]:5.2f} µs a delivery ({min(found):.2f} to {max(found):.2f})")
    print("     ratio:", *(f"{medians[kind] / medians[first]:.2f}" for kind in others))


async def measure(kind: str, request: bytes, subscribers: int, batches: int) -> float:
    """Return the processor time of a delivery, in microseconds."""
    on_asgi = kind in {"asgi", "tasks"}
    async with Asgi.running(tasks=kind == "tasks") if on_asgi else Relaying.running(subscribers) as server:
        process = multiprocessing.get_context("spawn").Process(target=read, args=(request, server.port, subscribers))
        process.start()
        try:
            while server.subscriptions < subscribers:  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(0.05)
            began = time.process_time()
            for number in range(batches):
                await server.publish(number)
                await asyncio.sleep(0.005)
            return (time.process_time() - began) * 1e6 / (subscribers * batches)
        finally:
            process.terminate()
            process.join()


def read(request: bytes, port: int, subscribers: int) -> None:
    """Subscribe, and throw away what comes."""
    selector = selectors.DefaultSelector()
    for _ in range(subscribers):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(request)
        selector.register(sock, selectors.EVENT_READ, sock)
    while selector.get_map():
        for key, _ in selector.select():
            if not key.data.recv(65_536):
                selector.unregister(key.fileobj)
                key.data.close()


if __name__ == "__main__":
    main()
