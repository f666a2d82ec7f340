"""What is fuzzed: each target takes any bytes, and raises only if the relay did what it must not.

Rules:
- A target is quick, keeps nothing from one input to the next, and needs no network, no Postgres and no clock.
- What is documented to be raised is caught; everything else is a crash.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import jwt
from websockets.frames import Frame, Opcode

from relay.auth.addresses import BadProxyHeader, proxy_header, source
from relay.auth.gate import Gate, Visitor
from relay.auth.keys import AccessError
from relay.auth.keys import signing_keys as read_keys
from relay.auth.rates import Rates
from relay.auth.tokens import Access, Refused, static_tokens
from relay.config.origins import Origins
from relay.config.proxies import Proxies
from relay.hub.hub import Hub
from relay.hub.ports import Resuming
from relay.model import messages as protocol
from relay.model.cursor import CursorRefused, Epoch
from relay.model.messages import BadMessage, Message
from relay.model.snapshot import Snapshot
from relay.model.transaction import Transaction, cancelled
from relay.postgres.decode import Entry, Watch
from relay.postgres.faults import WatchOutdated
from relay.websocket.connection import Connection
from relay.websocket.limits import Limits
from relay.websocket.server import Endpoint
from relay.websocket.stream import EventStream

SECRET: Final = "a secret that is long enough, by far"
EPOCH: Final = Epoch("0123456789ab", {"0123456789ab": b"key"}, "abcdef012345")
WATCH: Final = Watch(1, "public.tasks", "id", "board_id", "lane", frozenset({"hidden"}))
BOARD: Final = protocol.board_data([])
GATE: Final = Gate(
    Access(static_tokens(["all", "some:a,b-*"], "here"), secret=SECRET),
    origins=Origins.of(["http://localhost:4000"]),
    trusted=Proxies.of("10.0.0.0/8"),
    rates=Rates(0, 0),
)

_HANDSHAKE: Final = (
    "GET /?token=all HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
).encode()
_KEYS: Final = '{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"%s","y":"%s"}]}'


def _sent(*texts: str) -> bytes:
    """Return messages as a client sends them."""
    return b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=True) for text in texts)


_TOKEN: Final = jwt.encode({"exp": 4_000_000_000, "boards": ["a", "b-*"]}, SECRET, "HS256")
_CURSOR: Final = EPOCH.seal("a", Snapshot.parse("10:20:11,15"))


class _Source:
    """A database in which every board is empty, and nothing happens."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, board: str, by: object = None) -> None:  # noqa: ARG002  # the protocol's
        self.asked.append(board)

    def ask_changes(self, resuming: Resuming) -> None:
        pass


class _Transport:
    """A socket that takes everything, or from some point on nothing until it is opened again."""

    def __init__(self, protocol: Connection, room: int) -> None:
        self.protocol: Connection | EventStream = protocol
        self._room, self._held = room, 0
        self._closing = False

    def set_protocol(self, protocol: EventStream) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self}.get(name)

    family = socket.AF_INET

    def setsockopt(self, *_: object) -> None:
        pass

    def set_write_buffer_limits(self, **_: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0 and not self._held:
            self._held = -self._room
            self.protocol.pause_writing()

    def take_all(self) -> None:
        self._room, held, self._held = 1 << 40, self._held, 0
        if held:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self._held

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        self._closing = True

    close = write_eof = abort

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def connection(data: bytes) -> None:
    """A whole connection: the first bytes say how it comes, the rest is what comes."""
    if len(data) > 2:
        _runner.run(_connection(data))


_runner: Final = asyncio.Runner()


async def _connection(data: bytes) -> None:
    mode, chunk, data = data[0], data[1] + 1, data[2:]
    source = _Source()
    hub = Hub(source)
    hub.begin(EPOCH, Snapshot.parse("10:20:11,15"), None)
    limits = Limits(send_buffer=65_536, all_buffers=1 << 20, messages_a_second=10, boards=3, idle_seconds=1e-9)
    endpoint = Endpoint(hub, heartbeat=30, max_connections=1, gate=GATE, limits=limits, compression=bool(mode & 1))
    client = Connection(endpoint.shared)
    client.address = "10.0.0.1"
    transport = _Transport(client, 1000 if mode & 2 else 1 << 40)
    client.connection_made(cast(asyncio.Transport, transport))
    if mode & 4:
        data = _HANDSHAKE + (_sent(*data.decode(errors="replace").split("\n")) if mode & 8 else data)
    for start in range(0, len(data), 1 << 20 if mode & 16 else chunk):
        if not transport.is_closing():
            transport.protocol.data_received(data[start : start + (1 << 20 if mode & 16 else chunk)])
    for board in source.asked:
        if hub.begin_read(board):
            hub.synced(board, Snapshot.parse("10:20:11,15"), BOARD)
    transport.protocol.beat()
    transport.take_all()
    transport.protocol.beat()
    transport.protocol.connection_lost(None)
    assert endpoint.connections == 0, "a connection that is gone is counted"
    assert endpoint.buffered == 0, "a backlog of nobody is counted"
    assert endpoint.shared.unfinished.used == 0, "an unfinished message of nobody is counted"
    assert hub.subscriptions == 0, "a board is followed by nobody"


def message(data: bytes) -> None:
    """A client's message."""
    with contextlib.suppress(BadMessage):
        protocol.parse(data.decode(errors="replace"))


def credential(data: bytes) -> None:
    """A token, a request's target, the headers."""
    text = data.decode(errors="surrogateescape")
    access = Access(static_tokens(["all"], "here"), secret=SECRET, keys=read_keys(_public_key(), "here"))
    visitor = Visitor("10.0.0.1", target=text, authorization=[text], subprotocols=text.split(","), forwarded=[text])
    Origins.of(["https://*.example.com"]).allow(text, text)
    source("10.0.0.1", [], [text], Proxies.of("10.0.0.0/8"))
    with contextlib.suppress(BadProxyHeader):
        proxy_header(data)
    source(visitor.peer, visitor.forwarded, visitor.standard, Proxies.of("10.0.0.0/8"))
    for presented in (text, visitor.credential):
        with contextlib.suppress(Refused):
            access.grant(presented).names(text)


def _public_key() -> str:
    # The generator of P-256, a point like any.
    x = base64.urlsafe_b64encode(bytes.fromhex("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"))
    y = base64.urlsafe_b64encode(bytes.fromhex("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"))
    return _KEYS % (x.rstrip(b"=").decode(), y.rstrip(b"=").decode())


def keys(data: bytes) -> None:
    """A set of keys."""
    with contextlib.suppress(AccessError):
        read_keys(data, "here")


def cursor(data: bytes) -> None:
    """A cursor, and the board that it is presented for."""
    board, _, text = data.decode(errors="surrogateescape").partition("\n")
    with contextlib.suppress(CursorRefused):
        assert EPOCH.seal(board, EPOCH.open(board, text)) == text, "a cursor is opened that was not sealed"


def row(data: bytes) -> None:
    """A journal entry, and another that undoes half of it: two images, the boards, and a reason."""
    parts = [None if part == b"-" else part.decode(errors="surrogateescape") for part in data.split(b"\n", 4)]
    old_row, new_row, old_board, new_board, reason = (*parts, None, None, None, None, None)[:5]
    entry = Entry(1, 1, "R", "k", None, old_board, new_board, old_row, new_row, reason)
    undone = entry._replace(old_board=new_board, new_board=old_board, old_row=new_row, new_row=old_row)
    boards = {old_board, new_board}
    once, again = (each.images(WATCH, boards)[0] for each in (entry, undone))
    with contextlib.suppress(WatchOutdated):
        found = Transaction(1, once).messages(boards)
        for encoded in (each.json for its in found.values() for each in its if isinstance(each, Message)):
            assert isinstance(json.loads(encoded)["data"], dict), "no message"
    assert len(cancelled([*once, *again])) <= len(once) + len(again), "images were made up"


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (connection, message, credential, keys, cursor, row)
}

