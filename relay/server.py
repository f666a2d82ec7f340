"""The WebSocket endpoint: sockets on one side, the hub on the other. The only module that imports websockets.

The protocol itself (handshake, frames, closing) is `websockets.server.ServerProtocol`, which does no I/O; here is
the I/O around it, as an `asyncio.Protocol`: cheaper per connection than a task and streams each, and the transport
is ours, so that one buffer of frames, made once for a board, is written as it is to each of its subscribers.

Rules:
- Everything the protocol has to say is written in the same step that made it say so. So between steps it holds
  nothing back, and frames made elsewhere may be written in between.
- A connection is open while the protocol's state is OPEN. Nothing is sent to one that is not.
- One timer serves all connections: at each heartbeat, who has been silent since the last one is dropped, the
  others are pinged.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import itertools
import logging
import socket
from typing import Final, cast

import structlog
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

BUFFER_BYTES: Final = 1024 * 1024
"""So much may wait for a client beside the largest buffer that it was sent. Above it, a subscriber takes no more
until it has read most of that: see the hub. Were a large board's sync counted, the next change would call for
another."""

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


class Endpoint:
    """Listens, and keeps the connections."""

    def __init__(self, hub: Hub, *, heartbeat: float, max_connections: int) -> None:
        self.hub = hub
        self._heartbeat = heartbeat
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._shaking_hands: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._heart: asyncio.Task[None] | None = None

    async def open(self, host: str, port: int) -> None:
        """Begin to listen. Raises OSError if the address is taken or is none of this machine's."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port, backlog=1024)
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
        leaving = self._connections | self._shaking_hands
        for connection in leaving:
            connection.close(CloseCode.GOING_AWAY, "the relay is stopping")
        await asyncio.gather(*(connection.closed.wait() for connection in leaving))

    def admit(self, connection: Connection) -> str | None:
        """Count a client in and name it; None if there are too many."""
        if len(self._connections) >= self._max_connections:
            log.warning("websocket.refused", reason="too many connections", connections=self.connections)
            return None
        self._shaking_hands.discard(connection)
        self._connections.add(connection)
        return f"client-{next(self._numbers)}"

    def forget(self, connection: Connection) -> None:
        """Count a client out."""
        self._shaking_hands.discard(connection)
        self._connections.discard(connection)
        self.hub.leave(connection)

    def _connection(self) -> Connection:
        connection = Connection(self)
        self._shaking_hands.add(connection)
        return connection

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat)
            for connection in tuple(self._connections):
                connection.beat()


class Connection(asyncio.Protocol):
    """One client, and the hub's `Subscriber`."""

    __slots__ = (
        "_alive",
        "_bad_messages",
        "_binary",
        "_client_id",
        "_ending",
        "_endpoint",
        "_fragments",
        "_largest",
        "_protocol",
        "_timer",
        "_transport",
        "_unsent",
        "closed",
        "ready",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._protocol = ServerProtocol(max_size=protocol.MAX_MESSAGE_BYTES, logger=_quiet)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._client_id: str | None = None
        self._fragments: list[bytes] = []
        self._binary = False
        self._bad_messages = 0
        self._alive = True
        self._unsent = 0
        self._largest = 0
        self._ending = False
        self.ready = False
        self.closed = asyncio.Event()

    # What the hub and the endpoint say

    def send(self, frames: bytes) -> None:
        """Write whole frames."""
        if self._protocol.state is State.OPEN:
            if len(frames) > self._largest:
                self._largest = len(frames)
                self._transport.set_write_buffer_limits(high=self._largest + BUFFER_BYTES)
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
        """Drop the client if it has neither sent nor read anything since the last beat, else ping it."""
        if self._protocol.state is not State.OPEN:
            return
        unsent, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        if not self._alive and self._unsent >= unsent:
            log.info("websocket.dropped", clientId=self._client_id, reason="no answer to a ping")
            self._transport.abort()
            return
        self._alive = False
        self._protocol.send_ping(b"")
        self._flush()

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        sock = self._transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
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
        self.ready = False
        # Who does not read our answers shall not make us write more of them.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()
        if self._protocol.state is State.OPEN:
            self.ready = True
            self._endpoint.hub.caught_up(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.ready = False
        if self._timer:
            self._timer.cancel()
        self.closed.set()
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
            log.info("websocket.connection", clientId=self._client_id, connections=self._endpoint.connections)

    def _receive(self, received: Frame) -> None:
        """Act on a frame; pings, pongs and closing are the protocol's."""
        if self._protocol.state is not State.OPEN:
            return
        if received.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if received.data:
                self._fragments.append(bytes(received.data))
            if received.opcode is not Opcode.CONT:
                self._binary = received.opcode is Opcode.BINARY
            if received.fin:
                message = b"".join(self._fragments)
                self._fragments.clear()
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
        self.send(frame(message.json))

    # Out

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof() and not self._transport.is_closing():
                self._transport.write_eof()

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
