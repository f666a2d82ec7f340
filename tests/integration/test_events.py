"""Server-sent events: what a board's events are, how a client resumes, and who is turned away, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from relay.auth.gate import Gate
from relay.auth.rates import Rates
from relay.auth.tokens import Access, static_tokens
from relay.config.origins import Origins
from relay.hub import boards
from relay.model import messages
from relay.websocket import ending, stream
from relay.websocket.events import RETRY_MILLISECONDS
from relay.websocket.server import Endpoint
from tests.contract import checked
from tests.integration.client import Client, until
from tests.integration.conftest import Relay, listening
from tests.integration.test_access import relay_of, token
from tests.integration.test_server import MEBIBYTE, change, table
from tests.servers import Database

SECONDS = 20
PAGE = "https://app.example.com"


@dataclass
class Event:
    """An event as a client gets it."""

    id: str | None
    message: dict[str, Any]


@dataclass
class Reader:
    """A client of events made of bytes. What it is sent must fit what it holds."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    cursor: str | None = None
    comments: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def to(
        cls, endpoint: Endpoint, path: str = "/boards/default/events", method: str = "GET", **headers: str
    ) -> AsyncIterator[Reader]:
        """Ask for events, and read the head of the answer."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        assert endpoint.port
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", endpoint.port))
        found = cls(*await asyncio.open_connection(sock=sock, limit=8 * MEBIBYTE))
        lines = [f"{method} {path} HTTP/1.1", "Host: relay", *(f"{name}: {value}" for name, value in headers.items())]
        found.writer.write("\r\n".join([*lines, "", ""]).encode())
        try:
            async with asyncio.timeout(SECONDS):
                head = (await found.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            found.status = int(head[0].split()[1])
            found.headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            if found.status == 200:
                assert int((await found.reader.readuntil(b"\n\n")).removeprefix(b"retry: ")) in RETRY_MILLISECONDS
            yield found
        finally:
            found.writer.transport.abort()

    async def next(self) -> Event:
        """Return the next event, applied; comments are kept."""
        event = Event(None, {})
        while line := await self._line():
            if line.startswith(":"):
                self._note(line)
                assert await self._line() == ""
                continue
            name, _, value = line.partition(": ")
            if name == "id":
                event.id = value
            else:
                assert (name, event.message) == ("data", {})
                event.message = checked(value)
        self._apply(event)
        return event

    async def end(self) -> None:
        """Wait for the end of the stream; what comments come before are kept."""
        while (line := await self._line()) is not None:
            assert line == "" or line.startswith(":")
            self._note(line)

    def _note(self, line: str) -> None:
        """Keep a comment that says something."""
        if comment := line[2:]:
            self.comments.append(comment)

    async def _line(self) -> str | None:
        async with asyncio.timeout(SECONDS):
            line = await self.reader.readline()
        return line.decode().removesuffix("\n").removesuffix("\r") if line else None

    def _apply(self, event: Event) -> None:
        message = event.message
        assert event.id == message.get("cursor")
        self.cursor = event.id or self.cursor
        if message["type"] == "board.sync":
            self.tasks = {task["id"]: task for lane in message["data"]["lanes"].values() for task in lane}
        for each in message["data"] if message["type"] == "batch" else ():
            data = each["data"]
            match each["type"]:
                case "task.created":
                    assert data["id"] not in self.tasks
                    self.tasks[data["id"]] = data
                case "task.updated":
                    self.tasks[data["id"]] |= data["changes"]
                case "task.deleted":
                    del self.tasks[data["id"]]


def changes(event: Event) -> list[str]:
    return [each["type"] for each in event.message["data"]]


async def test_a_board_is_read_as_events_and_resumed_exactly(
    database: Database, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages of a resumable client, a large batch in parts with the id on the last, and no change twice."""
    monkeypatch.setattr(messages, "PART_BYTES", 100)
    database.execute(
        "alter table tasks add note json; insert into tasks (id, title, note) values ('a', 'A', E'[1,\\n2]')"
    )
    async with Reader.to(relay.endpoint) as reader, Client.to(relay.url) as client:
        assert reader.status == 200
        assert reader.headers == {
            "content-type": "text/event-stream",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "connection": "close",
        }
        assert (await reader.next()).message["type"] == "board.sync"
        await client.resume("default", None)
        database.execute("update tasks set title = 'B'")
        assert changes(await reader.next()) == ["task.updated"]
        await client.receive_batch()
        assert (reader.tasks, reader.cursor) == (client.tasks, client.cursor)
        assert reader.tasks == table(database)
        before = reader.cursor
        database.execute("insert into tasks (id, title) select n, 'T' from generate_series(1, 9) n")
        parts = [await reader.next()]
        while parts[-1].id is None:
            parts.append(await reader.next())
    assert len(parts) > 1
    assert sum(len(changes(part)) for part in parts) == 9
    database.execute("delete from tasks where id = 'a'")
    for cursor, missed in ((reader.cursor, ["task.deleted"]), (before, ["task.created"] * 9 + ["task.deleted"])):
        async with Reader.to(relay.endpoint, **{"Last-Event-ID": str(cursor)}) as back:
            found: list[str] = []
            while back.cursor is None:
                back.tasks = back.tasks or {"a": {}}
                found += changes(await back.next())
            assert found == missed
    async with Reader.to(relay.endpoint, **{"Last-Event-ID": "no cursor"}) as back:
        assert (await back.next()).message["reason"] == "cursor_invalid"
        assert back.tasks == table(database)
    await until(lambda: relay.hub.subscriptions == 0)


