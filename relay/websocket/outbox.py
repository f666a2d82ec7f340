"""The outbox of a client: writes to the client, and keeps what it has not read. The hub's `Subscriber`.

Rules:
- Data are written at once, from buffers that all clients of a board share. What the kernel does not take waits in the
  *backlog*, which refers to the same buffers; only a piece that was written in part is copied.
- A client whose backlog is over the limit is not `ready`: it gets nothing more from the hub, and is not read from
  either, because answers would add to the backlog. When it has read everything, it is `ready` again, and `caught_up`
  makes the hub bring it up to date.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from relay.auth.addresses import rate_key
from relay.hub.ports import Frame, Subscriber
from relay.websocket.frames import plain
from relay.websocket.limits import Limits, Memory

PIECE_BYTES: Final = 64 * 1024
"""Maximum size of a single write, of which the transport copies what the kernel does not take."""

UNSENT_BYTES: Final = 64 * 1024
"""Maximum number of unsent bytes in the kernel. By default, it buffers megabytes for a client that does not read, so
that falling behind shows late."""


class Outbox(Subscriber):
    """Writes to one client. `all_backlogs` counts the backlogs of all clients."""

    __slots__ = (
        "_all_backlogs",
        "_backlog",
        "_blocked",
        "_caught_up",
        "_ends",
        "_is_unheard",
        "_largest",
        "_limits",
        "_moved",
        "_offset",
        "_transport",
        "_unsent",
        "_waiting",
        "address",
        "frame",
        "is_open",
        "ready",
    )

    def __init__(self, limits: Limits, all_backlogs: Memory, caught_up: Callable[[Subscriber], None]) -> None:
        self.ready = False
        self.frame: Frame = plain
        self.address = ""
        self._transport: asyncio.Transport
        self._limits = limits
        self._all_backlogs = all_backlogs
        self._caught_up = caught_up
        # The backlog, if there is one, how much of its first buffer is written, and how many bytes wait.
        self._backlog: deque[bytes] | None = None
        self._offset = 0
        self._waiting = 0
        self._largest = 0
        # Whether messages may be sent, and whether the stream ends after the backlog.
        self.is_open = False
        self._ends = False
        # Whether the transport holds the rest of a piece; how much at the last beat; whether it took more since.
        self._blocked = False
        self._unsent = 0
        self._moved = False
        # Whether reading from the client is paused, because it is over its limit.
        self._is_unheard = False

    def attach(self, transport: asyncio.Transport) -> None:
        """Set the transport to write to. Under TLS, it may have called `pause` before."""
        self._transport = transport
        # The backlog is kept here, so the transport must report as soon as it cannot write everything, and again when
        # it has. Plain transports report when they hold more than the limit, TLS ones when they hold as much.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("ssl_object") else 0, low=0)
        self._limit_unsent(UNSENT_BYTES)

    @property
    def waiting(self) -> int:
        """Number of bytes that wait for the client to read, without those in the kernel."""
        return self._waiting + self._transport.get_write_buffer_size()

    @property
    def blocked(self) -> bool:
        """Whether the kernel takes nothing more for now."""
        return self._blocked

    def open(self, frame: Frame, address: str) -> None:
        """Accept messages from now on, framed by `frame`, for a client at this address."""
        self.is_open = self.ready = True
        self.frame = frame
        self.address = rate_key(address)

    def shut(self) -> None:
        """Accept no more messages. The backlog is still written."""
        self.is_open = self.ready = False

    def send(self, frames: bytes) -> None:
        """Write whole frames, unless the connection is ending."""
        if not self.is_open:
            return
        if self._blocked or len(frames) > PIECE_BYTES:
            self._queue(frames)
        else:
            self._transport.write(frames)

    def write(self, data: bytes) -> None:
        """Write output of the protocol, even while the connection is ending."""
        if self._blocked:
            self._queue(data)
        else:
            self._transport.write(data)

    def end(self) -> None:
        """End the stream after everything sent so far."""
        self._ends = True
        if not self._backlog:
            self._end_stream()

    # Called by the transport

    def pause(self) -> None:
        """Note that the kernel takes no more."""
        self._blocked = True

    def resume(self) -> None:
        """Continue to write, because the kernel takes more."""
        self._blocked = False
        self._moved = True
        self._write_backlog()

    def discard(self) -> None:
        """Drop the backlog of a connection that has ended."""
        self.shut()
        self._backlog = None
        self._count(-self._waiting)

    # Clients that do not read

    def is_stuck(self) -> bool:
        """Return whether data wait and the client has read nothing since the last call."""
        unsent, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        moved, self._moved = self._moved, False
        return bool(unsent) and self._unsent >= unsent and not moved

    def abandon(self) -> None:
        """Drop the backlog, except for the rest of a frame of which the client has a part."""
        if self._backlog:
            begun = [self._backlog[0]] if self._offset else []
            self._backlog = deque(begun)
            self._count(sum(map(len, begun)) - self._offset - self._waiting)
        # Let the kernel take this rest and a close frame, and keep them for a while after the connection is closed.
        self._limit_unsent(0)
        self._transport.resume_reading()

    # Internals

    def _queue(self, data: bytes) -> None:
        """Queue data. Over the limit, send the client nothing more, and pause reading from it."""
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(data)
        self._count(len(data))
        self._largest = max(self._largest, len(data))
        if not self._blocked:
            self._write_backlog()
        if self._is_over():
            self.ready = False
            self._is_unheard = True
            self._transport.pause_reading()

    def _is_over(self) -> bool:
        """Return whether its backlog is too large, or all backlogs together are."""
        if self._waiting > self._limits.send_buffer + self._largest:
            return True
        return self._waiting > 0 and self._all_backlogs.is_over

    def _write_backlog(self) -> None:
        while self._backlog and not self._blocked:
            self._transport.write(self._next_piece(self._backlog))
        if self._blocked:
            return
        self._backlog = None
        self._end_stream()
        if not self._is_unheard:
            return
        self._is_unheard = False
        self._transport.resume_reading()
        if self.is_open:
            self.ready = True
            self._caught_up(self)

    def _next_piece(self, backlog: deque[bytes]) -> bytes:
        """Remove and return the next piece of a backlog."""
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
        self._count(room - PIECE_BYTES)
        return b"".join(parts)

    def _count(self, more: int) -> None:
        self._waiting += more
        self._all_backlogs.used += more

    def _end_stream(self) -> None:
        """End the stream if `end` was called and nothing waits."""
        if not self._ends or self._transport.is_closing():
            return
        self._ends = False
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()  # TLS has no half-closed connections

    def _limit_unsent(self, size: int) -> None:
        """Limit the unsent bytes that the kernel buffers; 0 restores the kernel's default."""
        sock = self._transport.get_extra_info("socket")
        if hasattr(socket, "TCP_NOTSENT_LOWAT") and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
