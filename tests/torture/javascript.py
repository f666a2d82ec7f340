"""The JavaScript client in the torture: it runs in Node, all boards on one connection, and tells every change.

Rules:
- It is the file of the package as it is, unless a mutant of it is asked for.
- Its reports of a board are in order, so what it shows when asked is what the changes before must lead to.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Final

from tests.torture.clients import WatchedClient
from tests.torture.oracle import Audit

CLIENT: Final = Path(__file__).parents[2] / "relay" / "client" / "js" / "client.js"
FOLLOW: Final = Path(__file__).with_name("follow.mjs")
WS: Final = Path(__file__).parents[1] / "acceptance" / "guide" / "node_modules" / "ws"
LONGEST_LINE: Final = 2**27
ANSWER_SECONDS: Final = 20


def missing() -> str | None:
    """Say what the JavaScript client lacks here to run, if it lacks anything."""
    if not shutil.which("node"):
        return "Node.js is not installed: https://nodejs.org, version 18 or later"
    if not WS.exists():
        return "npm package ws is not installed: npm install --prefix tests/acceptance/guide"
    return None


class JavaScript:
    """One Node process, with one connection, and a client for each board."""

    def __init__(
        self, name: str, boards: tuple[str, ...], urls: Callable[[], list[str]], seed: str, program: Path = CLIENT
    ) -> None:
        self.clients = [JavaScriptClient(self, f"{name}-{board}", board, urls, seed) for board in boards]
        self._program = program
        self._urls = urls
        self._chance = random.Random(seed)
        self._process: Process

    async def live(self) -> None:
        """Follow the boards, for ever, and tear the connection now and then."""
        boards = [client.board for client in self.clients]
        self._process = await asyncio.create_subprocess_exec(
            "node", FOLLOW, self._program, *boards, stdin=PIPE, stdout=PIPE, limit=LONGEST_LINE
        )
        tearing = asyncio.create_task(self._tear())
        try:
            assert self._process.stdout
            async for line in self._process.stdout:
                self._hear(json.loads(line))
            raise RuntimeError(f"Node ended with exit code {await self._process.wait()}")
        finally:
            tearing.cancel()
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()

    def order(self, **order: object) -> None:
        """Give the process an order."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _tear(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / 4))
            if not self.clients[0].calm.is_set():
                self.order(tear=self._chance.choice([0, 1, 5, "part", "part"]))
                self.order(show=self._chance.choice(self.clients).board)

    def _hear(self, line: dict[str, Any]) -> None:
        if "asks" in line:
            self.order(url=self._chance.choice(self._urls()))
        elif "torn" in line:
            self.clients[0].counts["torn"] += 1
        else:
            [client] = [client for client in self.clients if client.board == line["board"]]
            client.hear(line)


class JavaScriptClient(WatchedClient):
    """One board of the JavaScript client of the package."""

    def __init__(self, process: JavaScript, name: str, board: str, urls: Callable[[], list[str]], seed: str) -> None:
        super().__init__(name, board, urls, seed)
        self._process = process
        self._shown = asyncio.Event()

    def hear(self, line: dict[str, Any]) -> None:
        """Take a change, or the board as it is shown."""
        if "shown" in line:
            self._compare(**line["shown"])
            self._shown.set()
            return
        change = line["change"]
        match change["type"]:
            case "board.sync":
                tasks = {task["id"]: task for task in change["tasks"]}
                self._note("board.sync", {"reason": change.get("reason")}, tasks)
            case "task.created":
                self._note("task.created", change["task"])
            case kind:
                its = ("id", "changes", "fromLane", "toLane")
                self._note(kind, {name: change[name] for name in its if name in change})

    async def check(self, audit: Audit, faults: Container[str]) -> None:
        await super().check(audit, faults)
        self._shown.clear()
        self._process.order(show=self.board)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._shown.wait()
        except TimeoutError:
            self._violate("it does not answer")

    def _compare(self, tasks: list[dict[str, Any]], lanes: dict[str, list[dict[str, Any]]]) -> None:
        if {task["id"]: task for task in tasks} != self.tasks:
            self._violate("the board that it holds is not what its changes lead to")
        in_lanes = [(task["id"], lane) for lane, its in lanes.items() for task in its]
        # The lane of a task without one is called null.
        if sorted(in_lanes) != sorted((name, task["lane"] or "null") for name, task in self.tasks.items()):
            self._violate("its lanes are not what its changes lead to")
