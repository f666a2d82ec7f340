"""Notifies systemd, if it started the daemon, of readiness and liveness (sd_notify(3)).

Notifications are datagrams to a socket that the environment names. Without it, nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

_USEC: Final = 1_000_000


class Systemd:
    """The socket for notifications."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        asked_of = os.environ.get("WATCHDOG_PID")
        usec = os.environ.get("WATCHDOG_USEC", "0") if asked_of in {None, str(os.getpid())} else "0"
        self._alive_within = int(usec) / _USEC if usec.isdecimal() else 0.0

    def notify(self, *lines: str) -> None:
        """Send the state of the daemon. Errors are ignored."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(lines).encode(), address)

    async def keep(self) -> None:
        """Notify the watchdog that the event loop runs, as often as systemd expects."""
        if not self._alive_within:
            return
        while True:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(self._alive_within / 2)
