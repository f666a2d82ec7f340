"""What selections of boards and waits for transactions take of memory, as many as there may be.

    python benchmarks/memory.py           # a few seconds, on Linux

Each line is a hub in a process of its own. Its subscribers follow as many boards as they may, and are sent each board
and a change to it, which they throw away. The figures are resident memory, as the kernel counts it: what it grew by
while they follow, and what of that is left when they are gone.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import structlog

from relay.hub.boards import MAX_SELECTIONS
from relay.hub.hub import MAX_WAITS, Hub
from relay.hub.ports import Frame, Resuming
from relay.model import messages
from relay.model.cursor import Epoch
from relay.model.messages import MAX_SELECTED, MAX_SELECTION_CHARACTERS, Meaning
from relay.model.selection import Selection, selected
from relay.model.snapshot import Snapshot
from relay.websocket.commands import MAX_WAITS as MAX_WAITS_OF_CLIENT

MEGABYTE = 1e6
EPOCH = Epoch("0" * 12, {"0" * 12: b"secret"}, "1" * 12)
MAX_BOARDS = 100
"""Number of boards that a client may follow by default."""

TASK = {"id": 1, "boardId": "b", "lane": "todo", "title": "Paint"}
LETTERS = [chr(code) for code in range(0x1F300, 0x1F700)]
"""Each of four bytes, as many as there are selections and more."""


@dataclass(eq=False)
class Subscriber:
    """A client that throws away what it is sent."""

    ready: bool = True
    frame: Frame = field(default=lambda message: message.json)
    address: str = "127.0.0.1"

    def send(self, frames: bytes) -> None: ...


@dataclass(frozen=True)
class Change:
    """A transaction that creates a task on each board that is followed."""

    xid: int
    sync: None = None
    at: None = None

    def messages(self, boards: Container[str | None]) -> Mapping[str, Meaning]:
        assert isinstance(boards, Mapping)
        row = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in TASK.items()}
        return {board: [messages.task_created(row)] for board in boards}


class Nobody:
    """A source without boards: they are handed over below."""

    def ask(self, board: str, by: object = None) -> None: ...

    def ask_changes(self, resuming: Resuming) -> None: ...


def largest(number: int) -> Selection:
    """Select as much as may be, by names that no other selection has."""
    length = MAX_SELECTION_CHARACTERS // MAX_SELECTED
    return selected(None, [LETTERS[number] + LETTERS[each] * (length - 1) for each in range(MAX_SELECTED)])


def usual(number: int) -> Selection:
    """Select as a screen does."""
    return selected(["todo"], ["title", "priority"], [number])


def none(_number: int) -> Selection:
    """Select everything: what a board takes itself."""
    return selected()


def follow(hub: Hub, subscribers: Sequence[Subscriber], select: Callable[[int], Selection]) -> None:
    """Follow as many selections as there may be, each of another board."""
    for number in range(MAX_SELECTIONS):
        board = f"board {number}"
        hub.subscribe(subscribers[number // MAX_BOARDS], select(number).of(board), resumable=True)
        assert hub.begin_read(board)
        hub.synced(board, Snapshot.parse("10:10:"), msgspec.json.encode({"lanes": {"todo": [TASK]}}))
    hub.publish([Change(10)], Snapshot.parse("11:11:"))
    assert hub.subscriptions == MAX_SELECTIONS


def wait(hub: Hub, subscribers: Sequence[Subscriber]) -> None:
    """Wait for as many transactions as may be waited for."""
    for number in range(MAX_WAITS):
        hub.includes(subscribers[number // MAX_WAITS_OF_CLIENT], "board", 10**15 + number)
    hub.expire_waits()
    assert sum(map(hub.waits, subscribers)) == MAX_WAITS


CASES: dict[str, Callable[[Hub, Sequence[Subscriber]], None]] = {
    f"{MAX_SELECTIONS:,} boards": lambda hub, subscribers: follow(hub, subscribers, none),
    f"{MAX_SELECTIONS:,} usual selections": lambda hub, subscribers: follow(hub, subscribers, usual),
    f"{MAX_SELECTIONS:,} largest selections": lambda hub, subscribers: follow(hub, subscribers, largest),
    f"{MAX_WAITS:,} waits": wait,
}


def main() -> None:
    for name in CASES:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, there))
        process.start()
        held, left = here.recv()
        process.join()
        print(f"{name:>25}: {held / MEGABYTE:5.1f} MB, {left / MEGABYTE:5.1f} MB when they are gone")


def measure(name: str, answer: Connection) -> None:
    """Send what a case takes, in bytes, and what is left of that."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    hub = Hub(Nobody())
    hub.begin(EPOCH, Snapshot.parse("10:10:"), None)
    subscribers = [Subscriber() for _ in range(MAX_WAITS // MAX_WAITS_OF_CLIENT)]
    before = resident()
    CASES[name](hub, subscribers)
    held = resident() - before
    for one in subscribers:
        hub.leave(one)
    answer.send((held, resident() - before))


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
