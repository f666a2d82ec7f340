"""The Python client on real sockets, and a server that a test scripts: subscriptions, refusals, proxies, forks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from relay import client
from relay.client import RelayError, link
from relay.postgres.embedded import free_port

SECONDS = 10.0
ELSEWHERE = "127.0.0.2"
"""An address of this machine that the client takes for another's."""

TASK = {"id": "a", "lane": "todo"}
GOOD = {"todo": [TASK], "done": []}
TWICE = {"todo": [TASK], "done": [TASK | {"lane": "done"}]}


class Server:
    """Answers handshakes with the statuses that wait, then 101; each subscription with a board."""

    def __init__(self, lanes: object, statuses: Sequence[HTTPStatus]) -> None:
        self.heard: list[str] = []
        self.url = ""
        self._lanes = lanes
        self._statuses = list(statuses)
        self._connections: list[ServerConnection] = []

    def refuse(self, connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(self._statuses.pop(0), "") if self._statuses else None

    async def follow(self, connection: ServerConnection) -> None:
        self._connections.append(connection)
        async for text in connection:
            message = json.loads(text)
            self.heard.append(message["type"])
            if message["type"] == "subscribe":
                top = {"type": "board.sync", "boardId": "default", "cursor": "c"}
                await connection.send(json.dumps(top | {"data": {"lanes": self._lanes}}))

    async def create(self, name: str) -> None:
        """Tell of a task on the newest connection."""
        message = {"type": "task.created", "data": {"id": name, "lane": "todo"}}
        batch = {"type": "batch", "boardId": "default", "cursor": "c", "data": [message]}
        await self._connections[-1].send(json.dumps(batch))


@contextlib.asynccontextmanager
async def serving(
    lanes: object = GOOD, *, statuses: Sequence[HTTPStatus] = (), host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    server = Server(lanes, statuses)
    async with serve(server.follow, host, 0, process_request=server.refuse) as listening:
        server.url = f"ws://{host}:{listening.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(SECONDS):
            yield server


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client wait no longer than it must."""
    monkeypatch.setattr("random.random", lambda: 0.0)


async def test_subscriptions_to_one_board_are_read_and_ended_by_themselves() -> None:
    """Each has all changes from its own beginning; the relay gets one subscribe, and an unsubscribe at the end."""
    async with serving() as server, client.connect(server.url) as relay:
        first = await relay.subscribe("default")
        assert (await anext(first)).type == "board.sync"
        await server.create("b")
        assert (await anext(first)).id == "b"
        second = await relay.subscribe("default")
        sync = await anext(second)
        assert (sync.type, list(sync.tasks or ())) == ("board.sync", ["a", "b"])
        await server.create("c")
        assert [(await anext(board)).id for board in (first, second)] == ["c", "c"]

        second.unsubscribe()
        second.unsubscribe()
        await server.create("d")
        assert (await anext(first)).id == "d"
        assert (first.state, list(first.tasks)) == ("live", ["a", "b", "c", "d"])
        assert (second.state, list(second.tasks), len(second.lanes["todo"])) == ("offline", ["a", "b", "c"], 3)
        assert server.heard == ["subscribe"]
        first.unsubscribe()
        await relay.subscribe("default")
        assert server.heard == ["subscribe", "unsubscribe", "subscribe"]


async def test_a_subscription_that_is_not_waited_for_ends_alone() -> None:
    """Given up before the board came, it takes nothing from another that waits."""
    async with serving(statuses=[HTTPStatus.SERVICE_UNAVAILABLE]) as server, client.connect(server.url) as relay:
        patient = asyncio.create_task(relay.subscribe("default"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await relay.subscribe("default")
        assert (await patient).state == "live"


async def test_a_board_that_cannot_be_held_is_an_error() -> None:
    """The client asks a few times, then says what is wrong with it and stops asking."""
    async with serving(TWICE) as server, client.connect(server.url) as relay:
        with pytest.raises(RelayError, match=r'two tasks with the id "a".*relay check.*after 5 attempts') as error:
            await relay.subscribe("default")
        assert error.value.code == "unusable_board"
    assert server.heard.count("subscribe") == 5


async def test_a_relay_is_used_within_its_block_and_no_second_time() -> None:
    """A board was waited for that could not come, or an end that could not."""
    async with serving() as server:
        relay = client.connect(server.url)
        with pytest.raises(RelayError, match="not open here: use it in `async with"):
            await relay.subscribe("default")
        async with relay:
            board = await relay.subscribe("default")
            with pytest.raises(RelayError, match="opened before"):
                await relay.__aenter__()
            with pytest.raises(RelayError, match="open in another event loop"):
                await asyncio.to_thread(asyncio.run, relay.subscribe("default"))
            assert board.state == "live"
        with pytest.raises(RelayError, match="opened before"):
            await relay.__aenter__()
        with pytest.raises(RelayError, match="opened before"):
            client.sync.Relay(relay).__enter__()


async def test_threads_that_ask_while_another_closes_are_answered() -> None:
    """A request that came when the client's thread was about to end was waited for without end."""
    async with serving() as server:
        for _ in range(3):
            relay = client.sync.connect(server.url)
            await asyncio.to_thread(relay.__enter__)
            board = await asyncio.to_thread(relay.subscribe, "default")
            calls: list[Callable[[], object]] = [
                lambda: board.tasks,  # noqa: B023
                lambda: relay.subscribe("default").unsubscribe(),  # noqa: B023
            ]
            threads = [
                threading.Thread(target=ask_until_closed, args=(relay, call), daemon=True) for call in calls * 2
            ]
            for thread in threads:
                thread.start()
            await asyncio.sleep(0.01)
            await asyncio.to_thread(relay.close)
            for thread in threads:
                await asyncio.to_thread(thread.join, SECONDS / 5)
            assert not any(thread.is_alive() for thread in threads)


def ask_until_closed(relay: client.sync.Relay, call: Callable[[], object]) -> None:
    """Call again and again."""
    with contextlib.suppress(RelayError, StopIteration):
        while relay.is_open:
            call()


@pytest.mark.parametrize("bad", ["two words", "", 7], ids=["a space", "empty", "a number"])
async def test_a_token_that_cannot_be_presented_is_an_error(bad: str) -> None:
    """Of a token function, too: no attempt can be any better."""
    async with client.connect("ws://127.0.0.1:1", token=lambda: bad) as relay:
        async with asyncio.timeout(SECONDS):
            with pytest.raises(RelayError, match=r"^the token is ") as error:
                await relay.subscribe("default")
        assert error.value.code == "closed"
        assert "two words" not in str(error.value)


async def test_a_token_given_during_an_attempt_replaces_the_one_that_is_refused() -> None:
    begun, refused = asyncio.Event(), [HTTPStatus.UNAUTHORIZED]

    async def token() -> str:
        begun.set()
        return "old"

    async with serving(statuses=refused) as server, client.connect(server.url, token=token) as relay:
        subscribing = asyncio.create_task(relay.subscribe("default"))
        await begun.wait()
        await relay.authenticate("fresh")
        assert (await subscribing).state == "live"


async def test_a_limit_that_is_met_is_explained_once_and_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    """Even to a program that configures no logging, for warnings are shown."""
    caplog.set_level(logging.INFO, "relay.client")
    limits = [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE]
    async with serving(statuses=limits) as server, client.connect(server.url) as relay:
        await relay.subscribe("default")

    failures = [record for record in caplog.records if "no connection" in record.getMessage()]
    assert [record.levelname for record in failures] == ["WARNING", "INFO"]
    assert (
        "HTTP 429, more connections in a minute than the relay allows: see WS_RATE_LIMIT_PER_CLIENT"
        in failures[0].getMessage()
    )
    assert "see WS_MAX_CONNECTIONS" in failures[1].getMessage()


async def test_a_proxy_of_the_environment_is_named_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password is not; a proxy that refuses is no reason to go on trying."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy, serving(host=ELSEWHERE) as server:
        address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("http_proxy", f"http://user:secret@{address}")
        async with client.connect(server.url) as relay:
            with pytest.raises(RelayError) as error:
                await relay.subscribe("default")
        async with client.connect(server.url, proxy=False) as relay:
            assert list((await relay.subscribe("default")).tasks) == ["a"]

    assert str(error.value) == (
        f"proxy rejected connection: HTTP 407, through the proxy http://{address}, which the environment names:"
        f" to go without, set no_proxy={ELSEWHERE}"
    )


async def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads that a connection was refused learns by whom; waiting may help."""
    proxy = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConnectionRefusedError) as refused:
        async with link.connected(f"ws://{ELSEWHERE}:4002", None, lambda: None):
            pass

    assert f"through the proxy {proxy}, " in link.reason(refused.value)
    assert link.hopeless(refused.value) is None


FORKING = """
import os, sys
import relay.client

with relay.client.sync.connect(sys.argv[1]) as connection:
    board = connection.subscribe("default", timeout=10)
    if not (child := os.fork()):
        print(connection.state, board.state, flush=True)
        for call in (lambda: connection.subscribe("default"), board.next, lambda: board.tasks):
            try:
                call()
            except relay.client.RelayError as error:
                print(error.code, "connect after the fork" in str(error), flush=True)
        sys.exit()
    os.waitpid(child, 0)
    connection.subscribe("default", timeout=10)
    print(board.state, board.next(timeout=10).type)
"""


async def test_a_fork_gets_an_error_that_the_connection_is_not_its_own() -> None:
    """It neither waits for a thread that it does not have, nor ends the connection of the process it comes from."""
    async with serving() as server:
        command = [sys.executable, "-W", "ignore", "-c", FORKING, server.url]
        finished = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=SECONDS)

    assert finished.stderr == ""
    assert finished.stdout.splitlines() == ["offline offline", *["forked True"] * 3, "live board.sync"]
    assert server.heard == ["subscribe"]
