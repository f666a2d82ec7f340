"""What a delivery costs over server-sent events, beside WebSocket: processor time of the relay's side, in turns.

    python benchmarks/events.py           # about a minute
    python benchmarks/events.py --selection           # the same of a part of a board
    python benchmarks/events.py --subscribers 200 --rounds 3

An endpoint and a hub, fed by this process, one change a batch; the subscribers are a process of their own, which
reads and throws away. Both kinds resume, so they are sent the same messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import selectors
import socket
import statistics
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass

import msgspec
import structlog

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


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--subscribers", type=int, default=1000)
    options.add_argument("--batches", type=int, default=300)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--selection", action="store_true")
    given = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(2 * given.rounds):
        kind = KINDS[number % 2]
        asked = request(kind, selection=given.selection)
        costs[kind].append(asyncio.run(measure(asked, given.subscribers, given.batches)))
    for kind, found in costs.items():
        print(f"{kind:>10}: {statistics.median(found):5.2f} µs a delivery ({min(found):.2f} to {max(found):.2f})")
    ratio = statistics.median(costs["events"]) / statistics.median(costs["websocket"])
    print(f"     ratio: {ratio:.2f}")


async def measure(request: bytes, subscribers: int, batches: int) -> float:
    """Return the processor time of a delivery, in microseconds."""
    hub = Hub(Nobody())
    hub.begin(EPOCH, Snapshot.parse("10:10:"), None)
    endpoint = Endpoint(hub, heartbeat=3600.0, max_connections=subscribers)
    await endpoint.open("127.0.0.1", 0)
    process = multiprocessing.get_context("spawn").Process(target=read, args=(request, endpoint.port, subscribers))
    process.start()
    try:
        while hub.subscriptions < subscribers:  # noqa: ASYNC110  # the hub tells nobody
            await asyncio.sleep(0.05)
        assert hub.begin_read("default")
        hub.synced("default", Snapshot.parse("10:10:"), b'{"lanes":{}}')
        began = time.process_time()
        for xid in range(10, 10 + batches):
            hub.publish([Change(xid)], Snapshot.parse(f"{xid + 1}:{xid + 1}:"))
            await asyncio.sleep(0.005)
        assert not endpoint.behind, "the subscribers were too slow"
        return (time.process_time() - began) * 1e6 / (subscribers * batches)
    finally:
        await endpoint.close()
        process.join()


def read(request: bytes, port: int, subscribers: int) -> None:
    """Subscribe, and throw away what comes until the relay ends it."""
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
