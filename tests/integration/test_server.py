"""The WebSocket endpoint on real sockets: what it answers, what it refuses, and that it outlives every client.

Tests of the protocol alone have an endpoint on a hub that nobody feeds and need no Postgres; tests of what
subscribers receive have the whole relay.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import re
import socket
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode

from relay.model import messages as protocol
from relay.websocket import ending, server
from relay.websocket.connection import Connection
from relay.websocket.frames import frame
from relay.websocket.listener import TLS_BUFFER_BYTES, Arrival
from relay.websocket.peer import Shared
from relay.websocket.server import Endpoint
from tests.certificates import certificate
from tests.contract import checked
from tests.integration.client import Client, until
from tests.integration.conftest import Relay, listening
from tests.servers import Database

DEADLINE = 15.0
"""Seconds after which what should have happened is taken for not happening."""

PROMPT = 1.5
"""The same where the endpoint must not wait for any of its own time limits."""

SMALL_BUFFER = 128 * 1024
"""What a slow client's kernel takes for it, about, so that falling behind shows early."""

MEBIBYTE = 1024 * 1024

# From Python 3.14 on, the size of the stack limits how deep JSON is read, not a number of levels.
_DEEP = sys.version_info >= (3, 14)

PING = '{"type":"ping"}'
PONG = b'{"type":"pong"}'
KEY = base64.b64encode(bytes(16)).decode()
HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


class Peer:
    """A client made of bytes: it does what no WebSocket library would, and nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, endpoint: Endpoint, *, shake_hands: bool = True) -> AsyncIterator[Peer]:
        """Connect, for as long as the context lasts."""
        sock = await _small_socket(endpoint)
        peer = cls(*await asyncio.open_connection(sock=sock, limit=SMALL_BUFFER))
        try:
            if shake_hands:
                peer.write(HANDSHAKE)
                assert (await peer.read_response()).startswith(b"HTTP/1.1 101 ")
            yield peer
        finally:
            peer.writer.transport.abort()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    def send(self, data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True, mask: bool = True) -> None:
        """Send a frame."""
        self.write(Frame(opcode, data, fin).serialize(mask=mask))

    def reset(self) -> None:
        """Leave with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def read_response(self) -> bytes:
        """Return the head of an HTTP response."""
        async with asyncio.timeout(DEADLINE):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def read_exactly(self, count: int) -> bytes:
        """Return so many bytes."""
        async with asyncio.timeout(DEADLINE):
            return await self._reader.readexactly(count)

    async def read_rest(self) -> bytes:
        """Return all there is until the server ends the connection, in whatever way."""
        found = b""
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                while data := await self._reader.read(SMALL_BUFFER):
                    found += data
        return found

    async def receive_message(self) -> tuple[Opcode, bytes]:
        """Read a frame that is no ping of the heartbeat."""
        while (found := await self.receive())[0] is Opcode.PING:
            pass
        return found

    async def receive(self) -> tuple[Opcode, bytes]:
        """Return the next frame."""
        async with asyncio.timeout(DEADLINE):
            first, length = await self._reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
            return Opcode(first & 0x0F), await self._reader.readexactly(length)

    async def close_code(self) -> int:
        """Return the code of the closing frame, which must come next and be the last."""
        opcode, data = await self.receive()
        assert opcode is Opcode.CLOSE
        assert await self.read_rest() == b""
        return int.from_bytes(data[:2])


async def _small_socket(endpoint: Endpoint) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", endpoint.port))
    return sock


def url(endpoint: Endpoint) -> str:
    return f"ws://127.0.0.1:{endpoint.port}"


@pytest.fixture(autouse=True)
async def accepted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Connection]]:
    """Yield the server's side of all connections, also of those without a handshake; fail if one raised."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    found: list[Connection] = []

    def make(shared: Shared, arrival: Arrival) -> Connection:
        connection = Connection(shared, arrival)
        found.append(connection)
        return connection

    monkeypatch.setattr(server, "Connection", make)
    yield found
    for connection in found:
        if not connection.closed:
            transport(connection).abort()
            await until(lambda connection=connection: connection.closed)  # type: ignore[misc]
    assert errors == []


def has_come(connection: Connection, data: bytes) -> bool:
    """Tell whether a part of a handshake has arrived."""
    handshake = connection._handshake  # noqa: SLF001
    return handshake is not None and handshake._tail == data[-3:]  # noqa: SLF001


def transport(connection: Connection) -> asyncio.Transport:
    """Return what is buffered for a client."""
    return connection._transport  # noqa: SLF001


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """Yield an endpoint on a hub that nobody feeds."""
    async with listening() as endpoint:
        yield endpoint


async def assert_serves(endpoint: Endpoint) -> None:
    """Check that a new client is served."""
    async with Client.to(url(endpoint)) as client:
        await client.send_raw(PING)
        assert await client.receive() == ("pong", {})


# Messages


async def test_ping_is_answered_by_pong(endpoint: Endpoint) -> None:
    """A ping is answered by exactly the guide's pong."""
    async with Peer.to(endpoint) as peer:
        peer.send(PING.encode())

        assert await peer.receive() == (Opcode.TEXT, PONG)