async def test_a_part_of_a_board_is_read_as_events_and_resumed_exactly(database: Database, relay: Relay) -> None:
    """As over WebSocket, with the same cursors: a cursor is good for the same part alone."""
    database.execute(
        "insert into tasks (id, title, lane) select n, n, 'zu später' from unnest('{a,b,7,8}'::text[]) n"
    )
    path = "/boards/default/events?token=t&lane=done&lane=zu+sp%C3%A4ter&column=title&task=%61&task=7"
    selection = {"lanes": ["done", "zu später"], "columns": ["title"], "tasks": ["a", 7]}
    async with Reader.to(relay.endpoint, path) as reader, Client.to(relay.url) as client:
        await reader.next()
        await client.send({"type": "subscribe", "boardId": "default", "cursor": None, **selection})
        await client.receive_batch()
        assert reader.tasks.keys() == {"a", "7"}
        assert reader.tasks["7"] == {"id": "7", "boardId": "default", "lane": "zu später", "title": "7"}
        database.execute("update tasks set lane = 'todo', title = 'T' where id in ('b', '7')")
        assert changes(await reader.next()) == ["task.deleted"]
        await client.receive_batch()
        assert (reader.tasks, reader.cursor) == (client.tasks, client.cursor)
    database.execute("update tasks set description = 'D'; update tasks set lane = 'done' where id = '7'")
    cursor = {"Last-Event-ID": str(reader.cursor)}
    async with Reader.to(relay.endpoint, path, **cursor) as back:
        back.tasks = reader.tasks
        assert changes(await back.next()) == ["task.created"]
        assert {task["id"]: task["title"] for task in back.tasks.values()} == {"a": "a", "7": "T"}
    for other in ("/boards/default/events", path + "&lane=todo"):
        async with Reader.to(relay.endpoint, other, **cursor) as back:
            assert (await back.next()).message["reason"] == "cursor_invalid"


async def test_events_of_a_selection_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the answer has begun, so that a client can tell by its status."""
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 0)
    async with listening() as endpoint:
        async with Reader.to(endpoint, "/boards/default/events?lane=todo") as reader:
            assert (reader.status, reader.headers["retry-after"]) == (503, "5")
            assert (await reader.reader.read()).startswith(b"there is no room for one more selection: ")
        await until(lambda: endpoint.connections == 0)


async def test_events_of_a_part_whose_room_others_need_end_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says of which board, and the end; the client may come back for another part."""
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 2)
    path = "/boards/default/events?lane={}"
    async with (
        listening() as endpoint,
        Reader.to(endpoint, path.format("todo")),
        Reader.to(endpoint, path.format("done")) as reader,
        Client.to(f"ws://127.0.0.1:{endpoint.port}", "127.0.0.2") as other,
    ):
        await other.send({"type": "subscribe", "boardId": "default", "cursor": None, "lanes": ["backlog"]})
        error = (await reader.next()).message
        assert (error["type"], error["data"]["code"]) == ("error", "too_many_selections")
        assert error["data"]["boardId"] == "default"
        for connection in endpoint.clients:
            connection.beat()
        assert (await reader.reader.read()).startswith(b": 4008 ")


@pytest.mark.parametrize("board", ["a b/c?d", "ü", "%", "x" * messages.MAX_BOARD_CHARACTERS])
async def test_any_board_can_be_named_below_any_prefix(board: str) -> None:
    path = f"/relay/boards/{quote(board, safe='')}/events?token=t"
    async with listening() as endpoint, Reader.to(endpoint, path) as reader:
        assert reader.status == 200
        [connection] = endpoint.clients
        assert endpoint.hub.following(connection.outbox) == [board]
        assert connection.outbox.address == "127.0.0.1"


