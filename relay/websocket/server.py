"""The WebSocket endpoint: sockets on one side, the hub on the other. The only module that imports websockets.

The protocol itself (handshake, frames, closing) is `websockets.server.ServerProtocol`, which does no I/O; here is
the I/O around it, as an `asyncio.BufferedProtocol`: cheaper per connection than a task and streams each, and the
transport is ours, so that one buffer of frames, made once for a board, is written as it is to all of its subscribers.

Rules:
- Everything the protocol has to say is written in the same step that made it say so. So between steps it holds
  nothing back, and frames made elsewhere may be written in between.
- A connection is open while the protocol's state is OPEN. Nothing is sent to one that is not.
- What a client does not take yet waits in its *backlog*, which refers to the buffers that all share; only the piece
  that the kernel took a part of is a copy. A backlog over its limit takes no more, whatever the hub has.
- Who gets in, and to which boards, the `Gate` says, and perhaps the database. A credential is kept as long as its
  connection, to be looked at again when the gate's credentials change, and is never logged.
- One timer serves all connections: at each heartbeat, who has been silent since the last one is dropped, who has
  read nothing while something waited is given up, and the others are pinged.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import math
import socket
import ssl
import time
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

import structlog
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from relay.auth.access import EVERYBODY, FLOOD, ForeignOrigin, Gate, Grant, Refused, TooMany, UnknownKey, Visitor
from relay.hub.hub import Hub
from relay.model import messages as protocol
from relay.model.messages import BadMessage, CloseCode, Message, Ping, Subscribe
from relay.websocket import handshake
from relay.websocket.admission import Places
from relay.websocket.listening import Arrival, Listener, bind
from relay.websocket.questions import Questions
from relay.websocket.refusals import Refusals

log = structlog.get_logger()

OPEN_SECONDS: Final = 10.0
"""How long a client may take over its handshake."""

CLOSE_SECONDS: Final = 3.0
"""How long a client may take to answer a closing handshake, from when it last took some of what waits for it."""

LAST_SECONDS: Final = 8.0
"""How long it may take in all to read what waits for it, when its connection is to end."""

APART_SECONDS: Final = 0.05
"""How far apart clients are seen off at most: a few of them need not wait."""

_STOPPING: Final = "the relay is stopping"

SEND_BUFFER_BYTES: Final = 1024 * 1024
"""So much may wait for a client, if nothing else is said, beside the largest buffer that it was sent: were a large
board's sync counted, the next change would call for another."""

PIECE_BYTES: Final = 64 * 1024
"""So much of a backlog is written at once: what the kernel does not take of it, the transport copies."""

DEFLATE_BYTES: Final = range(256, 1024 * 1024)
"""How large a message is worth compressing. A larger one would hold up the others for too long."""

DEFLATE_LEVEL: Final = 3
"""How hard zlib tries; more takes time that all boards wait."""

UNSENT_BYTES: Final = 64 * 1024
"""What the kernel may hold unsent for a client. Without this it swallows megabytes for one that does not read, and
falling behind would show late."""

# The protocol's own log is for debugging it; ours says what happened.
_quiet = logging.getLogger("relay.websockets")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


def frame(message: bytes) -> bytes:
    """Make a message what goes on the wire. Server frames carry no mask, so it serves every client."""
    return Frame(Opcode.TEXT, message).serialize(mask=False)


def deflated_frame(message: bytes) -> bytes:
    """Make a message what goes on the wire to clients that inflate: to all of them, for it needs no context."""
    if len(message) not in DEFLATE_BYTES:
        return frame(message)
    extension = PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=zlib.MAX_WBITS,
        local_max_window_bits=zlib.MAX_WBITS,
        compress_settings={"level": DEFLATE_LEVEL},
    )
    return Frame(Opcode.TEXT, message).serialize(mask=False, extensions=[extension])


# Each message by itself, in both directions: so one compressed message is good for many clients, and none costs
# the memory of a window.
_DEFLATE: Final = (ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True),)


TURNS: Final = 64
"""Connections are pinged in so many turns: ten thousand at once would hold up changes for a quarter of a second."""


SUBPROTOCOL: Final = "relay"
"""What a client may offer beside a credential: a browser wants one of what it offers to be taken."""

NOT_ALLOWED: Final = "this board may not be followed"
"""Said of boards that exist and of those that do not."""

RETRY_SECONDS: Final = "5"
"""When a client that found no place may try again."""

EXPIRY_LOOK_SECONDS: Final = 30.0
"""How often the clock is looked at that a token expires by: it may be set meanwhile."""

