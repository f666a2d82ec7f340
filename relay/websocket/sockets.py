"""Listening sockets: bound to addresses of both families, to a path, or passed by systemd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FIRST_SYSTEMD_FILE: Final = 3
"""The first descriptor that systemd passes, by sd_listen_fds(3)."""

_PORT_TRIES: Final = 10


async def bind(hosts: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Bind a port, 0 for any free one, on all given addresses. Raises OSError.

    `::` means both families, unless an IPv4 address is given too.
    """
    names = hosts.replace(",", " ").split()
    loop = asyncio.get_running_loop()
    found = [
        (family, address)
        for name in names
        for family, _, _, _, address in await loop.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    ]
    addresses = list(dict.fromkeys(found))
    both = not any(family == socket.AF_INET for family, _ in addresses)
    for last in reversed(range(_PORT_TRIES)):
        with contextlib.ExitStack() as undo:
            try:
                sockets: list[socket.socket] = []
                for family, address in addresses:
                    chosen = sockets[0].getsockname()[1] if sockets else port
                    sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    _bind(sock, (address[0], chosen, *address[2:]), both=both, reuse_port=reuse_port)
                    sockets.append(sock)
            except OSError as ex:
                # A port that is free at one address may be taken at another.
                if port or not last or ex.errno != errno.EADDRINUSE:
                    raise
                continue
            undo.pop_all()
            return sockets
    raise AssertionError


def _bind(sock: socket.socket, address: tuple[object, ...], *, both: bool, reuse_port: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not (both and address[0] == "::"))
    sock.bind(address)


def bind_path(path: str) -> socket.socket:
    """Bind a Unix socket, replacing a stale one on which nobody listens. Raises OSError."""
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(Path(path).stat().st_mode):
                _remove_if_left(path)
        sock.bind(path)
        undo.pop_all()
    return sock


def _remove_if_left(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            Path(path).unlink()


def from_systemd() -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd passed to this process, by the names of their units' `FileDescriptorName`."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not os.environ.get("LISTEN_FDS", "").isdecimal():
        return {}
    count = int(os.environ["LISTEN_FDS"])
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for number in range(count):
        sock = socket.socket(fileno=FIRST_SYSTEMD_FILE + number)
        sock.set_inheritable(False)
        found.setdefault(names[number] if number < len(names) else "", []).append(sock)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # they do not concern child processes
    return found


def port_of(sockets: Sequence[socket.socket]) -> int | None:
    """Return the port that sockets are bound to; None if there is none, or if they are bound to a path."""
    for sock in sockets:
        if sock.fileno() >= 0 and sock.family in {socket.AF_INET, socket.AF_INET6}:
            return int(sock.getsockname()[1])
    return None
