"""The bench's subscribers: `python -m relay.commands.bench.subscribers PORT COUNT`, controlled over its pipes.

They read messages with as little work as Python allows, and check each one: every subscriber must get every change
once and in order. A change carries its number, and the time before its commit, in the task's title (see `stamped`).

Rules:
- Each command is a line, each answer a line of JSON: `wait DELIVERIES SECONDS`, then `report`, which resets counts.
- A `board.sync` counts as all changes up to the last one in its tasks, because that is what it means to a client.
- Nothing is checked afterwards, and nothing is kept per message except its latency.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final

from websockets.client import ClientProtocol
from websockets.http11 import Response
from websockets.uri import parse_uri

BOARD: Final = "bench"
_STAMP: Final = re.compile(rb"@(\d+):(\d+)@")
_SYNC: Final = b'{"type":"board.sync"'
_CONNECTING_AT_ONCE: Final = 100


def stamped(sequence: int) -> str:
    """Return a title with a change's number and the current time."""
    return f"@{sequence}:{time.monotonic_ns()}@ some words of a title"


@dataclass
class Report:
    """The counts of all subscribers; latencies in milliseconds."""

    deliveries: int = 0
    """Changes that arrived, including those within a board.sync."""

    syncs: int = 0
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None
    last_p50: float | None = None
    last_p99: float | None = None
    last_at: int = 0
    """Time of the last delivery, in nanoseconds of the monotonic clock."""

    faults: list[str] = field(default_factory=list)
    """Lost, repeated or reordered changes, and closed connections."""


class Tally:
    """Counts deliveries and their latencies."""

    def __init__(self) -> None:
        self.deliveries = 0
        self.last_at = 0
        self.faults: list[str] = []
        self._syncs = 0
        self._latencies = array.array("q")
        self._slowest: dict[int, int] = {}

    def take(self, sequence: int, sent_at: int, at: int) -> None:
        """Count a change."""
        self.deliveries += 1
        self.last_at = at
        self._latencies.append(at - sent_at)
        self._slowest[sequence] = max(at - sent_at, self._slowest.get(sequence, 0))

    def take_sync(self, changes: int, at: int) -> None:
        """Count a board.sync, and the changes that it contains."""
        self.deliveries += changes
        self.last_at = at
        self._syncs += 1

    def report(self) -> Report:
        """Return the counts."""
        every, last = sorted(self._latencies), sorted(self._slowest.values())
        return Report(
            deliveries=self.deliveries,
            syncs=self._syncs,
            p50=percentile(every, 0.5),
            p90=percentile(every, 0.9),
            p99=percentile(every, 0.99),
            max=percentile(every, 1),
            last_p50=percentile(last, 0.5),
            last_p99=percentile(last, 0.99),
            last_at=self.last_at,
            faults=self.faults[:10],
        )


def percentile(ordered: list[int], share: float) -> float | None:
    """Return a percentile of sorted nanoseconds, in milliseconds."""
    if not ordered:
        return None
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1e6


class Check:
    """One subscriber's position in the sequence of changes."""

    def __init__(self, name: str, crew: Crew) -> None:
        self._name, self._crew = name, crew
        self._next: int | None = None

    def take(self, message: bytes, at: int) -> None:
        """Check and count a message."""
        # A board has the stamps of many changes, of which the latest counts.
        stamps = [(int(sequence), int(sent_at)) for sequence, sent_at in _STAMP.findall(message)]
        sequence, sent_at = max(stamps, default=(-1, 0))
        if message.startswith(_SYNC):
            if self._next is None:
                self._crew.subscribed()
            else:
                self._crew.tally.take_sync(max(sequence + 1 - self._next, 0), at)
            self._next = max(sequence + 1, self._next or 0)
        elif not stamps or self._next is None or sequence != self._next:
            self._crew.fault(f"{self._name} expected change {self._next} and got {message[:200].decode()!r}")
        else:
            self._next += 1
            self._crew.tally.take(sequence, sent_at, at)