async def test_unsubscribe_ends_one_board_and_no_other(database: Database, relay: Relay) -> None:
    """After unsubscribing, a client receives nothing of that board, its other boards go on, and so do others."""
    async with Client.to(relay.url) as client, Client.to(relay.url) as other:
        await other.subscribe("left")
        await client.subscribe("left")
        await client.subscribe("kept")
        await client.send({"type": "unsubscribe", "boardId": "left"})
        await client.send_raw(PING)
        assert await client.receive() == ("pong", {})
        database.execute("insert into tasks (id, board_id, title) values ('l', 'left', 'L'), ('k', 'kept', 'K')")

        assert [(kind, data["id"]) for kind, data in await client.until_last(database, "kept")] == [
            ("task.created", "k")
        ]
        assert [(kind, data["id"]) for kind, data in await other.until_last(database, "left")] == [
            ("task.created", "l")
        ]


async def test_unsubscribe_without_a_subscription_is_not_an_error(endpoint: Endpoint) -> None:
    """Leaving a board that was never subscribed does nothing and answers nothing."""
    async with Client.to(url(endpoint)) as client:
        await client.send({"type": "unsubscribe", "boardId": "never"})
        await client.send_raw(PING)

        assert await client.receive() == ("pong", {})


async def test_one_connection_follows_several_boards(database: Database, relay: Relay) -> None:
    """A client receives all of the boards it subscribed to and nothing of others."""
    async with Client.to(relay.url) as client:
        await client.subscribe("a")
        await client.subscribe("b")
        for task, board in enumerate(("a", "c", "b", "a")):
            database.execute("insert into tasks (id, board_id, title) values (%s, %s, 'T')", f"t{task}", board)

        # Each board has its order; between boards there is none.
        found = [(data["boardId"], data["id"]) for _, data in await client.until_last(database, "b")]
        found += [(data["boardId"], data["id"]) for _, data in await client.until_last(database, "a")]
        found = [(board, task) for board, task in found if task.startswith("t")]
        assert [task for board, task in found if board == "a"] == ["t0", "t3"]
        assert [task for board, task in found if board == "b"] == ["t2"]
        assert len(found) == 3


async def test_subscribing_again_is_a_fresh_sync(database: Database, client: Client) -> None:
    """A second subscribe to the same board shows it again, as it is by then, and changes still come once."""
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    await client.until_last(database)

    kind, data = await client.subscribe("default")

    assert (kind, {task["id"] for task in data["lanes"]["backlog"]}) == ("board.sync", set(client.tasks))
    assert "a" in client.tasks
    database.execute("update tasks set title = 'AA' where id = 'a'")
    assert [(kind, data["id"]) for kind, data in await client.until_last(database)] == [("task.updated", "a")]


async def test_unknown_keys_are_left_alone(database: Database, relay: Relay) -> None:
    """What a newer client adds to its messages changes no answer, whose top level is type and data alone."""
    extra: dict[str, object] = {"resume": "17/42", "data": {}, "since": None, "": [1]}
    async with Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "default", **extra})
        assert (await client.receive())[0] == "board.sync"
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        assert [kind for kind, _ in await client.until_last(database)] == ["task.created"]
        await client.send({"type": "unsubscribe", "boardId": "default", **extra})
        await client.send({"type": "ping", **extra})
        assert await client.receive() == ("pong", {})


# Bad messages