TURNED_AWAY: list[tuple[int, str, str, Mapping[str, str]]] = [
    (401, "GET", "/boards/default/events", {}),
    (401, "GET", "/boards/default/events?token=wrong", {}),
    (401, "GET", "/boards/default/events?token=all", {"Origin": "https://evil.example.com"}),
    (403, "GET", "/boards/other/events?token=some", {}),
    (400, "GET", "/boards/%00/events?token=all", {}),
    (400, "GET", "/boards/%ff/events?token=all", {}),
    (400, "GET", f"/boards/{'x' * 513}/events?token=all", {}),
    (400, "GET", "/boards/default/events?token=all&lane=%ff", {}),
    (400, "GET", f"/boards/default/events?token=all&task={'7' * 2049}", {}),
    (400, "GET", f"/boards/default/events?{'column=&' * 101}token=all", {}),
    (405, "POST", "/boards/default/events?token=all", {}),
    (405, "HEAD", "/boards/default/events?token=all", {}),
    (405, "OPTIONS", "/?token=all", {"Origin": PAGE}),
    (426, "GET", "/boards/default?token=all", {}),
    (426, "GET", "/boards//events?token=all", {}),
    (426, "GET", "/boards/default/events/?token=all", {}),
    (401, "OPTIONS", "/boards/default/events", {"Origin": "https://evil.example.com"}),
    (204, "OPTIONS", "/boards/default/events", {"Origin": PAGE}),
    (200, "GET", "/boards/default/events?token=some", {}),
    (200, "GET", f"/boards/default/events?{'lane=&column=&' * 50}unknown=x&token=all", {}),
    (200, "GET", "/boards/default/events", {"Authorization": "Bearer all"}),
    (200, "GET", "/boards/default/events?token=all", {"Origin": PAGE}),
    (200, "GET", "/boards/default/events?token=all", {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}),
    (401, "GET", "/boards/default/events", {"Connection": "Upgrade", "Upgrade": "WebSocket"}),
]


async def test_events_are_sent_only_to_clients_that_may_follow_the_board() -> None:
    """As over WebSocket; a page of an allowed origin may read every answer, and no other page any."""
    gate = Gate(Access(static_tokens(["all", "some:default"], "test")), origins=Origins.of([PAGE]))
    async with listening(gate=gate) as endpoint:
        for status, method, path, headers in TURNED_AWAY:
            async with Reader.to(endpoint, path, method, **headers) as reader:
                assert (reader.status, path) == (status, path)
                readable = headers.get("Origin") == PAGE and status != 405
                assert reader.headers.get("access-control-allow-origin") == (PAGE if readable else None)
                if method == "OPTIONS" and status == 204:
                    assert reader.headers["access-control-allow-methods"] == "get"
                    assert reader.headers["access-control-allow-headers"] == "authorization, last-event-id"
                if status != 200:
                    assert len(await reader.reader.read()) < 200
        await until(lambda: endpoint.connections == 0)


async def test_events_count_against_the_limits_of_connections() -> None:
    gate = Gate(rates=Rates(3, 100))
    async with listening(max_connections=1, gate=gate) as endpoint:
        async with Reader.to(endpoint) as first, Reader.to(endpoint, Origin=PAGE) as second:
            assert (first.status, second.status) == (200, 503)
            assert second.headers["access-control-allow-origin"] == PAGE.lower()
            async with Reader.to(endpoint, method="OPTIONS", Origin=PAGE), Reader.to(endpoint) as third:
                assert third.status == 429
                assert int(third.headers["retry-after"]) > 0
        await until(lambda: endpoint.connections == 0)
        assert endpoint.refusals.counts == {"too many connections": 1, "too many connections a minute": 1}


async def test_nothing_is_sent_to_a_client_whose_connection_is_ending() -> None:
    """A board that could not be had raised an error in the source then, and all boards were read again."""
    async with (
        listening() as endpoint,
        Reader.to(endpoint) as reader,
        connect(f"ws://127.0.0.1:{endpoint.port}", proxy=None) as socket_,
    ):
        await socket_.send('{"type":"subscribe","boardId":"default"}')
        await until(lambda: endpoint.hub.subscriptions == 2)
        for connection in endpoint.clients:
            connection.close(messages.CloseCode.SERVICE_RESTART, "stopping")
        endpoint.hub.refuse("default", messages.error("not_allowed", "no"))
        await reader.end()
        assert reader.comments == ["1012 stopping"]
        with pytest.raises(ConnectionClosed):
            await socket_.recv()