MAX_BAD_TOKENS: Final = 5
"""So many on one connection close it: here nobody shall guess faster than at the door."""

JUDGE_SECONDS: Final = 30.0
"""How often the database is asked again about every board that is followed."""

QUESTIONS: Final = 500
"""So many are asked at once."""

MESSAGE_BURST: Final = 4
"""How many seconds' worth of messages may come at once."""


_RECEIVED: Final = memoryview(bytearray(PIECE_BYTES))
"""Where the system puts what a client sent, until it is taken, which is at once: one for all. Otherwise asyncio asks
for 256 KB for each few bytes that come, which leaves the heap in pieces, and larger by the hour."""

_END: Final = b"\r\n\r\n"
"""The end of a handshake."""

_RAISE: Final = (
    "Too many connections a minute. Many clients behind one address? "
    "Raise WS_RATE_LIMIT_PER_CLIENT and WS_RATE_LIMIT_TOTAL, and name proxies in WS_TRUSTED_PROXIES.\n"
)
"""The body of a 429, for developers and operators."""

_TOO_MANY: Final = (
    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: %d\r\nConnection: close\r\n"
    f"Content-Type: text/plain\r\nContent-Length: {len(_RAISE)}\r\n\r\n{_RAISE}"
).encode()

UNFINISHED_BYTES: Final = 32 * 1024 * 1024
"""So much of messages that are not whole yet is kept, for all clients together."""

SMALL_BYTES: Final = 2 * PIECE_BYTES
"""A client with so much of an unfinished message is not closed for what others have."""

CLOSE_CODES: Final = frozenset({*CloseCode, *range(1000, 1016)})
"""The codes that are counted by themselves; a client may send thousands of others."""


