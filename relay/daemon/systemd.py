"""systemd, if it started the daemon: hears when that is ready, and that it is alive, as sd_notify(3) says.

A few datagrams to a socket that the environment names; without it, nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

_USEC: Final = 1_000_000


class Systemd:
    """Takes what the daemon has to say."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        asked_of = os.environ.get("WATCHDOG_PID")
        usec = os.environ.get("WATCHDOG_USEC", "0") if asked_of in {None, str(os.getpid())} else "0"
        self._alive_within = int(usec) / _USEC if usec.isdecimal() else 0.0

    def notify(self, *lines: str) -> None:
        """Say how the daemon is. That it does not listen is its own affair."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(lines).encode(), address)

    async def keep(self) -> None:
        """Say that the event loop turns, as often as systemd wants to hear it."""
        if not self._alive_within:
            return
        while True:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(self._alive_within / 2)
