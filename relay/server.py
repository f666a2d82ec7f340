"""The WebSocket endpoint: sockets on one side, the hub on the other. The only module that imports websockets.

The protocol itself (handshake, frames, closing) is `websockets.server.ServerProtocol`, which does no I/O; here is
the I/O around it, as an `asyncio.Protocol`: cheaper per connection than a task and streams each, and the transport
is ours, so that one buffer of frames, made once for a board, is written as it is to each of its subscribers.

Rules:
- Everything the protocol has to say is written in the same step that made it say so. So between steps it holds
  nothing back, and frames made elsewhere may be written in between.
- A connection is open while the protocol's state is OPEN. Nothing is sent to one that is not.
- What a client does not take yet waits in its *backlog*, which refers to the buffers that all share; only the piece
  that the kernel took a part of is a copy. A backlog over its limit takes no more, whatever the hub has.
- One timer serves all connections: at each heartbeat, who has been silent since the last one is dropped, who has
  read nothing while something waited is given up, and the others are pinged.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import socket
import zlib
from collections import deque
from typing import Final, cast

import structlog
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from relay import protocol
from relay.hub import Hub
from relay.protocol import BadMessage, CloseCode, Message, Ping, Subscribe

log = structlog.get_logger()

OPEN_SECONDS: Final = 10.0
"""How long a client may take over its handshake."""

CLOSE_SECONDS: Final = 3.0
"""How long a client may take to answer a closing handshake."""

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


class Places:
    """How many may be connected at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def take(self) -> bool:
        """Take a place for one more; false if there is none."""
        free = self._taken < self._limit
        self._taken += free
        return free

    def give_back(self) -> None:
        """Give a place back."""
        self._taken -= 1


class Endpoint:
    """Listens, and keeps the connections. `places` are those that several endpoints share, if they do."""

    def __init__(
        self,
        hub: Hub,
        *,
        heartbeat: float,
        max_connections: int,
        places: Places | None = None,
        send_buffer: int = SEND_BUFFER_BYTES,
        compression: bool = False,
    ) -> None:
        self.hub = hub
        self.send_buffer = send_buffer
        self.extensions = _DEFLATE if compression else ()
        self._heartbeat = heartbeat
        self._places = places or Places(max_connections)
        self._connections: dict[Connection, set[Connection]] = {}
        self._turns = tuple(set[Connection]() for _ in range(TURNS))
        self._next_turn = itertools.cycle(self._turns)
        self._shaking_hands: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._heart: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    async def open(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Begin to listen, if wanted on a port that others share. Raises OSError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection, host, port, backlog=1024, reuse_port=reuse_port or None
        )
        self._heart = asyncio.create_task(self._beat(), name="heartbeat")

    @property
    def port(self) -> int | None:
        """Where it listens, None if it does not."""
        sockets = self._server.sockets if self._server else ()
        return cast(int, sockets[0].getsockname()[1]) if sockets else None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def close(self) -> None:
        """Stop listening, tell every client that the relay goes away, and wait until they are gone."""
        if self._server is None or self._heart is None:
            return
        self._server.close()
        self._heart.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._heart
        leaving = self._connections.keys() | self._shaking_hands
        self._empty.clear()
        for connection in leaving:
            connection.close(CloseCode.GOING_AWAY, "the relay is stopping")
        if leaving:
            await self._empty.wait()

    def admit(self, connection: Connection) -> str | None:
        """Count a client in and name it; None if there are too many."""
        if not self._places.take():
            log.warning("websocket.refused", reason="too many connections", connections=self.connections)
            return None
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
        self.hub.leave(connection)

    def _connection(self) -> Connection:
        connection = Connection(self)
        self._shaking_hands.add(connection)
        return connection

    async def _beat(self) -> None:
        for turn in itertools.cycle(self._turns):
            await asyncio.sleep(self._heartbeat / TURNS)
            for connection in tuple(turn):
                connection.beat()