class Subscriber(asyncio.Protocol):
    """A connection: websockets makes the handshake, then `take_frames` parses the frames."""

    def __init__(self, port: int, name: str, crew: Crew) -> None:
        self._handshake: ClientProtocol | None = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"))
        self._check = Check(name, crew)
        self._name, self._crew = name, crew
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        assert self._handshake
        self._transport = transport
        self._handshake.send_request(self._handshake.connect())
        transport.write(b"".join(self._handshake.data_to_send()))

    def data_received(self, data: bytes) -> None:
        at = time.monotonic_ns()
        if self._handshake:
            self._shake_hands(data)
        else:
            self._rest = take_frames(self._rest + data if self._rest else data, self._take, at)
            self._crew.check()

    def _shake_hands(self, data: bytes) -> None:
        assert self._handshake
        self._handshake.receive_data(data)
        if any(isinstance(event, Response) for event in self._handshake.events_received()):
            if self._handshake.handshake_exc:
                self._crew.fault(f"{self._name} was refused: {self._handshake.handshake_exc}")
                return
            self._handshake.send_text(json.dumps({"type": "subscribe", "boardId": BOARD}).encode())
            self._transport.write(b"".join(self._handshake.data_to_send()))
            self._handshake = None  # no frame can have arrived before the subscribe

    def _take(self, opcode: int, payload: bytes, at: int) -> None:
        if opcode == 1:
            self._check.take(payload, at)
        elif opcode == 8:
            self._crew.fault(f"{self._name} was closed: {int.from_bytes(payload[:2])} {payload[2:].decode()}")
        elif opcode == 9:
            self._transport.write(bytes((0x8A, 0x80 | len(payload), 0, 0, 0, 0)) + payload)  # masked with zeros
        else:
            self._crew.fault(f"{self._name} got a frame of opcode {opcode}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._crew.fault(f"{self._name} lost its connection: {exc or 'the relay closed it'}")


def take_frames(data: bytes, take: Callable[[int, bytes, int], None], at: int) -> bytes:
    """Hand over the opcode and payload of each whole frame; return the beginning of an incomplete one.

    Frames must be like the relay's: neither masked nor fragmented.
    """
    begin, size = 0, len(data)
    while size - begin >= 2:
        start, length = begin + 2, data[begin + 1]
        if length == 126:
            start, length = begin + 4, int.from_bytes(data[begin + 2 : begin + 4])
        elif length == 127:
            start, length = begin + 10, int.from_bytes(data[begin + 2 : begin + 10])
        if start > size or start + length > size:
            break
        take(data[begin] & 0x0F, data[start : start + length], at)
        begin = start + length
    return data[begin:]


class Crew:
    """All subscribers, and the commands that control them."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self._boards = 0
        self._ready = asyncio.Event()
        self._wanted = 0
        self._reached = asyncio.Event()
        self.tally = Tally()

    def subscribed(self) -> None:
        """Count a subscriber that has received its board."""
        self._boards += 1
        if self._boards == self._count:
            self._ready.set()

    def fault(self, sentence: str) -> None:
        """Note a fault, and end all waits."""
        self.tally.faults.append(sentence)
        self._ready.set()
        self._reached.set()

    def check(self) -> None:
        """End a wait whose number of deliveries is reached."""
        if self.tally.deliveries >= self._wanted:
            self._reached.set()

    async def run(self) -> None:
        """Connect all subscribers, then answer commands until the end of input."""
        gate = asyncio.Semaphore(_CONNECTING_AT_ONCE)
        await asyncio.gather(*(self._connect(f"subscriber {number}", gate) for number in range(self._count)))
        await self._ready.wait()
        _answer({"ready": self._boards, "faults": self.tally.faults[:10]})
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).split():
            if line[0] == b"wait":
                _answer({"reached": await self._wait(int(line[1]), float(line[2]))})
            else:
                _answer(asdict(self.tally.report()))
                self.tally = Tally()

    async def _connect(self, name: str, gate: asyncio.Semaphore) -> None:
        async with gate:
            await asyncio.get_running_loop().create_connection(
                lambda: Subscriber(self._port, name, self), "127.0.0.1", self._port
            )

    async def _wait(self, deliveries: int, seconds: float) -> bool:
        self._wanted = deliveries
        self._reached.clear()
        if self.tally.deliveries < deliveries and not self.tally.faults:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reached.wait(), seconds)
        return self.tally.deliveries >= deliveries


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201  # to the pipe


if __name__ == "__main__":
    asyncio.run(Crew(int(sys.argv[1]), int(sys.argv[2])).run())