def _our_subprotocol(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _listed(values: Iterable[str]) -> list[str]:
    """Split the values of a header that is a list."""
    return [each.strip() for value in values for each in value.split(",")]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take, and all together. 0 or None is no limit."""

    send_buffer: int = SEND_BUFFER_BYTES
    all_buffers: int | None = None
    messages_a_second: int = 0
    boards: int | None = None
    handshake_seconds: float = OPEN_SECONDS
    idle_seconds: float = 0.0


Question = tuple[Mapping[str, Any], str]
"""The claims of a token, and the board that is to be read with it."""


class Judge(Protocol):
    """Who decides about boards, beside the token that names them."""

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Answer each question, however long it takes."""


class Endpoint:
    """Listens, and keeps the connections. `places` are those that several endpoints share, if they do.

    `new_keys` has the gate's keys read again, for a token is signed with one that it does not know.
    """

    def __init__(  # the parts of one process, put together in one place
        self,
        hub: Hub,
        *,
        heartbeat: float,
        max_connections: int,
        places: Places | None = None,
        limits: Limits | None = None,
        compression: bool = False,
        gate: Gate | None = None,
        new_keys: Callable[[], Awaitable[None]] | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.hub = hub
        self.limits = limits or Limits()
        self.gate = gate or Gate()
        self.new_keys = new_keys
        self.refusals = Refusals("websocket.refused")
        self.unread = Refusals("websocket.unread_header")
        self.opened = 0
        self.closed: Counter[str] = Counter()
        self.buffered = 0
        self.unfinished = 0
        self._judge = judge
        self._questions: Questions[Connection, Grant] = Questions()
        self._asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.extensions = _DEFLATE if compression else ()
        self._heartbeat = heartbeat
        self._places = places or Places(max_connections)
        self.listener = Listener(
            self.refusals,
            lambda: self.limits.handshake_seconds,
            proxies=lambda: self.gate.proxies,
            flooded=lambda address: self.gate.flooded(address, time.monotonic()),
            turn_back=self._turn_back,
        )
        self._connections: dict[Connection, set[Connection]] = {}
        self._turns = tuple(set[Connection]() for _ in range(TURNS))
        self._next_turn = itertools.cycle(self._turns)
        self._shaking_hands: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._heart: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._plain = True
        self._stopping = False

    async def open(
        self, host: str, port: int, *, reuse_port: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        """Begin to listen, if wanted on a port that others share. Raises OSError if the address cannot be had."""
        self.open_on(await bind(host, port, reuse_port=reuse_port), tls=tls)

    def open_on(self, sockets: Sequence[socket.socket], *, tls: ssl.SSLContext | None = None) -> None:
        """Begin to listen on sockets that are bound."""
        self._plain = tls is None
        self.listener.open(sockets, lambda arrival: Connection(self, arrival), tls)
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")
        if self._judge:
            self.spend(self._judged(self._judge))
            self.spend(self._ask_again())

    @property
    def port(self) -> int | None:
        """The port it listens on, None if on none."""
        return self.listener.port

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def arrivals(self) -> int:
        """How many connections are not let in yet."""
        return sum(not arrival.over for arrival in self.listener.arrivals)

    @property
    def behind(self) -> int:
        """How many clients have not read what they were sent."""
        return sum(not connection.ready for connection in self._connections)

    def stop_listening(self) -> None:
        """Let nobody in any more."""
        self._stopping = True
        self.listener.stop()

    async def see_off(self, seconds: float) -> None:
        """Close every client's connection, spread over so many seconds: they shall not all come back at once."""
        loop = asyncio.get_running_loop()
        leaving, began = tuple(self._connections), loop.time()
        apart = min(seconds / max(1, len(leaving)), APART_SECONDS)
        for number, connection in enumerate(leaving):
            await asyncio.sleep(began + number * apart - loop.time())
            if connection in self._connections:
                connection.close(CloseCode.SERVICE_RESTART, _STOPPING)

    def abort(self) -> None:
        """Cut every client off."""
        for connection in tuple(self._connections.keys() | self._shaking_hands):
            connection.abort()

    async def close(self) -> None:
        """Stop listening, tell every client that is left that the relay goes away, and wait until they are gone."""
        if self._heart is None:
            return
        self.stop_listening()
        await self.listener.close()
        beside = (self._heart, *self._tasks)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        leaving = self._connections.keys() | self._shaking_hands
        self._empty.clear()
        for connection in leaving:
            connection.close(CloseCode.SERVICE_RESTART, _STOPPING)
        if leaving:
            await self._empty.wait()

    def admit(self, connection: Connection) -> str | None:
        """Count a client in and name it; None if there are too many, or the relay is stopping."""
        if self._stopping or not self._places.take():
            self.refusals.add(_STOPPING if self._stopping else "too many connections", connection.address)
            return None
        self.opened += 1
        self._shaking_hands.discard(connection)
        turn = self._connections[connection] = next(self._next_turn)
        turn.add(connection)
        return f"client-{next(self._numbers)}"

    def forget(self, connection: Connection) -> None:
        """Count a client out."""
        self._shaking_hands.discard(connection)
        if turn := self._connections.pop(connection, None):
            turn.remove(connection)
            self._places.give_back()
        if not self._connections and not self._shaking_hands:
            self._empty.set()
        self._questions.forget(connection)
        self.hub.leave(connection)

    def ask(self, connection: Connection, board: str, grant: Grant) -> bool:
        """Have it decided whether a client may follow a board: `decided`, soon. False if the token alone decides."""
        if self._judge:
            self._questions.ask(connection, board, grant)
            self._asked.set()
        return self._judge is not None

    def ask_no_more(self, connection: Connection, board: str) -> None:
        """Forget a question: the client does not want the board any more."""
        self._questions.withdraw(connection, board)

    def spend(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside, until it is done or the endpoint is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check_grants(self) -> None:
        """Look at every client's credential again, for others may be good now."""
        for connection in tuple(self._connections):
            connection.check_grant()

    async def _judged(self, judge: Judge) -> None:
        while True:
            await self._asked.wait()
            if not (asked := self._questions.take(QUESTIONS)):
                self._asked.clear()
                continue
            answers = await judge.may_read([(grant.claims, board) for _, board, grant in asked])
            for (connection, board, grant), may in zip(asked, answers, strict=True):
                connection.decided(board, grant, may=may)

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_SECONDS)
            for connection in self._connections:
                connection.ask_again()

    def _turn_back(self, sock: socket.socket, address: str, wait: float) -> None:
        """Answer one of a flood. Its request, if it is here, is taken first, or the answer might be lost."""
        self.refusals.add(FLOOD, address)
        with contextlib.suppress(OSError), sock:
            if self._plain:
                with contextlib.suppress(BlockingIOError):
                    sock.recv(PIECE_BYTES)
                sock.send(_TOO_MANY % math.ceil(wait))

    def arrive(self, connection: Connection) -> None:
        """Note a connection that may begin its handshake."""
        self._shaking_hands.add(connection)

    async def _beat(self) -> None:
        for turn in itertools.cycle(self._turns):
            await asyncio.sleep(self._heartbeat / TURNS)
            for connection in tuple(turn):
                connection.beat()


class Connection(asyncio.BufferedProtocol):
    """One client, and the hub's `Subscriber`."""

    __slots__ = (
        "_alive",
        "_arrival",
        "_backlog",
        "_bad_messages",
        "_bad_tokens",
        "_binary",
        "_blocked",
        "_client_id",
        "_counted",
        "_credential",
        "_early",
        "_ending",
        "_endpoint",
        "_eof",
        "_expiry",
        "_grant",
        "_handshake_bytes",
        "_idle_since",
        "_largest",
        "_last_moment",
        "_left",
        "_moved",
        "_offset",
        "_partial",
        "_protocol",
        "_tail",
        "_timer",
        "_transport",
        "_unfinished",
        "_unsent",
        "_waiting",
        "_wanted",
        "address",
        "closed",
        "inflates",
        "ready",
    )

    def __init__(self, endpoint: Endpoint, arrival: Arrival | None = None) -> None:
        self._endpoint = endpoint
        self._arrival = arrival
        self.address = arrival.address if arrival else ""
        self._protocol = ServerProtocol(
            extensions=endpoint.extensions,
            max_size=protocol.MAX_MESSAGE_BYTES,
            logger=_quiet,
            select_subprotocol=_our_subprotocol,
        )
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._client_id: str | None = None
        self._partial: bytearray | None = None
        self._binary = False
        self._bad_messages = 0
        self._alive = True
        self._ending = False
        self._last_moment = math.inf
        # The backlog, if there is one, how far its first buffer is written, and how much of it waits.
        self._backlog: deque[bytes] | None = None
        self._offset = 0
        self._waiting = 0
        self._eof = False
        # The transport holds the rest of a piece; so much of it at the last beat; and whether it took more since.
        self._blocked = False
        self._unsent = 0
        self._moved = False
        self._largest = 0
        # What it presented, what that is worth, and the boards that it has asked for and nobody has decided about.
        self._credential: str | None = None
        self._grant = EVERYBODY
        self._expiry: asyncio.TimerHandle | None = None
        self._wanted: dict[str, Subscribe] = {}
        self._early: bytes | None = None
        self._bad_tokens = 0
        # The last bytes of an unfinished handshake, and how many it has had; how much of a message is unfinished.
        self._tail = b""
        self._handshake_bytes = 0
        self._unfinished = 0
        # How many messages it may send at once, as of when; and since when it has followed no board.
        self._left = math.inf
        self._counted = 0.0
        self._idle_since: float | None = None
        self.ready = False
        self.inflates = False
        self.closed = False

    # What the hub and the endpoint say

    def send(self, frames: bytes) -> None:
        """Write whole frames, to a client that is ready."""
        if self._blocked or len(frames) > PIECE_BYTES:
            self._queue(frames)
        else:
            self._transport.write(frames)

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the closing handshake; a client that does not answer is cut off."""
        if self._protocol.state is State.OPEN:
            self.ready = False
            self._protocol.send_close(code, reason)
            self._flush()
            self._end_soon()
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Cut the client off."""
        self._transport.abort()

    def beat(self) -> None:
        """Drop the client if it is silent since the last beat, give it up if it did not read; else ping it."""
        if self._protocol.state is not State.OPEN:
            return
        if self._is_idle():
            log.info("websocket.dropped", clientId=self._client_id, reason="follows no board")
            self.close(CloseCode.IDLE, "no board was followed for long")
            return
        unsent, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        moved, self._moved = self._moved, False
        if unsent and self._unsent >= unsent and not moved:
            self._give_up()
        elif self._alive or self._blocked:
            self._alive = False
            self._protocol.send_ping(b"")
            self._flush()
        else:
            log.info("websocket.dropped", clientId=self._client_id, reason="no answer to a ping")
            self._transport.abort()

    @property
    def waiting(self) -> int:
        """How many bytes wait for the client to read, beside those in the kernel."""
        return self._waiting + self._transport.get_write_buffer_size()

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._arrival:
            self._arrival.transport = self._transport
        self._endpoint.arrive(self)
        # The backlog is ours: the transport says at once when it could not write all, and when it then has.
        # Under TLS it says so when so much waits, else when more does.
        self._transport.set_write_buffer_limits(high=1 if transport.get_extra_info("ssl_object") else 0, low=0)
        self._limit_unsent(UNSENT_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_RECEIVED[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._alive = True
        if self._protocol.state is State.CONNECTING:
            if self._holds_back(data) or self._is_foreign(data):
                return
            # What a client sends along with its handshake is answered after it, not before.
            handshake, data = self._handshake_of(data)
            self._take_handshake(handshake)
            if self._holds_back(data):
                return
        if data:
            self._unfinished_by(len(data))
            self._protocol.receive_data(data)
            self._handle()

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._handle()
        # And the transport closes, when it could write what is left: who has ended has had its close frame.
        self._end_soon()

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._moved = True
        if self._ending:
            self._cut_off_in(min(CLOSE_SECONDS, self._last_moment - asyncio.get_running_loop().time()))
        self._write_backlog()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.ready = False
        self._backlog = None
        if self._timer:
            self._timer.cancel()
        if self._expiry:
            self._expiry.cancel()
        self._endpoint.buffered -= self._waiting
        self._waiting = 0
        self._endpoint.unfinished -= self._unfinished
        self._unfinished = 0
        self.closed = True
        if self._arrival:
            self._arrival.settle()
        self._endpoint.forget(self)
        if self._client_id:
            code = self._protocol.close_code
            self._endpoint.closed[str(code) if code in CLOSE_CODES else "other"] += 1
            log.info(
                "websocket.close",
                clientId=self._client_id,
                code=code,
                connections=self._endpoint.connections,
            )

    def _is_foreign(self, first: bytes) -> bool:
        """End a connection that begins with another protocol."""
        if self._handshake_bytes or not (reason := handshake.foreign(first)):
            return False
        self._endpoint.refusals.add(reason, self.address)
        self._transport.abort()
        return True

    def _take_handshake(self, data: bytes) -> None:
        """Pass on a part of a handshake; count what the protocol refuses."""
        if self._protocol.handshake_exc or self._ending:
            return
        self._handshake_bytes += len(data)
        if self._handshake_bytes > handshake.MOST_BYTES:
            self._endpoint.refusals.add(handshake.TOO_LONG, self.address)
            status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._protocol.send_response(self._protocol.reject(status, f"{status.phrase}\n"))
        else:
            self._protocol.receive_data(data)
        self._handle()
        if ex := self._protocol.handshake_exc:
            self._endpoint.refusals.add(handshake.reason(ex), self.address, detail=str(ex))

    def _unfinished_by(self, more: int) -> None:
        """Count what is kept of a message that is not whole; cut the client off if that is too much for all."""
        self._unfinished += more
        self._endpoint.unfinished += more
        if self._endpoint.unfinished > UNFINISHED_BYTES and self._unfinished > SMALL_BYTES:
            self._endpoint.refusals.add("too much of unfinished messages", self.address)
            self._transport.abort()

    def _handshake_of(self, data: bytes) -> tuple[bytes, bytes]:
        """Part what belongs to the handshake from what follows; its end may have come in pieces."""
        seen = self._tail + data
        end = seen.find(_END)
        if end < 0:
            self._tail = seen[1 - len(_END) :]
            return data, b""
        length = end + len(_END) - len(self._tail)
        return data[:length], data[length:]

    def _holds_back(self, data: bytes) -> bool:
        """Keep what comes while the handshake waits for the gate's keys."""
        if self._early is None:
            return False
        self._early += data
        return True

    # What the client says

    def _handle(self) -> None:
        # The protocol has a pong ready for each ping, and perhaps a last word: each is said in its turn.
        said = self._protocol.data_to_send()
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._open(event)
                self._flush()
            elif isinstance(event, Frame):
                if event.opcode is Opcode.PING:
                    self._say(said[:1])
                    del said[:1]
                self._receive(event)
                self._unfinished_by(len(self._partial or b"") - self._unfinished)
        self._say(said)
        self._flush()
        if self._client_id and self._protocol.state is not State.OPEN:
            self.ready = False
            self._endpoint.hub.leave(self)
        if self._protocol.close_expected():
            self._end_soon()

    def _open(self, request: Request) -> None:
        visitor = self._visitor(request)
        try:
            self._grant = self._endpoint.gate.admit(visitor, asyncio.get_running_loop().time())
        except UnknownKey as ex:
            if self._endpoint.new_keys is None:
                self._turn_away(ex)
            else:
                self._early = b""
                self._transport.pause_reading()
                self._endpoint.spend(self._open_later(request, visitor, self._endpoint.new_keys))
        except Refused as ex:
            self._turn_away(ex)
        else:
            self._welcome(request, visitor)

    async def _open_later(self, request: Request, visitor: Visitor, new_keys: Callable[[], Awaitable[None]]) -> None:
        """Go on with the handshake when the keys have been read again."""
        await new_keys()
        early, self._early = self._early, None
        if self.closed or self._ending or self._transport.is_closing():
            return
        try:
            self._grant = self._endpoint.gate.access.grant(visitor.credential)
        except Refused as ex:
            self._turn_away(ex)
        else:
            self._welcome(request, visitor)
        self._handle()
        self._transport.resume_reading()
        if early and self._protocol.state is State.OPEN:
            self.data_received(early)

    def _visitor(self, request: Request) -> Visitor:
        headers = request.headers
        hosts = headers.get_all("Host")
        visitor = Visitor(
            peer=self.address,
            target=request.path,
            authorization=headers.get_all("Authorization"),
            subprotocols=_listed(headers.get_all("Sec-WebSocket-Protocol")),
            origins=headers.get_all("Origin"),
            host=hosts[0] if len(hosts) == 1 else None,
            forwarded=headers.get_all("X-Forwarded-For"),
            standard=headers.get_all("Forwarded"),
        )
        source = self._endpoint.gate.source(visitor)
        if source.fault:
            self._endpoint.unread.add("a proxy's header cannot be read", self.address, found=source.fault)
        self.address = source.address
        return visitor

    def _turn_away(self, why: Refused) -> None:
        """Answer in few bytes, and not with what was wrong with a credential: that is for the log."""
        details = {"origin": why.origin} if isinstance(why, ForeignOrigin) else {}
        self._endpoint.refusals.add(str(why), self.address, **details)
        if isinstance(why, TooMany):
            response = self._protocol.reject(why.status, _RAISE)
            response.headers["Retry-After"] = str(why.seconds)
        else:
            response = self._protocol.reject(why.status, f"{why.status.phrase}\n")
            response.headers["WWW-Authenticate"] = "Bearer"
        self._protocol.send_response(response)

    def _welcome(self, request: Request, visitor: Visitor) -> None:
        response = self._protocol.accept(request)
        if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self._client_id = self._endpoint.admit(self)
            if self._client_id is None:
                response = self._protocol.reject(
                    http.HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections: try again later.\n"
                )
                response.headers["Retry-After"] = RETRY_SECONDS
        self._protocol.send_response(response)
        if self._client_id is not None:
            if self._arrival:
                self._arrival.settle()
            self.ready = True
            self._credential = None if self._endpoint.gate.access.open else visitor.credential
            self._expire()
            # One that asked for a smaller window is sent its messages as they are, as the extension allows.
            self.inflates = any(
                isinstance(extension, PerMessageDeflate) and extension.local_max_window_bits == zlib.MAX_WBITS
                for extension in self._protocol.extensions
            )
            log.info("websocket.connection", clientId=self._client_id, connections=self._endpoint.connections)

    def _receive(self, received: Frame) -> None:
        """Act on a frame; pings, pongs and closing are the protocol's."""
        if self._protocol.state is not State.OPEN:
            return
        if received.opcode in (Opcode.PING, Opcode.CONT):
            self._count_frame()
        if received.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if received.opcode is not Opcode.CONT:
                self._binary = received.opcode is Opcode.BINARY
            if received.fin and self._partial is None:
                self._receive_message(bytes(received.data))
                return
            self._partial = self._partial or bytearray()
            self._partial += received.data
            if received.fin:
                message, self._partial = bytes(self._partial), None
                self._receive_message(message)

    def _receive_message(self, message: bytes) -> None:
        try:
            self._count_message()
            if self._binary:
                raise BadMessage("binary_message", "found a binary message: expected text")  # noqa: TRY301
            self._act(protocol.parse(message.decode()))
            self._bad_messages = 0
        except UnicodeDecodeError:
            self._protocol.fail(CloseCode.INVALID_TEXT, "text that is not UTF-8")
        except BadMessage as ex:
            self._refuse(ex)

    def _act(self, message: protocol.ClientMessage) -> None:
        match message:
            case Ping():
                self._answer(protocol.PONG)
            case Subscribe():
                self._subscribe(message)
            case protocol.Unsubscribe(board_id=board):
                log.info("websocket.unsubscribe", clientId=self._client_id, board=board[:100])
                self._wanted.pop(board, None)
                self._endpoint.ask_no_more(self, board)
                self._endpoint.hub.unsubscribe(self, board)
            case protocol.Authenticate(token=token):
                self._authenticate(token)

    def _subscribe(self, message: Subscribe) -> None:
        board, most = message.board_id, self._endpoint.limits.boards
        if most is not None:
            boards = {*self._endpoint.hub.following(self), *self._wanted}
            if board not in boards and len(boards) >= most:
                raise BadMessage("too_many_boards", f"{most} boards are followed already: expected no more", board)
        if not self._grant.names(board):
            raise BadMessage("not_allowed", NOT_ALLOWED, board)
        if self._endpoint.ask(self, board, self._grant):
            self._wanted[board] = message
        else:
            self._follow(message)

    def decided(self, board: str, grant: Grant, *, may: bool) -> None:
        """Follow a board that was asked for, or say that it may not be, or not any more.

        An answer to what its last token was worth counts no more: all was asked again when it came.
        """
        if not grant.allows_as(self._grant) or self.closed or self._protocol.state is not State.OPEN:
            return
        if (message := self._wanted.pop(board, None)) is None:
            if not may:
                self.revoke(board)
        elif may and grant.names(board):
            self._follow(message)
        else:
            self._refuse(BadMessage("not_allowed", NOT_ALLOWED, board))

    def ask_again(self) -> int:
        """Have it decided again about every board that it follows or waits for; return how many these are."""
        boards = {*self._endpoint.hub.following(self), *self._wanted}
        return sum(self._endpoint.ask(self, board, self._grant) for board in boards)

    def _follow(self, message: Subscribe) -> None:
        board, cursor = message.board_id, message.cursor
        log.info("websocket.subscribe", clientId=self._client_id, board=board[:100])
        # What is not even text is as good as any text that is no cursor.
        text = cursor if cursor is None or isinstance(cursor, str) else ""
        self._endpoint.hub.subscribe(self, board, resumable=message.resumable, cursor=text)

    # What its credential is worth

    def revoke(self, board: str) -> None:
        """Send nothing more of a board, and say so."""
        if board in self._endpoint.hub.following(self) and self._protocol.state is State.OPEN:
            self._endpoint.hub.unsubscribe(self, board)
            log.info("websocket.revoked", clientId=self._client_id, board=board[:100])
            self._answer(protocol.error("not_allowed", NOT_ALLOWED, board))

    def check_grant(self) -> None:
        """Look at the credential again; close a connection whose is not good any more."""
        if self._protocol.state is not State.OPEN:
            return
        try:
            grant = self._endpoint.gate.access.grant(self._credential)
        except Refused:
            self._end_grant(CloseCode.TOKEN_REVOKED, "the token is not good any more")
        else:
            self._take(grant)

    def _authenticate(self, token: str) -> None:
        try:
            grant = self._endpoint.gate.access.grant(token)
        except Refused as ex:
            self._endpoint.refusals.add(str(ex), self.address)
            self._bad_tokens += 1
            if self._bad_tokens >= MAX_BAD_TOKENS:
                self._protocol.fail(CloseCode.POLICY, f"{self._bad_tokens} tokens that are not good")
                return
            raise BadMessage("not_authenticated", "the token is not good: the one before it still is") from None
        self._credential = None if self._endpoint.gate.access.open else token
        self._answer(protocol.AUTHENTICATED)
        self._take(grant)

    def _take(self, grant: Grant) -> None:
        """Go by another grant. One that allows the same asks the database nothing."""
        if grant.allows_as(self._grant):
            self._grant = replace(self._grant, expires=grant.expires)
            self._expire()
            return
        self._grant = grant
        self._expire()
        for board in self._endpoint.hub.following(self):
            if not grant.names(board):
                self.revoke(board)
        # Each question is as much work as a message.
        self._left -= self.ask_again()

    def _expire(self) -> None:
        """Close the connection when its token expires; look again then, for the clock may have been set."""
        if self._expiry:
            self._expiry.cancel()
            self._expiry = None
        if self._grant.expires is None:
            return
        left = self._grant.expires - time.time()
        if left <= 0:
            self._end_grant(CloseCode.TOKEN_EXPIRED, "the token has expired")
        else:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(min(left, EXPIRY_LOOK_SECONDS), self._expire)

    def _end_grant(self, code: CloseCode, reason: str) -> None:
        log.info("websocket.dropped", clientId=self._client_id, reason=reason)
        self._endpoint.hub.leave(self)
        self.close(code, reason)

    # What it may take

    def _count_frame(self) -> None:
        """Count a frame that is no message: it is as much work as one."""
        try:
            self._count_message()
        except BadMessage as ex:
            self._refuse(ex)

    def _count_message(self) -> None:
        """Count a message against the limit a second. Raises BadMessage."""
        if not (rate := self._endpoint.limits.messages_a_second):
            return
        now = asyncio.get_running_loop().time()
        self._left = min(MESSAGE_BURST * rate, self._left + (now - self._counted) * rate)
        self._counted = now
        if self._left < 1:
            raise BadMessage("too_many_messages", f"found more than {rate} messages a second: expected fewer")
        self._left -= 1

    def _is_idle(self) -> bool:
        if not (most := self._endpoint.limits.idle_seconds):
            return False
        now = asyncio.get_running_loop().time()
        if self._wanted or self._endpoint.hub.following(self):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return self._idle_since is not None and now - self._idle_since >= most

    def _refuse(self, bad: BadMessage) -> None:
        log.info("websocket.error", clientId=self._client_id, code=bad.code, message=str(bad))
        self._answer(protocol.error(bad.code, str(bad), bad.board))
        self._bad_messages += 1
        if self._bad_messages >= protocol.MAX_BAD_MESSAGES:
            self._protocol.fail(CloseCode.POLICY, f"{self._bad_messages} bad messages in a row")

    def _answer(self, message: Message) -> None:
        self._write(frame(message.json))

    # Out

    def _flush(self) -> None:
        """Write what the protocol has to say; if its last part is empty, the stream ends after it."""
        self._say(self._protocol.data_to_send())

    def _say(self, parts: Sequence[bytes]) -> None:
        if parts:
            self._eof |= not parts[-1]
            self._write(b"".join(parts))

    def _write(self, data: bytes) -> None:
        if data:
            if self._blocked:
                self._queue(data)
            else:
                self._transport.write(data)
        if not self._backlog:
            self._end_if_said()

    def _queue(self, data: bytes) -> None:
        """Have data wait; over the limit, the client takes no more, and says no more either."""
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(data)
        self._waiting += len(data)
        self._endpoint.buffered += len(data)
        self._largest = max(self._largest, len(data))
        if not self._blocked:
            self._write_backlog()
        if self._is_over(self._endpoint.limits):
            self.ready = False
            # Who does not read our answers shall not make us write more of them.
            self._transport.pause_reading()

    def _is_over(self, limits: Limits) -> bool:
        """Whether it may have no more wait: for it has too much, or all together have."""
        if self._waiting > limits.send_buffer + self._largest:
            return True
        return limits.all_buffers is not None and self._waiting > 0 and self._endpoint.buffered > limits.all_buffers

    def _write_backlog(self) -> None:
        while self._backlog and not self._blocked:
            self._transport.write(self._next_piece(self._backlog))
        if self._blocked:
            return
        self._backlog = None
        self._end_if_said()
        if not self.ready and self._protocol.state is State.OPEN and self._client_id:
            self._transport.resume_reading()
            self.ready = True
            self._endpoint.hub.caught_up(self)

    def _next_piece(self, backlog: deque[bytes]) -> bytes:
        """Take from a backlog what is to be written next."""
        parts: list[memoryview] = []
        room = PIECE_BYTES
        while backlog and room:
            part = memoryview(backlog[0])[self._offset : self._offset + room]
            parts.append(part)
            room -= len(part)
            self._offset += len(part)
            if self._offset == len(backlog[0]):
                backlog.popleft()
                self._offset = 0
        self._waiting -= PIECE_BYTES - room
        self._endpoint.buffered -= PIECE_BYTES - room
        return b"".join(parts)

    def _end_if_said(self) -> None:
        if not self._eof or self._transport.is_closing():
            return
        self._eof = False
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()  # TLS has no half-closed connections

    def _give_up(self) -> None:
        """Close a connection that nobody reads, with a code that tells the client should it read after all.

        Of what waits it still gets the frame that it has a part of.
        """
        log.info("websocket.dropped", clientId=self._client_id, reason="reads nothing", waiting=self.waiting)
        if self._backlog:
            begun = [self._backlog[0]] if self._offset else []
            self._backlog = deque(begun)
            self._endpoint.buffered -= self._waiting
            self._waiting = sum(map(len, begun)) - self._offset
            self._endpoint.buffered += self._waiting
        # The kernel shall take that, and the close frame, and keep them for a while when we are gone.
        self._limit_unsent(0)
        self._transport.resume_reading()
        self.close(CloseCode.TRY_AGAIN_LATER, "the client did not read what it was sent")

    def _limit_unsent(self, size: int) -> None:
        """Limit what the kernel takes before it has sent the rest; 0 is the kernel's own limit."""
        sock = self._transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

    def _end_soon(self) -> None:
        """Cut off a connection that is to end and does not, whatever the client goes on sending."""
        if not self._ending:
            self._ending = True
            self._last_moment = asyncio.get_running_loop().time() + LAST_SECONDS
            self._cut_off_in(CLOSE_SECONDS)

    def _cut_off_in(self, seconds: float | None) -> None:
        """Set the one timer of a connection: it is aborted unless the timer is set again."""
        if self._timer:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self._transport.abort)