async def test_a_stream_ends_when_a_right_or_a_token_does(database: Database) -> None:
    """Until the database has allowed the board, nothing is answered; a refusal is HTTP's, and later an event."""
    answers: asyncio.Queue[bool] = asyncio.Queue()

    class Judge:
        async def may_read(self, questions: Any) -> list[bool]:
            return [await answers.get() for _ in questions]

    gate = Gate(Access(static_tokens(["all"], "test"), secret="s" * 32))
    async with relay_of(database, gate, authorizer=Judge()) as relay:
        answers.put_nowait(False)
        async with Reader.to(relay.endpoint, "/boards/default/events?token=all") as refused:
            assert refused.status == 403
            assert await refused.reader.read() == b"this board may not be followed\n"
        answers.put_nowait(True)
        async with Reader.to(relay.endpoint, "/boards/default/events?token=all") as reader:
            assert (await reader.next()).message["type"] == "board.sync"
            [connection] = [each for each in relay.endpoint.clients if relay.hub.following(each.outbox)]
            answers.put_nowait(False)
            assert connection.client
            connection.client.ask_again()
            event = await reader.next()
            assert (event.message["type"], event.message["data"]["code"]) == ("error", "not_allowed")
            await reader.end()
            assert reader.comments == ["4003 this board may not be followed"]


async def test_a_stream_ends_with_its_token_and_with_the_relay(database: Database) -> None:
    gate = Gate(Access(secret="a secret that is long enough, by far"))
    async with relay_of(database, gate) as relay:
        async with Reader.to(relay.endpoint, f"/boards/default/events?token={token(seconds=-4)}") as reader:
            assert (await reader.next()).message["type"] == "board.sync"
            await reader.end()
            assert reader.comments == ["4001 the token has expired"]
        async with Reader.to(relay.endpoint, f"/boards/default/events?token={token()}") as reader:
            assert (await reader.next()).message["type"] == "board.sync"
            await relay.endpoint.drain(0)
            await reader.end()
            assert reader.comments == ["1012 the relay is stopping"]
        await until(lambda: relay.endpoint.connections == 0)
        assert relay.endpoint.closed == {"4001": 1, "1012": 1}


async def test_a_stream_ends_whose_board_cannot_be_had(database: Database, relay: Relay) -> None:
    """It says why, and takes no place for ever."""
    database.execute(
        "select relay.unwatch('tasks'); create table numbers (id int primary key, board_id int, lane text); "
        "select relay.watch('numbers')"
    )
    async with Reader.to(relay.endpoint, "/boards/007/events") as reader:
        event = await reader.next()
        assert event.message["data"]["code"] == "invalid_board_id"
        for connection in relay.endpoint.clients:
            connection.beat()
        assert "4008" in (await reader.reader.read()).decode()
    await until(lambda: relay.endpoint.connections == 0)


async def test_a_silent_stream_is_kept_alive_and_one_that_talks_is_ended(database: Database) -> None:
    async with Relay(database.dsn, heartbeat=0.1).running() as relay, Reader.to(relay.endpoint) as reader:
        await reader.next()
        for _ in range(3):
            async with asyncio.timeout(SECONDS):
                assert await reader.reader.readuntil(b"\n\n") == b":\n\n"
        reader.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.end()
        await until(lambda: relay.endpoint.connections == 0)


async def test_a_slow_reader_of_events_is_shown_the_board_once_when_it_reads_again(
    database: Database, relay: Relay, client: Client
) -> None:
    """It costs a bounded buffer, and holds up nobody."""
    database.execute("insert into tasks (id, title) values ('big', 'B')")
    await client.until_last(database)
    async with Reader.to(relay.endpoint) as slow:
        await slow.next()
        slow.reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001
        [connection] = [each for each in relay.endpoint.clients if each.outbox.frame.__name__ == "event"]
        for number in range(10):
            await change(database, client, number)
        assert MEBIBYTE < connection.outbox.waiting < 3 * MEBIBYTE
        slow.reader._transport.resume_reading()  # type: ignore[attr-defined]  # noqa: SLF001
        events = [await slow.next()]
        while slow.tasks != client.tasks:
            events.append(await slow.next())
        assert [each.message.get("reason") for each in events if each.message["type"] == "board.sync"] == [
            "fell_behind"
        ]
        assert len(events) < 10
        assert slow.tasks == table(database)


async def test_a_reader_of_events_that_reads_nothing_is_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SILENT_BEATS", 100)
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.1)
    database.execute("insert into tasks (id, title) values ('big', 'B')")
    async with Relay(database.dsn, heartbeat=0.5).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        async with Reader.to(relay.endpoint) as frozen:
            frozen.reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001
            number = 0
            while relay.endpoint.connections > 1:
                await change(database, client, number := number + 1)
        assert relay.endpoint.closed["1013"] == 1
        await client.until_last(database)
        assert client.tasks == table(database)