@pytest.mark.parametrize(
    ("message", "code"),
    [
        pytest.param('{"type":', "invalid_json", id="broken"),
        pytest.param("", "invalid_json", id="empty"),
        pytest.param(" \n", "invalid_json", id="blank"),
        pytest.param(PING + PING, "invalid_json", id="two in one"),
        pytest.param("\ufeff" + PING, "invalid_json", id="byte order mark"),
        pytest.param("[" * 100_000, "invalid_json", id="deep and broken"),
        pytest.param("[" * 100_000 + "]" * 100_000, "invalid_message" if _DEEP else "invalid_json", id="deep"),
        pytest.param(
            '{"type":' * 100_000 + "1" + "}" * 100_000, "unknown_type" if _DEEP else "invalid_json", id="deep objects"
        ),
        pytest.param("[]", "invalid_message", id="array"),
        pytest.param("null", "invalid_message", id="null"),
        pytest.param('"ping"', "invalid_message", id="string"),
        pytest.param("1", "invalid_message", id="number"),
        pytest.param("{}", "invalid_message", id="no type"),
        pytest.param('{"boardId":"a"}', "invalid_message", id="no type but a board"),
        pytest.param('{"type":"Subscribe","boardId":"a"}', "unknown_type", id="unknown type"),
        pytest.param('{"type":null}', "unknown_type", id="type null"),
        pytest.param('{"type":1}', "unknown_type", id="type number"),
        pytest.param('{"type":["ping"]}', "unknown_type", id="type array"),
        pytest.param('{"type":"subscribe"}', "invalid_board_id", id="no board"),
        pytest.param('{"type":"subscribe","board_id":"a"}', "invalid_board_id", id="misspelt board"),
        pytest.param('{"type":"subscribe","boardId":null}', "invalid_board_id", id="board null"),
        pytest.param('{"type":"subscribe","boardId":1}', "invalid_board_id", id="board number"),
        pytest.param('{"type":"subscribe","boardId":true}', "invalid_board_id", id="board boolean"),
        pytest.param('{"type":"subscribe","boardId":{}}', "invalid_board_id", id="board object"),
        pytest.param('{"type":"subscribe","boardId":["a"]}', "invalid_board_id", id="board array"),
        pytest.param('{"type":"unsubscribe"}', "invalid_board_id", id="leave no board"),
        pytest.param(r'{"type":"subscribe","boardId":"a\u0000"}', "invalid_board_id", id="NUL"),
        pytest.param('{"type":"subscribe","boardId":"a","lanes":"todo"}', "invalid_selection", id="lanes a string"),
        pytest.param('{"type":"subscribe","boardId":"a","lanes":[1]}', "invalid_selection", id="lanes numbers"),
        pytest.param('{"type":"subscribe","boardId":"a","columns":{}}', "invalid_selection", id="columns an object"),
        pytest.param('{"type":"subscribe","boardId":"a","tasks":[1.5]}', "invalid_selection", id="tasks fractions"),
        pytest.param('{"type":"includes","xid":"735"}', "invalid_board_id", id="wait on no board"),
        pytest.param('{"type":"includes","boardId":"a"}', "invalid_xid", id="no xid"),
        pytest.param('{"type":"includes","boardId":"a","xid":735}', "invalid_xid", id="xid number"),
        pytest.param('{"type":"includes","boardId":"a","xid":""}', "invalid_xid", id="xid empty"),
        pytest.param('{"type":"includes","boardId":"a","xid":"-1"}', "invalid_xid", id="xid negative"),
        pytest.param('{"type":"includes","boardId":"a","xid":"0735"}', "invalid_xid", id="xid with a zero"),
        pytest.param(
            '{"type":"includes","boardId":"a","xid":"18446744073709551616"}', "invalid_xid", id="xid over 64 bits"
        ),
        pytest.param('{"type":"includes","boardId":"a","xid":"\u0967"}', "invalid_xid", id="xid of other digits"),
        pytest.param(r'{"type":"subscribe","boardId":"\ud800"}', "invalid_json", id="lone high surrogate"),
        pytest.param(r'{"type":"subscribe","boardId":"\udc00!"}', "invalid_json", id="lone low surrogate"),
        pytest.param(r'{"type":"\ud800"}', "invalid_json", id="lone surrogate as type"),
        pytest.param('{"type":"ping","type":"pong"}', "unknown_type", id="type twice, the last is bad"),
        pytest.param(
            '{"type":"subscribe","boardId":"a","boardId":1}', "invalid_board_id", id="board twice, the last is bad"
        ),
        pytest.param(PING.encode(), "binary_message", id="binary"),
        pytest.param(b"\x00\xff", "binary_message", id="binary that is no text"),
    ],
)
async def test_bad_message_is_answered_and_the_connection_lives_on(
    endpoint: Endpoint, message: str | bytes, code: str
) -> None:
    """Bad input is answered by an error with a code and a text, once, and costs nobody the connection."""
    async with Client.to(url(endpoint)) as client:
        await client.send_raw(message)
        kind, data = await client.receive()
        await client.send_raw(PING)

        assert (kind, data["code"], sorted(data)) == ("error", code, ["code", "message"])
        assert 0 < len(data["message"]) < 300
        assert "\n" not in data["message"]
        assert await client.receive() == ("pong", {})


async def test_of_duplicate_keys_the_last_counts(endpoint: Endpoint) -> None:
    """Duplicate keys mean what they mean to every JSON parser that clients use."""
    async with Client.to(url(endpoint)) as client:
        await client.send_raw('{"type":"nope","type":"ping"}')

        assert await client.receive() == ("pong", {})


async def test_bad_messages_in_a_row_close_with_1008(endpoint: Endpoint) -> None:
    """Each of twenty bad messages is answered, and then the connection is closed."""
    async with Client.to(url(endpoint)) as client:
        for _ in range(protocol.MAX_BAD_MESSAGES):
            await client.send_raw("{")
        kinds = [(await client.receive())[0] for _ in range(protocol.MAX_BAD_MESSAGES)]

        assert kinds == ["error"] * 20
        assert await client.closed() == 1008


async def test_good_message_forgives_the_bad_ones(endpoint: Endpoint) -> None:
    """Only bad messages without a good one between them count."""
    async with Client.to(url(endpoint)) as client:
        for _ in range(3):
            for bad in ["{"] * (protocol.MAX_BAD_MESSAGES - 1):
                await client.send_raw(bad)
                assert (await client.receive())[0] == "error"
            await client.send_raw(PING)
            assert await client.receive() == ("pong", {})


# Frames


def ping_of(size: int) -> bytes:
    """Make a ping of so many bytes."""
    empty = '{"type":"ping","pad":""}'
    return empty.replace('""', f'"{"x" * (size - len(empty))}"').encode()


