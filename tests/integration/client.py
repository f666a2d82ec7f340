"""A subscriber for tests: takes messages off a real socket and holds the board they make."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.contract import checked
from tests.servers import Database

Message = tuple[str, dict[str, Any]]
Tasks = dict[Any, dict[str, Any]]

_SECONDS = 20.0
_LAST = itertools.count(1)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until a condition holds; raise TimeoutError if it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event for tests
            await asyncio.sleep(0.01)


class Client:
    """One connection. What it is sent for a task must fit what it holds of the board, or it fails."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.tasks: Tasks = {}
        self.cursor: str | None = None
        self.reason: str | None = None
        """Why the last board.sync came."""

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, url: str, address: str = "127.0.0.1") -> AsyncIterator[Client]:
        """Connect from an address, for as long as the context lasts."""
        async with connect(url, max_size=None, max_queue=None, local_addr=(address, 0)) as connection:
            yield cls(connection)

    async def subscribe(self, board: str) -> Message:
        """Subscribe and return what came first."""
        await self.send({"type": "subscribe", "boardId": board})
        return await self.receive()

    async def resume(
        self, board: str, cursor: object, tasks: dict[Any, dict[str, Any]] | None = None
    ) -> list[Message]:
        """Subscribe resumably, holding these tasks; return what came first: the board, or what was missed."""
        self.tasks = dict(tasks or {})
        await self.send({"type": "subscribe", "boardId": board, "cursor": cursor})
        return await self.receive_batch()

    async def receive_any(self) -> Any:
        """Return the next message whatever it is; a batch that is whole is applied."""
        async with asyncio.timeout(_SECONDS):
            message = checked(await self._connection.recv())
        if message["type"] == "batch":
            for each in message["data"]:
                self._apply(each["type"], each["data"])
            self.cursor = message["cursor"]
        return message

    async def receive_batch(self) -> list[Message]:
        """Return the next batch, in all its parts, or the board alone, applied."""
        found: list[Message] = []
        cursor = None
        while cursor is None:
            async with asyncio.timeout(_SECONDS):
                message = checked(await self._connection.recv())
            assert message.keys() - {"cursor", "reason"} == {"type", "boardId", "data"}
            cursor = message.get("cursor")
            if message["type"] == "board.sync":
                self.reason = message.get("reason")
                found.append(("board.sync", message["data"]))
            else:
                found += [(each["type"], each["data"]) for each in message["data"]]
        for kind, data in found:
            self._apply(kind, data)
        self.cursor = cursor
        return found

    async def send(self, message: object) -> None:
        """Send JSON."""
        await self._connection.send(json.dumps(message))

    async def send_raw(self, message: str | bytes) -> None:
        """Send text or bytes as they are."""
        await self._connection.send(message)

    async def receive(self) -> Message:
        """Return the next message, applied to the board."""
        async with asyncio.timeout(_SECONDS):
            message = checked(await self._connection.recv())
        if message["type"] == "pong":
            return "pong", {}
        assert {"type", "data"} == message.keys()
        self._apply(message["type"], message["data"])
        return message["type"], message["data"]

    def stop_reading(self) -> None:
        """Take nothing more off the socket."""
        self._connection.transport.pause_reading()

    def go_on_reading(self) -> None:
        self._connection.transport.resume_reading()

    async def closed(self) -> int:
        """Wait for the connection to end and return the code."""
        async with asyncio.timeout(_SECONDS):
            await self._connection.wait_closed()
        code = self._connection.close_code
        assert code is not None
        return code

    async def until_last(self, database: Database, board: str = "default") -> list[Message]:
        """Return all messages of what was committed so far; a task made to be the last of them says when."""
        last = f"last-{next(_LAST)}"
        database.execute("insert into public.tasks (id, board_id, title) values (%s, %s, 'last')", last, board)
        found: list[Message] = []
        while True:
            kind, data = await self.receive()
            if kind == "task.created" and data["id"] == last:
                return found
            if kind == "board.sync" and last in self.tasks:
                return [*found, (kind, data)]
            found.append((kind, data))

    def _apply(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "board.sync":
                self.tasks = {task["id"]: task for lane in data["lanes"].values() for task in lane}
            case "task.created":
                assert data["id"] not in self.tasks
                self.tasks[data["id"]] = dict(data)
            case "task.updated":
                self.tasks[data["id"]].update(data["changes"])
            case "task.moved":
                assert self.tasks[data["id"]]["lane"] == data["fromLane"]
                self.tasks[data["id"]]["lane"] = data["toLane"]
            case "task.deleted":
                del self.tasks[data["id"]]
