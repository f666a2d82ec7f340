"""A connection: bytes, handshake, frames, closing.

The protocol itself is `websockets.server.ServerProtocol`, which does no I/O. This module adds the I/O as an
`asyncio.BufferedProtocol`, which costs less per connection than a task with streams, and gives access to the
transport: so one buffer of frames can be written to all subscribers of a board.

Messages from a client go to its `Client` (commands.py), messages to it come from its `Outbox`. A request for events
is handed on to an `EventStream` (stream.py).

Rules:
- Output of the protocol is written in the step that produces it. So the protocol never holds output back, and frames
  from elsewhere can be written between two steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final, cast

import structlog
from websockets.exceptions import InvalidMessage
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from relay.auth.gate import ForeignOrigin, TooMany, Visitor
from relay.auth.tokens import Grant, Refused, UnknownKey
from relay.model import messages
from relay.model.messages import BadMessage, CloseCode
from relay.websocket import events, frames, handshake
from relay.websocket.commands import Client, Failed
from relay.websocket.handshake import SUBPROTOCOL, Handshake
from relay.websocket.inbox import Inbox
from relay.websocket.listener import Arrival
from relay.websocket.outbox import PIECE_BYTES, Outbox
from relay.websocket.peer import BROKEN, Peer, Shared
from relay.websocket.stream import EventStream

log = structlog.get_logger()


_RECEIVED: Final = memoryview(bytearray(PIECE_BYTES))
"""Receive buffer of all connections: data are taken out at once. Without it, asyncio allocates 256 KB for every few
bytes received, which fragments the heap."""

PARSED_BYTES: Final = 8 * 1024
"""Maximum number of received bytes parsed at once, because compressed ones can be a thousand times as many."""

# The library's log would repeat what the relay's own log reports.
_quiet = logging.getLogger("relay.websockets")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class Connection(Peer, asyncio.BufferedProtocol):
    """A connection on which WebSocket is spoken, once the handshake is over."""

    __slots__ = (
        "_alive",
        "_arrival",
        "_handshake",
        "_inbox",
        "_protocol",
    )

    def __init__(self, shared: Shared, arrival: Arrival | None = None) -> None:
        outbox = Outbox(shared.limits, shared.backlogs, shared.caught_up)
        super().__init__(shared, arrival.address if arrival else "", outbox)
        self._arrival = arrival
        self._protocol = ServerProtocol(
            extensions=shared.extensions,
            max_size=messages.MAX_MESSAGE_BYTES,
            logger=_quiet,
            select_subprotocol=_our_subprotocol,
        )
        self._handshake: Handshake | None = Handshake()
        self._inbox = Inbox(shared.unfinished)
        self._alive = True

    # Called by the endpoint

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the closing handshake; if the client does not answer, the connection is aborted."""
        if self._protocol.state is State.OPEN:
            self.outbox.shut()
            self._protocol.send_close(code, reason)
            self._flush()
            self._end_soon()
        else:
            self._transport.abort()

    def _keep_alive(self) -> None:
        """Drop the client if it has been silent since the last beat, otherwise ping it."""
        if self._alive or self.outbox.blocked:
            self._alive = False
            self._protocol.send_ping(b"")
            self._flush()
        else:
            self._drop("no answer to a ping")
            self._transport.abort()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._arrival:
            self._arrival.transport = self._transport
        self.outbox.attach(self._transport)
        self._shared.clients.arrive(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_RECEIVED[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take data from the client."""
        self._alive = True
        if self._handshake:
            # Data behind the handshake are handled after it.
            data = self._shake_hands(self._handshake, data)
        for start in range(0, len(data), PARSED_BYTES):
            piece = data[start : start + PARSED_BYTES]
            self._inbox.arrived(len(piece))
            if self._inbox.fits:
                self._protocol.receive_data(piece)
                self._handle()
            if not self._inbox.fits:  # a piece that was compressed is more now
                self._shared.entrance.refusals.add("too much of unfinished messages", self.address)
                self._transport.abort()
                return

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._handle()
        # Returning None makes the transport close once it has written the rest, including the close frame.
        self._end_soon()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._inbox.discard()
        if self._arrival:
            self._arrival.settle()
        # What the library calls the close code is the client's, which it discards after a violation of the protocol.
        sent = self._protocol.close_sent
        self._lost((sent.code if sent else BROKEN) if self.client else None)

    # The handshake

    def _shake_hands(self, shake: Handshake, data: bytes) -> bytes:
        """Consume the part of the data that belongs to the handshake; return the rest."""
        if shake.holds_back(data):
            return b""
        if not shake.has_begun and (reason := handshake.foreign(data)):
            self._shared.entrance.refusals.add(reason, self.address)
            self._transport.abort()
            return b""
        part, rest = shake.part(data)
        self._take_handshake(shake, part)
        return b"" if shake.holds_back(rest) else rest

    def _take_handshake(self, shake: Handshake, data: bytes) -> None:
        """Pass on a part of the handshake; count the refusals of the protocol."""
        if self._protocol.handshake_exc or self._ending:
            return
        entrance = self._shared.entrance
        if shake.is_too_long:
            self._protocol.send_response(entrance.too_long(self._protocol, self.address))
        else:
            self._protocol.receive_data(data)
        if isinstance(self._protocol.handshake_exc, InvalidMessage):
            self.outbox.write(handshake.no_request(self._protocol))
        self._handle()
        if ex := self._protocol.handshake_exc:
            entrance.refusals.add(handshake.reason(ex), self.address, detail=str(ex.__cause__ or ex))

    def _open(self, request: Request) -> None:
        """Ask the gate; if the token is signed with an unknown key, read the keys again first."""
        entrance = self._shared.entrance
        visitor = entrance.visitor(request, self.address)
        self.address = visitor.address
        try:
            now = asyncio.get_running_loop().time()
            if events.is_preflight(request):
                entrance.gate.let_ask(visitor, now)
                self._answer(events.preflight(visitor))
                return
            grant = entrance.gate.admit(visitor, now)
        except UnknownKey as ex:
            if entrance.new_keys is None or self._handshake is None:
                self._turn_away(request, visitor, ex)
            else:
                self._handshake.early = b""
                self._transport.pause_reading()
                self._shared.spend(self._open_later(request, visitor, entrance.new_keys))
        except Refused as ex:
            self._turn_away(request, visitor, ex)
        else:
            self._welcome(request, visitor, grant)

    async def _open_later(self, request: Request, visitor: Visitor, new_keys: Callable[[], Awaitable[None]]) -> None:
        """Continue the handshake after the keys have been read again."""
        await new_keys()
        shake, entrance = self._handshake, self._shared.entrance
        if shake is None or self.closed or self._ending or self._transport.is_closing():
            return
        early, shake.early = shake.early, None
        try:
            grant = entrance.gate.access.grant(visitor.credential)
        except Refused as ex:
            self._turn_away(request, visitor, ex)
        else:
            self._welcome(request, visitor, grant)
        self._handle()
        self._transport.resume_reading()
        if early and self._protocol.state is State.OPEN:
            self.data_received(early)

    def _welcome(self, request: Request, visitor: Visitor, grant: Grant) -> None:
        """Admit a client, if its handshake or request for events is valid and there is a place."""
        if events.wants(request) and request.method == "GET":
            self._stream(request, visitor, grant)
            return
        clients, response = self._shared.clients, self._protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._answer(response)
        elif (name := clients.enter(self)) is None:
            self._answer(handshake.full(self._protocol))
        else:
            self._answer(response)
            self._handshake = None
            if self._arrival:
                self._arrival.settle()
            self.outbox.open(frames.deflated if frames.inflates(self._protocol) else frames.plain, self.address)
            self.client = Client(self._shared.services, name, self.outbox, self.close, visitor, grant)
            log.info("websocket.connection", clientId=name, connections=len(clients))

    def _stream(self, request: Request, visitor: Visitor, grant: Grant) -> None:
        """Continue the connection as a stream of events, and ignore data behind the request."""
        stream = EventStream(self._shared, self._transport, self.outbox, visitor)
        try:
            wanted = events.subscription(request)
        except BadMessage as bad:
            self._answer_page(self._protocol.reject(HTTPStatus.BAD_REQUEST, f"{bad}\n"), visitor)
            return
        if (name := self._shared.clients.enter(stream)) is None:
            self._answer_page(handshake.full(self._protocol), visitor)
            return
        if self._handshake:
            self._handshake.early = b""
        if self._arrival:
            self._arrival.settle()
        self._shared.clients.leave(self, None)
        self.closed = True
        log.info("websocket.connection", clientId=name, connections=len(self._shared.clients), events=True)
        stream.serve(name, grant, wanted)

    def _turn_away(self, request: Request, visitor: Visitor, why: Refused) -> None:
        """Refuse a client: with a close code if it offers our subprotocol, otherwise with an HTTP status."""
        self._shared.entrance.count(why, self.address)
        if events.wants(request) and not isinstance(why, ForeignOrigin):
            self._answer_page(handshake.refusal(self._protocol, why), visitor)
            return
        if isinstance(why, TooMany) or SUBPROTOCOL not in visitor.subprotocols:
            self._answer(handshake.refusal(self._protocol, why))
            return
        self._answer(self._protocol.accept(request))
        if self._protocol.state is State.OPEN:
            self._handshake = None
            self.close(CloseCode.REFUSED, handshake.REFUSED)

    def _answer_page(self, response: Response, visitor: Visitor) -> None:
        """Send a response that the requesting page can read."""
        events.allow(response.headers, visitor)
        self._answer(response)

    def _answer(self, response: Response) -> None:
        self._protocol.send_response(response)
        self._flush()

    # Frames

    def _handle(self) -> None:
        # The protocol has already produced a pong for each ping, and perhaps a close frame: write each in its turn.
        output = self._protocol.data_to_send()
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._open(event)
            elif isinstance(event, Frame):
                if event.opcode is Opcode.PING:
                    self._write(output[:1])
                    del output[:1]
                self._receive(event)
                self._inbox.settle()
        self._write(output)
        self._flush()
        if self.client and self._protocol.state is not State.OPEN:
            self.outbox.shut()
            self._inbox.discard()
            self.client.leave()
        if self._protocol.close_expected():
            self._end_soon()

    def _receive(self, received: Frame) -> None:
        """Act on a frame. The protocol itself handles pings, pongs and closing."""
        if self._protocol.state is not State.OPEN or self.client is None:
            return
        try:
            if received.opcode in {Opcode.PING, Opcode.PONG, Opcode.CONT}:
                self.client.receive_frame()
            if received.opcode in DATA_OPCODES and (message := self._inbox.take(received)) is not None:
                self.client.receive(message, text=self._inbox.is_text)
        except Failed as ex:
            self._protocol.fail(ex.code, ex.reason)

    def _flush(self) -> None:
        """Write the output of the protocol."""
        self._write(self._protocol.data_to_send())

    def _write(self, parts: Sequence[bytes]) -> None:
        """Write parts of the protocol's output. An empty last part ends the stream."""
        if not parts:
            return
        if data := b"".join(parts):
            self.outbox.write(data)
        if not parts[-1]:
            self.outbox.end()


def _our_subprotocol(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None