SEEDS: Final[Mapping[str, Sequence[bytes]]] = {
    "connection": [
        # The end of a handshake that is refused comes in pieces, and more behind it: raised once.
        bytes([1, 5]) + _HANDSHAKE.replace(b"Connection: Upgrade", b"Connection: no") + b"T /?token=all",
        *(
            bytes([mode, 255]) + body
            for mode in (0, 4, 5, 6, 12, 14, 28, 31)
            for body in (
                _HANDSHAKE + _sent('{"type":"ping"}'),
                b'{"type":"subscribe","boardId":"a"}\n{"type":"unsubscribe","boardId":"a"}',
                b'{"type":"subscribe","boardId":"a","cursor":null}\n{"type":"ping"}',
                f'{{"type":"subscribe","boardId":"a","cursor":"{_CURSOR}"}}'.encode(),
                f'{{"type":"authenticate","token":"{_TOKEN}"}}'.encode(),
                _sent("x" * 300)
                + Frame(Opcode.PING, b"x").serialize(mask=True)
                + Frame(Opcode.CLOSE, b"").serialize(mask=True),
            )
        ),
        *(
            bytes([mode, 255]) + request.encode() + b"Host: relay\r\nOrigin: http://localhost:4000\r\n\r\n"
            for mode in (0, 2)
            for request in (
                "GET /boards/a/events?token=all HTTP/1.1\r\n",
                f"GET /boards/a/events?token=all HTTP/1.1\r\nLast-Event-ID: {_CURSOR}\r\n",
                "GET /boards/%ff/events?token=all HTTP/1.1\r\n",
                "OPTIONS /boards/a/events HTTP/1.1\r\n",
            )
        ),
    ],
    "message": [
        b'{"type":"ping"}',
        b'{"type":"subscribe","boardId":"a","cursor":[{"a":1e999}]}',
        b'{"type":"authenticate","token":"\\ud800"}',
        b"[" * 300,
    ],
    "credential": [
        _TOKEN.encode(),
        b"Bearer all",
        b"/?token=all&a=%ff",
        b"10.0.0.2, ::1, x",
        b"relay,bearer.all",
        b"e30.e30.",
    ],
    "keys": [_public_key().encode(), b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}'],
    "cursor": [b"a\n" + _CURSOR.encode(), b"b\n" + _CURSOR.encode()],
    "row": [
        b'{"id":1,"board_id":"a","lane":"x","n":1.50}\n{"id":1,"board_id":"a","lane":"y","n":2}\na\na',
        b'{"id":"\\u0000","board_id":null,"lane":[]}\n-\na\n-',
        b'-\n{"id":{},"id_":1,"board_id":"b","lane":"x","Some Key":"\xff"}\n-\nb',
        # What is no image, and nothing that could be sent.
        b'!\x80{"id":1}\n{"id":1,"board_id":"a","lane":"y","n":2}\na\na',
        # The old image of a wide row, and a new one that cannot be read.
        b'{"id":1,"board_id":"a","lane":"x"}\n{"id":1,"board_id":"a","lane":"x","j":{"}":["\\ud800","\\""]}}\na\na\nx',
    ],
}
