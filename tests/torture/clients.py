"""The clients of the torture: they come, stay, stall, leave and come back, and note every step that they are led.

Rules:
- A client applies what it is sent and nothing else. What does not fit what it holds is a violation at once.
- What it was led through is checked against the audit later, when the writers pause (see `oracle`).
- A resumable client presents its last cursor whenever it comes back; a board that it then gets must bring a reason.
- The reason must have a cause: a fault that happened. No transaction is one, but for TRUNCATE.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

import relay.client
from tests.contract import checked
from tests.torture.causes import explains
from tests.torture.oracle import Audit, Step

Task = dict[str, Any]


@dataclass
class Stretch:
    """What a resumable client was led through from one cursor on, and the last cursor."""

    first: str
    last: str
    steps: Counter[Step] = field(default_factory=Counter)


class Client:
    """One client, on one board for all its life."""

    def __init__(self, name: str, board: str, urls: Callable[[], list[str]], seed: str, *, resumable: bool) -> None:
        self.name = name
        self.board = board
        self.resumable = resumable
        self.tasks: dict[str, Task] = {}
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.raw: list[tuple[float, str]] = []
        self.calm = asyncio.Event()
        """Set while the client shall stay where it is, connected and reading."""
        self._urls = urls
        self._chance = random.Random(seed)
        self._cursor: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._steps: list[Step] = []
        self._stretches: list[Stretch] = []
        self._marks: list[tuple[str, dict[str, int]]] = []
        self._reasons: Counter[str] = Counter()
        self._moving: str | None = None
        self._synced = False

    async def live(self) -> None:
        """Connect to one relay or another, for ever."""
        while True:
            with contextlib.suppress(OSError, WebSocketException, InvalidHandshake, TimeoutError):
                url = self._chance.choice(self._urls())
                async with connect(
                    url, max_size=None, max_queue=None, open_timeout=5, ping_interval=None
                ) as connection:
                    await self._follow(connection)
            await asyncio.sleep(self._chance.random() * 0.3)

    async def _follow(self, connection: ClientConnection) -> None:
        subscribe: dict[str, Any] = {"type": "subscribe", "boardId": self.board}
        if self.resumable:
            subscribe["cursor"] = self._cursor
        self._presented = self._cursor
        self._synced, self._parts, self._moving = False, [], None
        await connection.send(json.dumps(subscribe))
        leave_at = time.monotonic() + self._chance.expovariate(1 / 4)
        while self.calm.is_set() or time.monotonic() < leave_at:
            try:
                async with asyncio.timeout(0.2):
                    text = await connection.recv()
            except TimeoutError:
                continue
            self.raw.append((time.time(), str(text)))
            self._take(checked(text))
            if self._chance.random() < 0.002:
                again = subscribe | ({"cursor": self._cursor} if self.resumable else {})
                await connection.send(json.dumps(again))
            if self._chance.random() < 0.002:
                connection.transport.pause_reading()
                await asyncio.sleep(self._chance.random() * 2)
                connection.transport.resume_reading()

    # What it is sent

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        self.counts[kind] += 1
        if kind == "error":
            self._reasons[message["data"]["code"]] += 1
            return
        if self.resumable != ("boardId" in message):
            self._violate(f"a message of the wrong kind: {kind}")
        if kind == "board.sync":
            self._sync(message)
        elif kind == "batch":
            self._parts += message["data"]
            if "cursor" in message:
                self._batch(message["cursor"])
        elif not self._synced:
            self._violate(f"{kind} before the board")
        else:
            self._apply(kind, message["data"])

    def _sync(self, message: dict[str, Any]) -> None:
        self.tasks = {task["id"]: task for lane in message["data"]["lanes"].values() for task in lane}
        reason = message.get("reason")
        if self.resumable:
            if (self._presented or self._synced) and not reason:
                self._violate("the board came instead of what was missed, without a reason")
            self.counts[f"sync: {reason}"] += 1
            self._reasons[reason or ""] += 1
            self._cursor = self._presented = str(message["cursor"])
            self._stretches.append(Stretch(self._cursor, self._cursor))
            self._mark()
        self._synced, self._parts, self._moving = True, [], None

    def _batch(self, cursor: str) -> None:
        if not self._synced and self._presented is None:
            self._violate("a batch before the board")
        if not self._synced:
            self.counts["resumed"] += 1
        self._synced = True
        parts, self._parts = self._parts, []
        for each in parts:
            self.counts[each["type"]] += 1
            self._apply(each["type"], each["data"])
        self._cursor = self._stretches[-1].last = cursor
        if self._chance.random() < 0.05:
            self._mark()

    def _mark(self) -> None:
        """Note what is held at a cursor, to be compared with what it says."""
        if self._cursor is not None:
            self._marks.append((self._cursor, {name: task["stamp"] for name, task in self.tasks.items()}))

    def _apply(self, kind: str, data: dict[str, Any]) -> None:
        name = data["id"]
        held = self.tasks.get(name)
        moving, self._moving = self._moving, None
        # Each image has a stamp of its own, so what moves a task changes another column as well.
        if moving != (name if kind == "task.updated" and "lane" in data["changes"] else None):
            self._violate(f"{kind} of {data} comes after the move of {moving}")
        match kind:
            case "task.created" if held is None:
                self.tasks[name] = data
                self._step(name, None, data["stamp"])
            case "task.updated" if held is not None:
                self._step(name, held["stamp"], data["changes"].get("stamp"))
                held.update(data["changes"])
            case "task.moved" if held is not None and held["lane"] == data["fromLane"]:
                held["lane"] = data["toLane"]
                self._moving = name
            case "task.deleted" if held is not None:
                del self.tasks[name]
                self._step(name, held["stamp"], None)
            case _:
                self._violate(f"{kind} of {data} does not fit {held}")

    def _step(self, name: str, old: int | None, new: int | None) -> None:
        self._steps.append(Step(self.board, name, old, new))
        if self._stretches:
            self._stretches[-1].steps[self._steps[-1]] += 1

    def _violate(self, what: str) -> None:
        self.violations.append(f"{self.name}: {what}")

    # What it is asked

    async def check(self, audit: Audit, faults: Container[str]) -> None:
        """Compare all that happened since the last check with the audit, and with the faults that there were."""
        for reason in self._reasons:
            if not explains(faults, reason):
                self._violate(f"the board came, or did not, for a reason that no fault gave: {reason}")
        for step in self._steps:
            if not audit.is_step(step):
                self._violate(f"task {step.task} went from {step.old} to {step.new}, which never happened")
        for cursor, held in self._marks:
            if audit.knows(cursor) and (expected := audit.at(self.board, cursor)) != held:
                wrong = sorted(set(expected.items()) ^ set(held.items()))[:6]
                self._violate(f"at cursor {cursor} it holds something else than the table did: {wrong}")
        for stretch in self._stretches:
            if not audit.knows(stretch.first):
                continue  # of a run that nobody noted before a crash ended it
            expected_steps = audit.between(self.board, stretch.first, stretch.last)
            if stretch.steps != expected_steps:
                lacks, extra = list(expected_steps - stretch.steps)[:4], list(stretch.steps - expected_steps)[:4]
                self._violate(f"from {stretch.first} to {stretch.last} it lacks {lacks} and was sent {extra} too")
        self._steps, self._marks, self._reasons = [], [], Counter()
        self._stretches = [Stretch(self._cursor, self._cursor)] if self._cursor else []


class WatchedClient(Client):
    """A client of ours, which this only watches: what it tells must lead to what it holds.

    Rules:
    - It comes back by itself; here its connection is torn, and each attempt is sent to one relay or the other.
    - After the first, a board.sync that it tells must bring a reason, for it always resumes.
    """

    def __init__(self, name: str, board: str, urls: Callable[[], list[str]], seed: str) -> None:
        super().__init__(name, board, urls, seed, resumable=False)

    def _note(self, kind: str, data: dict[str, Any], tasks: dict[str, Task] | None = None) -> None:
        """Note a change: its data as the relay sends it, and with a board.sync its reason and the tasks."""
        self.raw.append((time.time(), repr((kind, data))))
        self.counts[f"watched: {kind}"] += 1
        if kind != "board.sync":
            self._apply(kind, data)
            return
        if self._synced and not data["reason"]:
            self._violate("the board came instead of what was missed, without a reason")
        self._reasons[data["reason"] or ""] += 1
        self._synced, self._moving = True, None
        self.tasks = tasks or {}


class PackagedClient(WatchedClient):
    """The Python client of the package."""

    _watched: relay.client.Board | None = None

    async def live(self) -> None:
        """Follow the board, for ever, and tear the connection now and then."""
        async with relay.client.connect("ws://relay.invalid", token=self._choose_relay) as self._relay:
            self._watched = await self._relay.subscribe(self.board)
            tearing = asyncio.create_task(self._tear())
            try:
                async for change in self._watched:
                    self._hear(change)
            finally:
                tearing.cancel()

    async def _choose_relay(self) -> None:
        """Be called before each attempt, as the token function; there is no token."""
        self._relay._url = self._chance.choice(self._urls())  # noqa: SLF001  # that of a relay which runs

    async def _tear(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / 4))
            link = self._relay._link  # noqa: SLF001  # a network has no public name either
            if link and link._connection and not self.calm.is_set():  # noqa: SLF001
                link._connection.transport.abort()  # noqa: SLF001
                self.counts["torn"] += 1

    def _hear(self, change: relay.client.Change) -> None:
        match change.type:
            case "board.sync":
                tasks = {str(name): dict(task) for name, task in (change.tasks or {}).items()}
                self._note(change.type, {"reason": change.reason}, tasks)
            case "task.created":
                self._note(change.type, dict(change.task or {}))
            case "task.updated":
                self._note(change.type, {"id": change.id, "changes": change.changes})
            case "task.moved":
                self._note(change.type, {"id": change.id, "fromLane": change.from_lane, "toLane": change.to_lane})
            case _:
                self._note(change.type, {"id": change.id})

    async def check(self, audit: Audit, faults: Container[str]) -> None:
        await super().check(audit, faults)
        if self._watched is None or self._watched.tasks != self.tasks:
            self._violate("the board that it holds is not what its changes lead to")
