"""What anybody on the network may do, on real sockets: it costs little, it is seen, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from aiohttp import ClientSession
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from relay.auth.gate import Gate
from relay.auth.rates import Rates
from relay.config.origins import Origins
from relay.config.proxies import Proxies
from relay.http import app as monitor
from relay.http.app import Monitor
from relay.model import messages as protocol
from relay.model.status import Status
from relay.websocket import listener, server
from relay.websocket.connection import Connection
from relay.websocket.limits import Limits
from relay.websocket.listener import ARRIVALS, Arrival, Files, _open_files
from relay.websocket.server import Endpoint
from relay.websocket.sockets import bind, bind_path
from tests.integration.client import Client, until
from tests.integration.conftest import Idle, listening

SECONDS = 15.0
HEAD = (
    b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
HANDSHAKE = HEAD + b"\r\n"


class Judge:
    """Says yes to everything, once it is let."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []
        self.free = asyncio.Event()

    async def may_read(self, questions: Any) -> list[bool]:
        self.asked += questions
        await self.free.wait()
        return [True] * len(questions)


@contextlib.asynccontextmanager
async def monitoring() -> AsyncIterator[int]:
    """Run a monitor of nothing; yield its port."""

    async def status() -> Status:
        return Status(running=False, port=0)

    found = Monitor(status)
    try:
        yield await found.open("127.0.0.1", 0)
    finally:
        await found.close()


class Silent:
    """Connections that say nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sockets: list[socket.socket] = []

    async def come(self, count: int, address: str = "127.0.0.1") -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((address, 0))
            self.sockets.append(sock)
            await loop.sock_connect(sock, ("127.0.0.1", self._port))

    def held(self) -> list[bool]:
        """Tell of each whether the relay holds it still."""
        return [is_open(sock) for sock in self.sockets]


@contextlib.contextmanager
def silent(port: int) -> Any:
    """Yield a stranger whose connections end with the test."""
    stranger = Silent(port)
    try:
        yield stranger
    finally:
        for sock in stranger.sockets:
            sock.close()


def is_open(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def answer_to(port: int, data: bytes) -> bytes:
    """Send bytes and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(SECONDS):
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def pong(url: str, **options: Any) -> None:
    """Check that a client is served."""
    async with connect(url, proxy=None, **options) as connection, asyncio.timeout(SECONDS):
        await connection.send('{"type":"ping"}')
        assert json.loads(await connection.recv()) == {"type": "pong"}


def url(endpoint: Endpoint) -> str:
    return f"ws://127.0.0.1:{endpoint.port}"


# Connections that say nothing


async def test_silent_connections_crowd_out_their_own_and_nobody_else() -> None:
    """They are bounded; a client with one connection is served, before and after, from the same address too."""
    async with listening() as endpoint:
        assert endpoint.port
        with silent(endpoint.port) as other, silent(endpoint.port) as stranger:
            await other.come(1, "127.0.0.2")
            await stranger.come(ARRIVALS.start + 50)
            await until(lambda: sum(stranger.held()) == ARRIVALS.start - 1)

            assert other.held() == [True]
            assert stranger.held() == [False] * 51 + [True] * (ARRIVALS.start - 1)
            assert endpoint.arrivals == ARRIVALS.start
            assert endpoint.refusals.counts == {"crowded out": 51}
            assert endpoint.listener.crowded
            await pong(url(endpoint))
            assert other.held() == [True]


@pytest.mark.parametrize(("connections", "arrivals"), [(1, 256), (700, 700), (10_000, 1024)])
async def test_as_many_may_be_on_their_way_in_as_may_be_connected_within_bounds(
    connections: int, arrivals: int
) -> None:
    """All clients of a relay that ends come to another one at once."""
    async with listening(max_connections=connections) as endpoint:
        for number in range(arrivals):
            assert not endpoint.listener.arrivals.full
            endpoint.listener.arrivals.add(cast(Arrival, number), "")
        assert endpoint.listener.arrivals.full
        for number in range(arrivals):
            endpoint.listener.arrivals.remove(cast(Arrival, number))


