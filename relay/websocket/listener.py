"""The listener: handles connections before their clients have sent anything.

It counts each connection that it accepts, learns its address from a trusted proxy if there is one, and hands it to an
asyncio protocol.

Rules:
- A connection is an `Arrival` from the moment it is accepted until it is admitted or ends. The number of arrivals and
  the time of each are limited.
- The last file descriptors of this process are reserved for connections to Postgres.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import weakref
from asyncio import sslproto
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from relay.auth.addresses import LONGEST_HEADER_BYTES, BadProxyHeader, proxy_header, rate_key
from relay.config.proxies import Proxies
from relay.websocket.limits import Arrivals
from relay.websocket.refusals import CROWDED_OUT, Refusals
from relay.websocket.sockets import port_of

ARRIVALS: Final = range(256, 1024)
"""Bounds of the limit of arrivals. Within them it is the limit of connections, because that many clients arrive at
once when another relay stops."""

RESERVED_FILES: Final = 32
"""Number of file descriptors reserved for Postgres, NATS, tokens and keys."""

ACCEPTED_AT_ONCE: Final = 16
"""Maximum number of connections accepted before other tasks have their turn, so that a flood does not block them."""

WAITING: Final = 1024
"""Maximum number of connections that wait to be accepted."""

RETRY_SECONDS: Final = 1.0
"""Pause after a failure to accept a connection."""

TLS_BUFFER_BYTES: Final = 32 * 1024
"""Size of the buffer that each TLS connection reads into; a record has 16 KB at most."""

# asyncio's default of 256 KB was nine tenths of the memory of an idle connection.
sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES

TLS_ON_PLAIN: Final = "TLS where none is spoken"
NO_TLS: Final = "no TLS where it is spoken"
BAD_TLS: Final = "TLS handshake failed"
BAD_PROXY_HEADER: Final = "bad PROXY header"
FOREIGN_PROXY_HEADER: Final = "PROXY header of an untrusted peer"
TOO_SLOW: Final = "handshake took too long"
NO_FILE: Final = "no file left but the reserve"


class Arrival:
    """A connection that was accepted and is not admitted yet. `address` is empty for the peer of a Unix socket."""

    __slots__ = ("_listener", "_timer", "address", "protocol", "sock", "transport")

    def __init__(self, sock: socket.socket, address: str, listener: Listener) -> None:
        self.sock = sock
        self.address = address
        self.protocol: asyncio.BaseProtocol | None = None
        self.transport: asyncio.Transport | None = None
        self._listener = listener
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(listener.seconds, self._out_of_time)

    @property
    def over(self) -> bool:
        """Whether it has ended: asyncio closes the socket then."""
        return self.sock.fileno() < 0

    def heard(self) -> None:
        """Stop its timer, because its handshake has arrived. It stays counted."""
        self._timer.cancel()

    def settle(self) -> None:
        """Stop counting it: it was admitted, or has ended."""
        self._timer.cancel()
        self._listener.arrivals.remove(self)

    def drop(self) -> None:
        """End it."""
        self._timer.cancel()
        if self.transport:
            self.transport.abort()
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _out_of_time(self) -> None:
        if not self.over:
            self._listener.refusals.add(TOO_SLOW, self.address)
            self._listener.arrivals.remove(self)
            self.drop()


class Files:
    """The number of files that this process may still open for clients. It counts open files only now and then."""

    def __init__(self) -> None:
        self._left = 0
        self._uncounted = 0

    def missing(self) -> int:
        """Return how many connections must end before another one may be accepted."""
        if self._left:
            self._left -= 1
            return 0
        if self._uncounted:
            self._uncounted -= 1
            return 1
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            return 0
        free = max(limit - RESERVED_FILES, limit // 2) - _open_files()
        if free > 0:
            # Half of them, because others open files too.
            self._left = free // 2
            return 0
        self._uncounted = ACCEPTED_AT_ONCE // 2
        return 1 - free


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"))  # noqa: PTH208  # fast


class Listener:
    """Accepts connections, and hands each to a protocol.

    `seconds` is the maximum time of an arrival. `flooded` returns for how many seconds an address that is not a
    proxy's must stay away; if it must, `turn_back` answers the connection.
    """

    def __init__(
        self,
        refusals: Refusals,
        seconds: float,
        *,
        most: int,
        proxies: Callable[[], Proxies] = Proxies,
        flooded: Callable[[str], float] = lambda _: 0.0,
        turn_back: Callable[[socket.socket, str, float], None] = lambda sock, *_: sock.close(),
    ) -> None:
        self.refusals = refusals
        self.seconds = seconds
        self.arrivals: Arrivals[Arrival] = Arrivals(most)
        self.problem: str | None = None
        self._proxies = proxies
        self._flooded = flooded
        self._turn_back = turn_back
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        self._make: Callable[[Arrival], asyncio.BaseProtocol] | None = None

    def open(
        self,
        sockets: Iterable[socket.socket],
        make: Callable[[Arrival], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Begin to accept connections on bound sockets, and take ownership of them. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._make, self._tls = make, tls
        _listeners.add(self)
        self._sockets = list(sockets)
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(WAITING)
            loop.add_reader(sock, self._accept, sock)

    @property
    def port(self) -> int | None:
        """The port it listens on; None if it listens on none."""
        return port_of(self._sockets)

    @property
    def listens(self) -> bool:
        """Whether it accepts connections."""
        return bool(self._sockets)

    @property
    def crowded(self) -> bool:
        """Whether arrivals were crowded out recently."""
        return self.refusals.recent(CROWDED_OUT) or self.refusals.recent(NO_FILE)

    def stop(self) -> None:
        """Accept no more connections."""
        loop = asyncio.get_running_loop()
        while self._sockets:
            sock = self._sockets.pop()
            loop.remove_reader(sock)
            sock.close()

    async def close(self) -> None:
        """Accept no more connections, and end the arrivals."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for arrival in tuple(self.arrivals):
            arrival.drop()

    def _accept(self, listening: socket.socket) -> None:
        """Accept connections, a few at a time, so that other tasks have their turn."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as ex:  # no file is free: there may be one soon
                self._cannot_accept(listening, ex)
                return
            self.problem = None
            sock.setblocking(False)
            if not self._arrived(sock, peer[0] if isinstance(peer, tuple) else ""):
                return

    def _cannot_accept(self, listening: socket.socket, ex: OSError) -> None:
        reason = f"cannot accept: {ex.strerror}"
        self.refusals.add(reason)
        self.problem = f"no connection can be accepted: {ex.strerror}: raise the limit of open files (LimitNOFILE)"
        _free_files(ACCEPTED_AT_ONCE)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(RETRY_SECONDS, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        # If no client is waiting any more, nothing is wrong until one comes.
        self.problem = None
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _arrived(self, sock: socket.socket, address: str) -> bool:
        """Count a connection, or refuse it; return False if no more can be accepted until others have ended."""
        if not self._proxies().trusts(address) and (wait := self._flooded(address)):
            self._turn_back(sock, address, wait)
            return True
        missing = _files.missing()
        if missing and not _free_files(missing):
            self.refusals.add(NO_FILE, address)
            sock.close()
            return False
        if self.arrivals.full:
            self.arrivals.remove_if(lambda arrival: arrival.over)
        if self.arrivals.full:
            self.crowd_out(CROWDED_OUT)
        arrival = Arrival(sock, address, self)
        self.arrivals.add(arrival, rate_key(address))
        task = asyncio.get_running_loop().create_task(self._hand_over(arrival))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return not missing

    def crowd_out(self, reason: str) -> bool:
        """End the oldest arrival of the address with the most; return False if there is none."""
        oldest = self.arrivals.crowd_out()
        if oldest:
            self.refusals.add(reason, oldest.address)
            oldest.drop()
        return oldest is not None

    async def _hand_over(self, arrival: Arrival) -> None:
        """Connect an accepted socket with its protocol. It is not an error if the client gives up meanwhile."""
        assert self._make, "connections come after open"
        make = self._make

        def made() -> asyncio.BaseProtocol:
            arrival.protocol = make(arrival)
            return arrival.protocol

        try:
            if self._proxies().trusts(arrival.address):
                await self._read_proxy_header(arrival)
            loop = asyncio.get_running_loop()
            arrival.transport, _ = await loop.connect_accepted_socket(made, arrival.sock, ssl=self._tls)
        except ssl.SSLError as ex:
            reason = NO_TLS if ex.reason in {"HTTP_REQUEST", "WRONG_VERSION_NUMBER"} else BAD_TLS
            self.refusals.add(reason, arrival.address, detail=ex.reason)
        except BadProxyHeader as ex:
            self.refusals.add(BAD_PROXY_HEADER, arrival.address, detail=str(ex))
        except OSError:
            pass
        else:
            return
        finally:
            if arrival.protocol is None:
                arrival.settle()
                arrival.sock.close()

    async def _read_proxy_header(self, arrival: Arrival) -> None:
        """Consume the header of the PROXY protocol of a trusted proxy, if there is one.

        Raises BadProxyHeader.
        """
        await _readable(arrival.sock)
        header = proxy_header(arrival.sock.recv(LONGEST_HEADER_BYTES, socket.MSG_PEEK))
        if header:
            arrival.sock.recv(header.length)
            if header.address is not None:
                arrival.address = header.address
                self.arrivals.move(arrival, rate_key(header.address))


_files: Final = Files()
_listeners: Final[weakref.WeakSet[Listener]] = weakref.WeakSet()
"""The listeners of this process, which share its file descriptors."""


def _free_files(count: int) -> int:
    """End up to `count` arrivals, each at the listener that has the most; return how many ended."""
    for listener in _listeners:
        listener.arrivals.remove_if(lambda arrival: arrival.over)
    return sum(max(_listeners, key=lambda each: len(each.arrivals)).crowd_out(NO_FILE) for _ in range(count))


async def _readable(sock: socket.socket) -> None:
    """Wait until a socket has something to read, or its end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)