def halves(message: bytes) -> list[bytes]:
    return [message[: len(message) // 2], message[len(message) // 2 :]]


def send_fragments(peer: Peer, fragments: list[bytes]) -> None:
    """Send a message in several frames, with a ping of the protocol after each."""
    for index, fragment in enumerate(fragments):
        peer.send(fragment, Opcode.CONT if index else Opcode.TEXT, fin=index == len(fragments) - 1)
        peer.send(b"between", Opcode.PING)


@pytest.mark.parametrize("parts", [1, 2])
async def test_message_of_one_mebibyte_is_taken(endpoint: Endpoint, parts: int) -> None:
    """The largest message that is allowed is answered, in one frame or in several."""
    message = ping_of(MEBIBYTE)
    assert len(message) == MEBIBYTE
    async with Peer.to(endpoint) as peer:
        send_fragments(peer, [message] if parts == 1 else halves(message))
        received = [await peer.receive() for _ in range(parts + 1)]

        assert (Opcode.TEXT, PONG) in received


@pytest.mark.parametrize("parts", [1, 2])
async def test_message_over_one_mebibyte_closes_with_1009(endpoint: Endpoint, parts: int) -> None:
    """One byte more is refused, in one frame or in several."""
    message = ping_of(MEBIBYTE + 1)
    async with Peer.to(endpoint) as peer:
        if parts == 1:
            peer.send(message)
        else:
            first, second = halves(message)
            peer.send(first, fin=False)
            peer.send(second, Opcode.CONT)

        assert await peer.close_code() == 1009
    await assert_serves(endpoint)


async def test_fragments_are_put_together(endpoint: Endpoint) -> None:
    """A message in frames of one byte, some of them half a character, is one message; so is the next one."""
    message = '{"type":"ping","pad":"äöü 🦊"}'.encode()
    fragments = [message[index : index + 1] for index in range(len(message))]
    async with Peer.to(endpoint) as peer:
        for _ in range(2):
            send_fragments(peer, [b"", *fragments, b""])
            received = [await peer.receive() for _ in range(len(fragments) + 3)]

            assert [data for opcode, data in received if opcode is Opcode.TEXT] == [PONG]
            assert [data for opcode, data in received if opcode is Opcode.PONG] == [b"between"] * (len(message) + 2)


async def test_fragmented_binary_message_is_one_bad_message(endpoint: Endpoint) -> None:
    """What a fragmented message is, its first frame says."""
    async with Peer.to(endpoint) as peer:
        peer.send(PING.encode()[:5], Opcode.BINARY, fin=False)
        peer.send(PING.encode()[5:], Opcode.CONT)
        peer.send(PING.encode())

        assert checked((await peer.receive())[1])["data"]["code"] == "binary_message"
        assert await peer.receive() == (Opcode.TEXT, PONG)


@pytest.mark.parametrize("text", [b"\xff", b'{"type":"ping","x":"\xc3"}', b"\xed\xa0\x80"])
async def test_text_that_is_not_utf8_closes_with_1007(endpoint: Endpoint, text: bytes) -> None:
    """Text of invalid UTF-8 ends the connection, as the WebSocket protocol demands."""
    async with Peer.to(endpoint) as peer:
        peer.send(text)

        assert await peer.close_code() == 1007
    await assert_serves(endpoint)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(Frame(Opcode.TEXT, PING.encode()).serialize(mask=False), id="not masked"),
        pytest.param(Frame(Opcode.CONT, b"x").serialize(mask=True), id="continues nothing"),
        pytest.param(Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True) * 2, id="two beginnings"),
        pytest.param(b"\x83\x80\x00\x00\x00\x00", id="reserved opcode"),
        pytest.param(b"\xc1\x80\x00\x00\x00\x00", id="compressed though not agreed"),
        pytest.param(b"\x89\xfe\x00\x7e" + bytes(4 + 126), id="long ping"),
    ],
)
async def test_frame_against_the_protocol_closes_with_1002(endpoint: Endpoint, data: bytes) -> None:
    """A frame that no client may send ends the connection."""
    async with Peer.to(endpoint) as peer:
        peer.write(data)

        assert await peer.close_code() == 1002
    await assert_serves(endpoint)


async def test_ping_of_the_protocol_is_answered(endpoint: Endpoint) -> None:
    """A ping frame comes back as a pong frame with the same data."""
    async with Peer.to(endpoint) as peer:
        peer.send(b"data", Opcode.PING)

        assert await peer.receive() == (Opcode.PONG, b"data")


async def test_compression_is_not_negotiated(endpoint: Endpoint) -> None:
    """A client that offers permessage-deflate goes without, unless the operator wants it."""
    async with connect(url(endpoint), compression="deflate") as connection:
        assert connection.request is not None
        assert "permessage-deflate" in connection.request.headers["Sec-WebSocket-Extensions"]
        assert connection.response is not None
        assert "Sec-WebSocket-Extensions" not in connection.response.headers
        await connection.send(PING)
        assert await connection.recv(decode=False) == PONG


@pytest.fixture
async def compressing(database: Database) -> AsyncIterator[Relay]:
    """Yield a relay that compresses for clients that offer it."""
    async with Relay(database.dsn, compression=True).running() as relay:
        yield relay