async def test_a_connection_that_is_accepted_or_closed_no_longer_counts_as_arriving() -> None:
    """Only connections on their way in are counted."""
    async with listening() as endpoint:
        assert endpoint.port
        with silent(endpoint.port) as stranger:
            await stranger.come(3)
            await until(lambda: endpoint.arrivals == 3)
        async with connect(url(endpoint), proxy=None):
            await until(lambda: endpoint.arrivals == 0)
            assert endpoint.connections == 1


async def test_the_last_files_are_not_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that would take one of them costs as many arrivals as are too many, or is not taken."""
    async with listening() as endpoint:
        assert endpoint.port
        with silent(endpoint.port) as stranger:
            await stranger.come(4)
            await until(lambda: endpoint.arrivals == 4)
            monkeypatch.setattr(listener, "_files", files := Files())
            limit = 2 * (_open_files() - 2)
            monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
            await stranger.come(1)
            await until(lambda: sum(stranger.held()) <= 2)
            monkeypatch.setattr(files, "_uncounted", 100)
            await stranger.come(2)
            await until(lambda: endpoint.arrivals == sum(stranger.held()) <= 2)
            for arrival in tuple(endpoint.listener.arrivals):
                endpoint.listener.arrivals.remove(arrival)
            await stranger.come(1)
            await until(lambda: not stranger.held()[-1])
            assert endpoint.refusals.counts.keys() == {"no file left but the reserve"}
            assert endpoint.listener.crowded


async def test_silent_connections_to_the_health_port_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question is answered meanwhile, the answer warns of them, and the connection it came on stays."""
    async with monitoring() as port, ClientSession() as session:
        with silent(port) as stranger:
            await stranger.come(monitor.CONNECTIONS + 20)
            await until(lambda: sum(stranger.held()) == monitor.CONNECTIONS)
            async with session.get(f"http://127.0.0.1:{port}/health") as response:
                assert "crowded out" in (await response.json())["warnings"][0]
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                assert 'relay_health_refused_total{reason="crowded out"} 21.0' in await response.text()
    monkeypatch.setattr(monitor, "REQUEST_SECONDS", 0.5)
    async with monitoring() as port:
        with silent(port) as stranger:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /live HTTP/1.1\r\nHost: relay\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await stranger.come(2)
            await until(lambda: not any(stranger.held()))
            await reader.readuntil(b"}")
            writer.write(b"GET /live HTTP/1.1\r\nHost: relay\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()


async def test_a_handshake_that_takes_too_long_is_counted() -> None:
    """By itself: the client said nothing that could be answered."""
    async with listening(limits=Limits(handshake_seconds=0.05)) as endpoint:
        assert endpoint.port
        assert await answer_to(endpoint.port, HEAD) == b""
        assert endpoint.refusals.counts == {"handshake took too long": 1}


# What they say


async def test_a_board_with_a_long_name_is_refused_and_not_remembered() -> None:
    """With an error; the connection lives on."""
    async with listening() as endpoint, Client.to(url(endpoint)) as client:
        for kind in ("subscribe", "unsubscribe"):
            await client.send({"type": kind, "boardId": "x" * (protocol.MAX_BOARD_CHARACTERS + 1)})
            _, data = await client.receive()
            assert data["code"] == "invalid_board_id"
            assert data["message"] == "boardId has 513 characters: expected 512 at most"
        await client.send({"type": "subscribe", "boardId": "x" * protocol.MAX_BOARD_CHARACTERS})
        await client.send({"type": "ping"})
        assert await client.receive() == ("pong", {})
        assert endpoint.hub.subscriptions == 1


async def test_boards_that_a_client_leaves_are_forgotten() -> None:
    """Of ever so many a few are remembered; then any board that it asks for may be one of those."""
    async with listening() as endpoint, Client.to(url(endpoint)) as client:
        for number in range(300):
            for kind in ("subscribe", "unsubscribe"):
                await client.send({"type": kind, "boardId": f"b{number}"})
        await client.send({"type": "ping"})
        assert await client.receive() == ("pong", {})
        (followed,) = endpoint.hub._following._of.values()  # noqa: SLF001
        assert len(followed.now) == 0
        assert len(followed.left) == 100
        assert followed.add("b299")
        assert followed.add("never")


async def test_what_waits_to_be_read_is_bounded_while_postgres_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody wants any more take the place of others for a while, which are asked for afterwards."""
    monkeypatch.setattr("relay.hub.requests.MAX_REQUESTS", 10)
    async with listening() as endpoint, Client.to(url(endpoint)) as client:
        for number in range(30):
            await client.send({"type": "subscribe", "boardId": f"b{number}"})
            if number < 28:
                await client.send({"type": "unsubscribe", "boardId": f"b{number}"})
        await client.send({"type": "ping"})
        await client.receive()
        hub, source = endpoint.hub, endpoint.hub._source  # noqa: SLF001
        assert isinstance(source, Idle)
        assert source.asked == [f"b{number}" for number in range(10)]
        assert not any(hub.begin_read(name) for name in tuple(source.asked))
        assert source.asked[10:] == ["b28", "b29"]


async def test_unfinished_messages_are_bounded_over_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with much of them is cut off when there are too many; one that ends its message is answered."""
    monkeypatch.setattr(server, "UNFINISHED_BYTES", 600_000)
    part = Frame(Opcode.TEXT, b" " * 500_000, fin=False).serialize(mask=True)
    async with listening() as endpoint:
        assert endpoint.port
        one, other = [await asyncio.open_connection("127.0.0.1", endpoint.port) for _ in range(2)]
        for reader, writer in (one, other):
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
        one[1].write(part)
        await until(lambda: endpoint.shared.unfinished.used >= 500_000)
        other[1].write(part)
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                assert await other[0].read() == b""
        assert endpoint.shared.unfinished.used < 600_000
        assert endpoint.refusals.counts == {"too much of unfinished messages": 1}
        one[1].write(Frame(Opcode.CONT, b'{"type":"ping"}').serialize(mask=True))
        assert await one[0].readexactly(17) == b'\x81\x0f{"type":"pong"}'
        assert endpoint.shared.unfinished.used == 0
        for _, writer in (one, other):
            writer.close()


async def test_a_piece_of_a_message_counts_as_what_it_inflates_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte can be a piece of a mebibyte; and of many that come at once, only a few are inflated at once."""
    monkeypatch.setattr(server, "UNFINISHED_BYTES", 600_000)
    deflate = HEAD + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    part = Frame(Opcode.TEXT, b" " * 500_000, fin=False)
    whole = Frame(Opcode.TEXT, b'{"type":"ping"}' + b" " * 500_000)
    extension = PerMessageDeflate(True, True, 15, 15)
    bomb, bombs = (each.serialize(mask=True, extensions=[extension]) for each in (part, whole))
    async with listening(compression=True) as endpoint:
        clients = [await asyncio.open_connection("127.0.0.1", endpoint.port) for _ in range(3)]
        for reader, writer in clients:
            writer.write(deflate)
            await reader.readuntil(b"\r\n\r\n")
        clients[0][1].write(bomb)
        await until(lambda: endpoint.shared.unfinished.used == 500_000)
        clients[1][1].write(bomb)
        async with asyncio.timeout(SECONDS):
            with contextlib.suppress(ConnectionError):
                assert await clients[1][0].read() == b""
        assert endpoint.shared.unfinished.used == 500_000
        tracemalloc.start()
        try:
            clients[2][1].write(bombs * 60)
            await clients[2][0].readexactly(17 * 60)
            assert tracemalloc.get_traced_memory()[1] < 24 * 500_000
        finally:
            tracemalloc.stop()
            for _, writer in clients:
                writer.close()


async def test_a_client_that_is_cut_off_for_unfinished_messages_is_not_acted_upon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it sent with the bytes that were too many changes nothing, and is one refusal, of however many frames."""
    monkeypatch.setattr(server, "UNFINISHED_BYTES", 130_000)
    subscribe = Frame(Opcode.TEXT, b'{"type":"subscribe","boardId":"late"}').serialize(mask=True)
    async with listening() as endpoint:
        assert endpoint.port
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = endpoint.clients
        assert isinstance(connection, Connection)
        more = Frame(Opcode.CONT, b" ", fin=False).serialize(mask=True) * 2000
        connection.data_received(Frame(Opcode.TEXT, b" " * 129_000, fin=False).serialize(mask=True))
        connection.data_received(more + Frame(Opcode.CONT, b" ").serialize(mask=True) + subscribe)
        await until(lambda: endpoint.connections == 0)

        assert endpoint.refusals.counts == {"too much of unfinished messages": 1}
        assert endpoint.hub._source.asked == []  # type: ignore[attr-defined]  # noqa: SLF001
        writer.close()


async def test_a_question_that_is_asked_again_and_again_waits_once() -> None:
    """However slow the database is, no more than each board of each client waits."""
    judge = Judge()
    async with listening(authorizer=judge) as endpoint, Client.to(url(endpoint)) as client:
        for number in range(300):
            await client.send({"type": "subscribe", "boardId": f"b{number % 3}"})
        await client.send({"type": "ping"})
        await client.receive()
        assert endpoint.decisions is not None
        assert len(judge.asked) + endpoint.decisions.waiting <= 6
        judge.free.set()
        await until(lambda: endpoint.hub.subscriptions == 3)


async def test_one_address_cannot_exceed_its_limit_of_connections() -> None:
    """Another one is let in; and the first again, once one of its connections has ended."""
    gate = Gate(trusted=Proxies.of("127.0.0.1"))
    async with listening(gate=gate, limits=Limits(connections_of_address=2)) as endpoint, AsyncExitStack() as held:

        def from_(address: str) -> Any:
            return connect(url(endpoint), additional_headers={"X-Forwarded-For": address}, proxy=None)

        first = await held.enter_async_context(from_("203.0.113.1"))
        await held.enter_async_context(from_("203.0.113.1"))
        with pytest.raises(InvalidStatus) as refused:
            await held.enter_async_context(from_("203.0.113.1:9"))
        assert refused.value.response.status_code == 503
        assert endpoint.refusals.counts == {"too many connections of one address": 1}
        await held.enter_async_context(from_("203.0.113.2"))
        await first.close()
        await until(lambda: endpoint.connections == 2)
        await held.enter_async_context(from_("203.0.113.1"))

        assert endpoint.connections == 3


async def test_codes_that_clients_close_with_are_counted_together() -> None:
    """But for the protocol's and ours: each would be a series of the metrics."""
    async with listening() as endpoint:
        for code in (1000, 3000, 3001, 4999, 4001):
            async with connect(url(endpoint), proxy=None) as connection:
                await connection.close(code)
        await until(lambda: endpoint.closed.total() == 5)
        assert endpoint.closed == {"1000": 1, "other": 3, "4001": 1}


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param(b"\x83\x80\0\0\0\0", "1002", id="unknown kind of frame"),
        pytest.param(b"\x81\x81\0\0\0\0\xff", "1007", id="no UTF-8"),
        pytest.param(b"\x81\x81\0\0\0\0{" * 20, "1008", id="bad messages"),
        pytest.param(b"\x81\xff\0\0\0\0\1\0\0\0" + bytes(4), "1009", id="too long"),
        pytest.param(None, "1006", id="reset"),
    ],
)
async def test_the_code_that_a_client_was_closed_with_is_counted_and_logged(frames: bytes | None, code: str) -> None:
    """Even where nothing that the client sends is read any more; a connection that is reset is one that broke."""
    with capture_logs() as logged:
        async with listening() as endpoint, connect(url(endpoint), proxy=None, max_queue=None) as connection:
            if frames is None:
                sock = connection.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.transport.abort()
            else:
                connection.transport.write(frames)
            await until(lambda: endpoint.closed.total() == 1)
            assert endpoint.closed == {code: 1}
    assert [line["code"] for line in logged if line["event"] == "websocket.close"] == [int(code)]