class Connection(asyncio.Protocol):
    """One client, and the hub's `Subscriber`."""

    __slots__ = (
        "_alive",
        "_backlog",
        "_bad_messages",
        "_binary",
        "_blocked",
        "_client_id",
        "_ending",
        "_endpoint",
        "_eof",
        "_largest",
        "_moved",
        "_offset",
        "_partial",
        "_protocol",
        "_timer",
        "_transport",
        "_unsent",
        "_waiting",
        "closed",
        "inflates",
        "ready",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._protocol = ServerProtocol(
            extensions=endpoint.extensions, max_size=protocol.MAX_MESSAGE_BYTES, logger=_quiet
        )
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._client_id: str | None = None
        self._partial: bytearray | None = None
        self._binary = False
        self._bad_messages = 0
        self._alive = True
        self._ending = False
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

    def beat(self) -> None:
        """Drop the client if it is silent since the last beat, give it up if it did not read; else ping it."""
        if self._protocol.state is not State.OPEN:
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
        # The backlog is ours: the transport says at once when it could not write all, and when it then has.
        self._transport.set_write_buffer_limits(high=0)
        self._limit_unsent(UNSENT_BYTES)
        self._cut_off_in(OPEN_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._alive = True
        if self._protocol.state is State.CONNECTING:
            # What a client sends along with its handshake is answered after it, not before.
            handshake, end, data = data.partition(b"\r\n\r\n")
            self._protocol.receive_data(handshake + end)
            self._handle()
        if data:
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
        self._write_backlog()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.ready = False
        self._backlog = None
        if self._timer:
            self._timer.cancel()
        self.closed = True
        self._endpoint.forget(self)
        if self._client_id:
            log.info(
                "websocket.close",
                clientId=self._client_id,
                code=self._protocol.close_code,
                connections=self._endpoint.connections,
            )

    # What the client says

    def _handle(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._open(event)
                self._flush()
            elif isinstance(event, Frame):
                self._receive(event)
        self._flush()
        if self._client_id and self._protocol.state is not State.OPEN:
            self.ready = False
            self._endpoint.hub.leave(self)
        if self._protocol.close_expected():
            self._end_soon()

    def _open(self, request: Request) -> None:
        response = self._protocol.accept(request)
        if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self._client_id = self._endpoint.admit(self)
            if self._client_id is None:
                response = self._protocol.reject(
                    http.HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections: try again later.\n"
                )
        self._protocol.send_response(response)
        if self._client_id is not None:
            self._cut_off_in(None)
            self.ready = True
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
            case Subscribe(board_id=board, cursor=cursor):
                log.info("websocket.subscribe", clientId=self._client_id, board=board[:100])
                # What is not even text is as good as any text that is no cursor.
                text = cursor if cursor is None or isinstance(cursor, str) else ""
                self._endpoint.hub.subscribe(self, board, resumable=message.resumable, cursor=text)
            case protocol.Unsubscribe(board_id=board):
                log.info("websocket.unsubscribe", clientId=self._client_id, board=board[:100])
                self._endpoint.hub.unsubscribe(self, board)

    def _refuse(self, bad: BadMessage) -> None:
        log.info("websocket.error", clientId=self._client_id, code=bad.code, message=str(bad))
        self._answer(protocol.error(bad.code, str(bad)))
        self._bad_messages += 1
        if self._bad_messages >= protocol.MAX_BAD_MESSAGES:
            self._protocol.fail(CloseCode.POLICY, f"{self._bad_messages} bad messages in a row")

    def _answer(self, message: Message) -> None:
        self._write(frame(message.json))

    # Out

    def _flush(self) -> None:
        """Write what the protocol has to say; if its last part is empty, the stream ends after it."""
        if parts := self._protocol.data_to_send():
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
        self._largest = max(self._largest, len(data))
        if not self._blocked:
            self._write_backlog()
        if self._waiting > self._endpoint.send_buffer + self._largest:
            self.ready = False
            # Who does not read our answers shall not make us write more of them.
            self._transport.pause_reading()

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
        return b"".join(parts)

    def _end_if_said(self) -> None:
        if self._eof and self._transport.can_write_eof() and not self._transport.is_closing():
            self._eof = False
            self._transport.write_eof()

    def _give_up(self) -> None:
        """Close a connection that nobody reads, with a code that tells the client should it read after all.

        Of what waits it still gets the frame that it has a part of.
        """
        log.info("websocket.dropped", clientId=self._client_id, reason="reads nothing", waiting=self.waiting)
        if self._backlog:
            begun = [self._backlog[0]] if self._offset else []
            self._backlog = deque(begun)
            self._waiting = sum(map(len, begun)) - self._offset
        # The kernel shall take that, and the close frame, and keep them for a while when we are gone.
        self._limit_unsent(0)
        self._transport.resume_reading()
        self.close(CloseCode.TRY_AGAIN_LATER, "the client did not read what it was sent")

    def _limit_unsent(self, size: int) -> None:
        """Limit what the kernel takes before it has sent the rest; 0 is the kernel's own limit."""
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

    def _end_soon(self) -> None:
        """Cut off a connection that is to end and does not, whatever the client goes on sending."""
        if not self._ending:
            self._ending = True
            self._cut_off_in(CLOSE_SECONDS)

    def _cut_off_in(self, seconds: float | None) -> None:
        """Set the one timer of a connection: it is aborted unless the timer is set again."""
        if self._timer:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self._transport.abort)