async def test_message_is_compressed_once_for_all_that_inflate(
    database: Database, compressing: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, and who does not, get the same messages; each is compressed once however many they are."""
    compressed = []
    encode = PerMessageDeflate.encode

    def counted(self: PerMessageDeflate, frame: Frame) -> Frame:
        if frame.data:  # not what keeps a connection alive, which the clients of a busy machine may send too
            compressed.append(bytes(frame.data))
        return encode(self, frame)

    async with contextlib.AsyncExitStack() as stack:
        deflates = ["deflate", "deflate", "deflate", None]
        connections = [
            await stack.enter_async_context(connect(compressing.url, compression=deflate)) for deflate in deflates
        ]
        for connection in connections:
            await connection.send('{"type":"subscribe","boardId":"default"}')
            await connection.recv()
        with monkeypatch.context() as patch:
            patch.setattr(PerMessageDeflate, "encode", counted)
            database.execute("insert into tasks (id, title, description) values ('a', 'A', repeat('words ', 1000))")
            received = [await connection.recv(decode=False) for connection in connections]

        assert connections[0].response is not None
        assert "server_no_context_takeover" in connections[0].response.headers["Sec-WebSocket-Extensions"]
        assert checked(received[0])["data"]["description"] == "words " * 1000
        assert received == [compressed[0]] * 4
        assert len(compressed) == 1


async def test_compressed_message_is_small_on_the_wire_and_a_small_one_is_left_alone(
    database: Database, compressing: Relay
) -> None:
    """Frames say for themselves whether they are compressed."""
    offer = HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    async with Peer.to(compressing.endpoint, shake_hands=False) as peer:
        peer.write(offer)
        assert b"permessage-deflate" in await peer.read_response()
        peer.send(b'{"type":"subscribe","boardId":"default"}')
        await peer.receive_message()
        database.execute("insert into tasks (id, title, description) values ('a', 'A', repeat('words ', 1000))")
        _, data = await peer.receive_message()
        assert len(data) < 500
        assert b"words words" in zlib.decompress(data + b"\x00\x00\xff\xff\x01\x00\x00\xff\xff", -15)
        database.execute("delete from tasks")
        assert await peer.receive_message() == (Opcode.TEXT, b'{"type":"task.deleted","data":{"id":"a"}}')


async def test_client_that_wants_a_small_window_gets_its_messages_as_they_are(
    database: Database, compressing: Relay
) -> None:
    """What is compressed for all does not fit it; the extension allows to leave a message alone."""
    small = ClientPerMessageDeflateFactory(server_max_window_bits=9)
    async with connect(compressing.url, compression=None, extensions=[small]) as connection:
        await connection.send('{"type":"subscribe","boardId":"default"}')
        await connection.recv()
        database.execute("insert into tasks (id, title, description) values ('a', 'A', repeat('words ', 1000))")
        assert checked(await connection.recv())["data"]["description"] == "words " * 1000
        assert connection.response is not None
        assert "server_max_window_bits=9" in connection.response.headers["Sec-WebSocket-Extensions"]


# Handshakes


@pytest.mark.parametrize("path", ["", "/", "/?token=x", "/ws/board?boardId=a&x=%00#", "//", "/" + "x" * 4000])
async def test_any_path_is_accepted(endpoint: Endpoint, path: str) -> None:
    """Proxies and old clients may ask for any path and query."""
    async with Client.to(url(endpoint) + path) as client:
        await client.send_raw(PING)

        assert await client.receive() == ("pong", {})


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", 426, id="GET"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: relay\r\n\r\n", 405, id="POST"),
        pytest.param(HANDSHAKE.replace(b"GET", b"POST"), 405, id="POST as if to upgrade"),
        pytest.param(HANDSHAKE.replace(b"Version: 13", b"Version: 8"), 400, id="version"),
        pytest.param(HANDSHAKE.replace(KEY.encode(), b"short"), 400, id="key"),
        pytest.param(HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), 505, id="HTTP/1.0"),
        pytest.param(HANDSHAKE.replace(b" / ", b" /" + b"x" * 20_000 + b" "), 414, id="long path"),
        pytest.param(HANDSHAKE.replace(b"Host", b"A: a\r\n" * 300 + b"Host"), 431, id="many headers"),
    ],
)
async def test_request_without_a_handshake_gets_an_http_error(
    endpoint: Endpoint, request_: bytes, status: int
) -> None:
    """Other HTTP is answered in HTTP and ended; the endpoint goes on."""
    async with Peer.to(endpoint, shake_hands=False) as peer:
        peer.write(request_)
        response = await peer.read_rest()

    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert len(body) > 0
    assert endpoint.connections == 0
    await assert_serves(endpoint)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n", id="TLS"),
        pytest.param(b"garbage\r\n\r\n", id="text"),
        pytest.param(b"\x00" * 100_000, id="no line"),
        pytest.param(b"GET / HTTP/1.1\r\nno colon\r\n\r\n", id="header"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", id="body"),
    ],
)
async def test_invalid_http_request_ends_the_connection(endpoint: Endpoint, garbage: bytes) -> None:
    """What cannot be read as a request without a body is ended at once, at best with an HTTP error."""
    async with Peer.to(endpoint, shake_hands=False) as peer:
        peer.write(garbage)
        async with asyncio.timeout(PROMPT):
            answer = await peer.read_rest()

    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert endpoint.connections == 0
    await assert_serves(endpoint)


@pytest.mark.parametrize("said", [b"", HANDSHAKE[:-2]])
async def test_client_without_handshake_is_cut_off(
    endpoint: Endpoint, accepted: list[Connection], said: bytes
) -> None:
    """A client that connects and does not finish its handshake in time is cut off."""
    endpoint.listener.seconds = 0.1
    async with Peer.to(endpoint, shake_hands=False) as peer:
        peer.write(said)

        assert await peer.read_rest() == b""
        await until(lambda: accepted[0].closed)


async def test_handshake_in_time_is_not_cut_off(endpoint: Endpoint, accepted: list[Connection]) -> None:
    """The time limit of the handshake ends with it."""
    endpoint.listener.seconds = 0.2
    async with Peer.to(endpoint) as peer, Peer.to(endpoint, shake_hands=False) as later:
        await later.read_rest()  # it came later and its time is over
        await until(lambda: accepted[1].closed)
        peer.send(PING.encode())

        assert await peer.receive() == (Opcode.TEXT, PONG)


@pytest.mark.parametrize("pieces", range(1, 5))
@pytest.mark.parametrize("good", [True, False])
async def test_handshake_may_end_in_pieces_with_more_behind_it(
    endpoint: Endpoint, accepted: list[Connection], pieces: int, *, good: bool
) -> None:
    """Wherever it is cut, what follows is not read before it is answered; nothing is raised."""
    handshake = HANDSHAKE if good else HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: nothing")
    async with Peer.to(endpoint, shake_hands=False) as peer:
        peer.write(handshake[:-pieces])
        await until(lambda: bool(accepted) and has_come(accepted[0], handshake[:-pieces]))
        peer.write(handshake[-pieces:] + b"no frame at all")
        answer = await peer.read_rest()

    assert answer.startswith(b"HTTP/1.1 101 " if good else b"HTTP/1.1 426 ")
    await until(lambda: accepted[0].closed)


async def test_message_that_comes_with_the_handshake_is_answered_after_it(endpoint: Endpoint) -> None:
    """What a hasty client sends in the same segment as its handshake is answered behind the response."""
    async with Peer.to(endpoint, shake_hands=False) as peer:
        peer.write(HANDSHAKE + Frame(Opcode.TEXT, PING.encode()).serialize(mask=True))

        assert (await peer.read_response()).startswith(b"HTTP/1.1 101 ")
        assert await peer.receive() == (Opcode.TEXT, PONG)


async def test_closing_that_comes_with_the_handshake_raises_nothing(endpoint: Endpoint) -> None:
    """A client that says hello and goodbye in one segment is gone and counted out, without a traceback."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with Peer.to(endpoint, shake_hands=False) as peer:
        peer.write(HANDSHAKE + Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
        await peer.read_rest()

    await until(lambda: endpoint.connections == 0)
    await assert_serves(endpoint)
    assert errors == []


async def test_over_tls_a_connection_is_the_same_and_takes_little_memory(
    accepted: list[Connection], tmp_path: Path
) -> None:
    """It learns that the transport is blocked before it is made, and has a small buffer to read into."""
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    cert, key = certificate(tmp_path, "relay")
    ours.load_cert_chain(cert, key)
    theirs.load_verify_locations(cert)
    theirs.check_hostname = False
    async with listening(tls=ours) as endpoint:
        async with connect(f"wss://127.0.0.1:{endpoint.port}", ssl=theirs) as connection:
            await connection.send(PING)
            assert await connection.recv() == PONG.decode()
        events = f"https://127.0.0.1:{endpoint.port}/boards/default/events"
        async with aiohttp.ClientSession() as session, session.get(events, ssl=theirs) as response:
            assert response.status == 200
            assert (await response.content.readline()).startswith(b"retry: ")
        buffer = transport(accepted[0])._ssl_protocol._ssl_buffer  # type: ignore[attr-defined]  # noqa: SLF001

    assert len(buffer) <= TLS_BUFFER_BYTES


# Limits and heartbeat


async def test_one_connection_too_many_gets_503_until_another_leaves() -> None:
    """The limit refuses politely, and each client that leaves makes room."""
    async with listening(max_connections=2) as endpoint, connect(url(endpoint)) as first, connect(url(endpoint)):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(url(endpoint))
        assert refusal.value.response.status_code == 503
        assert endpoint.connections == 2

        await first.close()
        await until(lambda: endpoint.connections == 1)

        await assert_serves(endpoint)


async def test_heartbeat_drops_a_client_that_does_not_answer() -> None:
    """A peer that ignores a ping is cut off without a closing handshake."""
    async with listening(heartbeat=0.1) as endpoint, Peer.to(endpoint) as peer:
        assert set(await peer.read_rest()) == {0x89, 0x00}  # empty pings, and nothing else
        await until(lambda: endpoint.connections == 0)


async def test_heartbeat_keeps_a_client_that_answers() -> None:
    """A client that answers pings lives on for many heartbeats; websockets' client answers by itself."""
    async with listening(heartbeat=0.1) as endpoint, Peer.to(endpoint) as peer, connect(url(endpoint)) as client:
        for _ in range(6):
            opcode, data = await peer.receive()
            assert opcode is Opcode.PING
            peer.send(data, Opcode.PONG)

        assert endpoint.connections == 2
        await client.send(PING)
        assert await client.recv(decode=False) == PONG


async def test_heartbeat_keeps_a_client_that_talks() -> None:
    """Any sign of life counts, not only the answer to a ping."""
    async with listening(heartbeat=0.2) as endpoint, Peer.to(endpoint) as peer:
        for _ in range(5):
            while await peer.receive() == (Opcode.TEXT, PONG):
                pass
            peer.send(PING.encode())

        assert endpoint.connections == 1


# Slow clients


async def change(database: Database, client: Client, number: int) -> None:
    """Make one large change of task "big" and return once a client has it."""
    description = f"{number} " + "x" * 500_000
    database.execute("update tasks set description = %s where id = 'big'", description)
    while client.tasks["big"]["description"] != description:
        await client.receive()


@contextlib.asynccontextmanager
async def slow_client(relay: Relay) -> AsyncIterator[Client]:
    """Connect a client whose socket is read only as far as it receives."""
    sock = await _small_socket(relay.endpoint)
    async with connect(relay.url, sock=sock, max_size=None, max_queue=1, close_timeout=0.1) as connection:
        yield Client(connection)


def table(database: Database) -> dict[str, dict[str, Any]]:
    """Return the tasks as clients see them."""
    rows = database.fetch("select to_jsonb(t) from tasks t")
    return {
        row["id"]: {re.sub("_([a-z])", lambda found: found[1].upper(), name): row[name] for name in row}
        for (row,) in rows
    }


async def test_slow_reader_holds_up_nobody_and_ends_with_the_exact_board(
    database: Database, relay: Relay, accepted: list[Connection], client: Client
) -> None:
    """A client that stops reading costs a bounded buffer, and is sent the board once when it reads again."""
    database.execute("insert into tasks (id, title) values ('big', 'B'), ('gone', 'G')")
    await client.until_last(database)
    async with slow_client(relay) as slow:
        await slow.subscribe("default")
        buffered = 0
        for number in range(10):
            await change(database, client, number)
            buffered = max(buffered, accepted[-1].outbox.waiting)
        database.execute("delete from tasks where id = 'gone'")
        await client.until_last(database)

        assert MEBIBYTE < buffered < 3 * MEBIBYTE
        kinds = []
        while slow.tasks != client.tasks:
            kinds.append((await slow.receive())[0])
        assert kinds.count("board.sync") == 1
        assert kinds[-1] == "board.sync"
        assert len(kinds) < 10
        assert slow.tasks == table(database)
        database.execute("update tasks set title = 'live' where id = 'big'")
        assert [kind for kind, _ in await slow.until_last(database)] == ["task.updated"]
        assert slow.tasks == table(database)


async def test_large_board_that_changes_all_the_time_is_sent_once(
    database: Database, relay: Relay, accepted: list[Connection], client: Client
) -> None:
    """A client that takes its time over a large board gets the changes after it, not the whole board again."""
    database.execute(
        "insert into tasks (id, title, description) select 't' || i, 'T', repeat('x', 300000) "
        "from generate_series(1, 20) i"
    )
    await client.until_last(database)
    async with slow_client(relay) as slow:
        slow.stop_reading()
        await slow.send({"type": "subscribe", "boardId": "default"})
        await until(lambda: accepted[-1].outbox.waiting > 2 * MEBIBYTE)
        for number in range(10):
            database.execute("update tasks set title = %s where id = 't1'", str(number))
            await client.until_last(database)
        slow.go_on_reading()

        kinds = [(await slow.receive())[0]]
        while slow.tasks != client.tasks:
            kinds.append((await slow.receive())[0])
        assert kinds.count("board.sync") == 1
        assert kinds.count("task.updated") == 10
        assert slow.tasks == table(database)


async def test_client_that_reads_nothing_is_closed_with_1013(
    database: Database, accepted: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full buffers do not keep the heartbeat from that, and nobody else notices.

    If the client reads after all, it gets whole frames, and the close code after what its kernel took.
    """
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.3)
    database.execute("insert into tasks (id, title) values ('big', 'B')")
    async with Relay(database.dsn, heartbeat=0.5).running() as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        async with Peer.to(relay.endpoint) as peer:
            peer.send(b'{"type":"subscribe","boardId":"default"}')
            for number in itertools.count():
                if accepted[1].closed:
                    break
                await change(database, client, number)
            assert relay.endpoint.connections == 1
            assert accepted[1].outbox.waiting == 0
            opcode, data = await peer.receive()
            while opcode is not Opcode.CLOSE:
                if opcode is Opcode.TEXT:
                    checked(data)
                opcode, data = await peer.receive()
            assert int.from_bytes(data[:2]) == 1013

        await client.until_last(database)
        assert client.tasks == table(database)


async def ask_without_reading(peer: Peer, mebibytes: int) -> AsyncIterator[None]:
    """Send pings of the protocol, a mebibyte at a time, for as long as they are taken."""
    questions = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * (MEBIBYTE // 131)
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(mebibytes):
            peer.write(questions)
            async with asyncio.timeout(PROMPT):
                await peer.writer.drain()
            yield


async def test_client_that_asks_without_reading_costs_a_bounded_buffer(
    endpoint: Endpoint, accepted: list[Connection]
) -> None:
    """Answers that nobody reads do not pile up: the endpoint stops reading from such a client, or drops it."""
    async with Peer.to(endpoint) as peer:
        async for _ in ask_without_reading(peer, 16):
            assert accepted[0].outbox.waiting < 4 * MEBIBYTE
    await assert_serves(endpoint)


async def test_client_that_ends_without_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends its end of stream and never reads what is buffered for it is cut off in time, too."""
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.3)
    async with listening(heartbeat=0.3) as endpoint, Peer.to(endpoint) as peer:
        async for _ in ask_without_reading(peer, 3):
            pass
        with contextlib.suppress(ConnectionError):
            peer.writer.write_eof()

        await until(lambda: endpoint.connections == 0, 5.0)


# Leaving


@pytest.fixture
def busy(database: Database) -> Iterator[None]:
    """Have tasks inserted all the time."""
    stop = threading.Event()

    def insert() -> None:
        with database.connect() as writer:
            while not stop.is_set():
                writer.execute("insert into tasks (id, title) values (gen_random_uuid(), 'T')")

    thread = threading.Thread(target=insert)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("way", ["closing frame", "reset", "end of stream"])
async def test_client_that_leaves_in_the_middle_is_forgotten(database: Database, relay: Relay, way: str) -> None:
    """However a client leaves while changes flow, the relay forgets it and its board; the others go on."""
    async with Peer.to(relay.endpoint) as peer:
        peer.send(b'{"type":"subscribe","boardId":"default"}')
        for _ in range(5):
            await peer.receive()
        match way:
            case "closing frame":
                peer.send(b"\x03\xe8", Opcode.CLOSE)
                await peer.read_rest()
                peer.writer.close()
            case "reset":
                peer.reset()
            case _:
                await asyncio.wait_for(_drain_then_close(peer), DEADLINE)

        await until(lambda: relay.endpoint.connections == 0, 6.0)

    assert not relay.hub.begin_read("default")
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        await client.until_last(database)


async def _drain_then_close(peer: Peer) -> None:
    """End the stream without a closing frame and without a reset, which unread data would cause."""
    peer.writer.write_eof()
    await peer.read_rest()
    peer.writer.close()


async def test_clean_close_ends_at_once(endpoint: Endpoint, accepted: list[Connection]) -> None:
    """After a closing handshake and the client's end of the TCP connection, nothing is left to wait for."""
    async with connect(url(endpoint)) as connection:
        await connection.close(4000, "had enough")
        assert connection.close_code == 4000

    await until(lambda: endpoint.connections == 0, PROMPT)
    assert accepted[0].closed


async def test_end_of_stream_ends_at_once(endpoint: Endpoint, accepted: list[Connection]) -> None:
    """A client whose process ended closes TCP without a closing frame, and is not kept."""
    async with Peer.to(endpoint) as peer:
        peer.writer.close()

        await until(lambda: endpoint.connections == 0, PROMPT)
    assert accepted[0].closed


async def test_stopping_says_1012_to_all_and_waits_for_nobody(
    accepted: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that answers the closing handshake ends properly; one that does not is cut off."""
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.3)
    async with listening() as endpoint, connect(url(endpoint)) as one, connect(url(endpoint)) as two:
        async with Peer.to(endpoint) as silent:
            address = url(endpoint)
            async with asyncio.timeout(DEADLINE):
                await endpoint.close()

            assert endpoint.connections == 0
            assert all(connection.closed for connection in accepted)
            assert await silent.close_code() == 1012
        for connection in (one, two):
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert (connection.close_code, connection.close_reason) == (1012, "the relay is stopping")
        with pytest.raises(OSError, match="Connect call failed"):
            await connect(address)


async def test_stopping_does_not_wait_for_a_client_that_keeps_talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that answers the closing with anything but a closing is cut off in time, too."""
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.3)
    async with listening() as endpoint, Peer.to(endpoint) as peer:

        async def talk() -> None:
            while True:
                peer.send(PING.encode())
                await asyncio.sleep(0.05)

        talking = asyncio.create_task(talk())
        try:
            async with asyncio.timeout(2.0):
                await endpoint.close()
        finally:
            talking.cancel()


async def test_stopping_waits_for_a_client_that_still_reads(
    accepted: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes longer than the closing may, but goes on reading, is sent all that waits, and the close."""
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.3)
    message = frame(b"x" * MEBIBYTE)
    async with listening() as endpoint, Peer.to(endpoint) as peer:
        for _ in range(4):
            accepted[0].outbox.send(message)
        closing = asyncio.create_task(endpoint.close())
        began, left = asyncio.get_running_loop().time(), 4 * len(message)
        while left:
            left -= len(await peer.read_exactly(min(left, MEBIBYTE // 4)))
            await asyncio.sleep(0.05)  # as slow as it is

        assert asyncio.get_running_loop().time() - began > 2 * ending.CLOSE_SECONDS
        assert await peer.close_code() == 1012
        await closing


async def test_stopping_cuts_off_a_client_that_has_not_shaken_hands(
    endpoint: Endpoint, accepted: list[Connection]
) -> None:
    """A stopped endpoint leaves no connection behind, and none that could still be let in."""
    async with Peer.to(endpoint, shake_hands=False) as peer:
        await until(lambda: len(accepted) == 1)
        await endpoint.close()
        with contextlib.suppress(ConnectionError):
            peer.write(HANDSHAKE)

        await until(lambda: accepted[0].closed, PROMPT)
        assert not (await peer.read_rest()).startswith(b"HTTP/1.1 101 ")