async def test_a_pong_comes_before_the_answer_to_a_later_message() -> None:
    """Whatever came in one piece is answered in its order."""
    async with listening() as endpoint:
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        frames = [(Opcode.PING, b"one"), (Opcode.TEXT, b'{"type":"ping"}'), (Opcode.PING, b"two")]
        writer.write(b"".join(Frame(*each).serialize(mask=True) for each in frames))
        assert await reader.readexactly(27) == b'\x8a\x03one\x81\x0f{"type":"pong"}\x8a\x03two'
        writer.close()


# What is refused is seen


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        pytest.param(HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), "not HTTP/1.1", id="HTTP/1.0"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", "no WebSocket upgrade", id="no upgrade"),
        pytest.param(HANDSHAKE.replace(b"GET", b"POST"), "not GET", id="POST"),
        pytest.param(HANDSHAKE.replace(b"13", b"8"), "bad handshake", id="version"),
        pytest.param(HEAD + b"Cookie: " + b"x" * 9000 + b"\r\n\r\n", "header too long", id="cookie"),
        pytest.param(HEAD + b"A: b\r\n" * 300 + b"\r\n", "too many headers", id="many"),
        pytest.param(HEAD + (b"A: " + b"b" * 8000 + b"\r\n") * 5 + b"\r\n", "handshake too long", id="long"),
        pytest.param(b"GET /" + b"x" * 9000, "address too long", id="address"),
        pytest.param(b"no request\r\n\r\n", "no HTTP request", id="nonsense"),
        pytest.param(b"\x16\x03\x01\x02\x00", "TLS where none is spoken", id="TLS"),
        pytest.param(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY header of an untrusted peer", id="PROXY 1"),
        pytest.param(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "PROXY header of an untrusted peer", id="PROXY 2"),
    ],
)
async def test_each_refused_handshake_is_counted_and_logged(request_: bytes, reason: str) -> None:
    """Once, with its reason and the address it came from."""
    with capture_logs() as logged:
        async with listening() as endpoint:
            assert endpoint.port
            await answer_to(endpoint.port, request_)
            assert endpoint.refusals.counts == {reason: 1}
    (line,) = [line for line in logged if line["event"] == "websocket.refused"]
    assert (line["reason"], line["address"], line["log_level"]) == (reason, "127.0.0.1", "warning")


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        pytest.param(
            b"GET /boards/a/events?lane=\xc3\x89t\xc3\xa9 HTTP/1.1\r\nHost: relay\r\n\r\n", "ascii", id="address"
        ),
        pytest.param(HANDSHAKE[:-2] + b"Content-Length: 4\r\n\r\nbody", "request body", id="body"),
        pytest.param(
            HANDSHAKE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer codings", id="chunks"
        ),
        pytest.param(b"no request\r\n\r\n", "request line", id="nonsense"),
    ],
)
async def test_a_request_that_cannot_be_read_is_answered_and_explained(request_: bytes, detail: str) -> None:
    with capture_logs() as logged:
        async with listening() as endpoint:
            assert endpoint.port
            assert (await answer_to(endpoint.port, request_)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    (line,) = [line for line in logged if line["event"] == "websocket.refused"]
    assert detail in line["detail"]


async def test_a_foreign_origin_is_named_in_the_log() -> None:
    """And an origin that is the endpoint's own address is none."""
    with capture_logs() as logged:
        async with listening(gate=Gate(origins=Origins.of([]))) as endpoint:
            assert endpoint.port
            own = f"http://127.0.0.1:{endpoint.port}"
            await pong(url(endpoint), origin=own)
            for foreign in (f"{own}0", "http://evil.example"):
                handshake = HEAD + f"Origin: {foreign}\r\n\r\n".encode()
                assert (await answer_to(endpoint.port, handshake)).startswith(b"HTTP/1.1 401 ")
            assert endpoint.refusals.counts == {"foreign origin": 2}
    (line,) = [line for line in logged if line["event"] == "websocket.refused"]
    assert (line["origin"], line["address"]) == (f"{own}0", "127.0.0.1")


# Proxies


async def test_six_clients_behind_a_proxy_that_writes_ports_are_six() -> None:
    """And one client with six ports is one; a hop that cannot be read is logged."""
    gate = Gate(rates=Rates(per_client=1, total=0), trusted=Proxies.of("127.0.0.1"))
    with capture_logs() as logged:
        async with listening(gate=gate) as endpoint:
            assert endpoint.port
            for last in range(6):
                await pong(url(endpoint), additional_headers={"X-Forwarded-For": f"203.0.113.{last}:5432{last}"})
                header = f"Forwarded: for=203.0.113.{last};proto=http\r\n\r\n".encode()
                assert (await answer_to(endpoint.port, HEAD + header)).startswith(b"HTTP/1.1 429 ")
            await pong(url(endpoint), additional_headers={"X-Forwarded-For": "nonsense"})
    (line,) = [line for line in logged if line["event"] == "websocket.unread_header"]
    assert (line["address"], line["found"]) == ("127.0.0.1", "nonsense")
    refused = [line["address"] for line in logged if line["event"] == "websocket.refused"]
    assert refused[0] == "203.0.113.0"


@pytest.mark.parametrize("version", [1, 2])
async def test_a_trusted_proxy_may_speak_the_proxy_protocol(version: int) -> None:
    """Its clients are counted one by one; a connection without the header is the proxy's own."""
    gate = Gate(rates=Rates(per_client=1, total=0), trusted=Proxies.of("127.0.0.1"))

    def header(last: int) -> bytes:
        if version == 1:
            return f"PROXY TCP4 203.0.113.{last} 127.0.0.1 1 2\r\n".encode()
        return b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((203, 0, 113, last, 127, 0, 0, 1, 0, 1, 0, 2))

    async with listening(gate=gate) as endpoint:
        assert endpoint.port
        for last in (1, 2):
            reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
            writer.write(header(last) + HANDSHAKE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
            writer.close()
            assert (await answer_to(endpoint.port, header(last) + HANDSHAKE)).startswith(b"HTTP/1.1 429 ")
        await pong(url(endpoint))
        assert await answer_to(endpoint.port, header(1)[:20]) == b""
        assert endpoint.refusals.counts["bad PROXY header"] == 1


async def test_behind_a_balancer_of_bytes_a_stranger_crowds_out_its_own() -> None:
    """Its clients are known by the PROXY protocol, before they have said anything else."""
    gate = Gate(trusted=Proxies.of("127.0.0.1"))
    async with listening(gate=gate) as endpoint:
        assert endpoint.port
        with silent(endpoint.port) as other, silent(endpoint.port) as stranger:
            await other.come(2)
            await stranger.come(4)
            for last, sockets in enumerate((other, stranger)):
                for sock in sockets.sockets:
                    sock.send(f"PROXY TCP4 203.0.113.{last} 127.0.0.1 1 2\r\n".encode())
            known = {"203.0.113.0": 2, "203.0.113.1": 4}
            await until(lambda: Counter(arrival.address for arrival in endpoint.listener.arrivals) == known)
            for _ in range(2):
                endpoint.listener.crowd_out("crowded out")
            await until(lambda: sum(stranger.held()) == 2)
            assert all(other.held())


# Where it listens


async def test_both_families_are_served_on_one_port() -> None:
    """By `::`, and by several addresses."""
    for hosts in ("::", "127.0.0.1, ::1", "0.0.0.0 ::"):
        async with listening(await bind(hosts, 0)) as endpoint:
            for host in ("127.0.0.1", "[::1]"):
                await pong(f"ws://{host}:{endpoint.port}")


async def test_it_listens_on_a_unix_socket(tmp_path: Any) -> None:
    """Behind a proxy that is trusted, its clients are known; the path of a socket that was left is taken again."""
    path = str(tmp_path / "ws")
    gate = Gate(rates=Rates(per_client=1, total=0), trusted=Proxies.of("unix"))
    bind_path(path).close()
    async with listening([bind_path(path)], gate=gate) as endpoint:
        assert endpoint.listener.listens
        assert endpoint.port is None
        for status, client in ((101, "203.0.113.1"), (101, "203.0.113.2"), (429, "203.0.113.2")):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(HEAD + f"X-Forwarded-For: {client}\r\n\r\n".encode())
            assert (await reader.readline()).startswith(f"HTTP/1.1 {status} ".encode())
            writer.close()
        with pytest.raises(OSError, match="in use"):
            bind_path(path)
