"""The workers: several processes that serve subscribers on one port, as seen by their parent.

Each worker is a relay by itself (child.py, process.py). The parent has no subscribers and no connection to Postgres:
it holds the port, asks the workers for their status, and restarts those that die.

Rules:
- The parent binds the port, without listening, before it starts a worker. So the port is known, and stays bound while
  a worker is missing. If another program has the port, that is noticed, although the workers share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Final

import structlog

from relay import logs
from relay.auth.rates import Rates
from relay.config import Settings
from relay.daemon.errors import StartError, listening_on
from relay.daemon.process import Process
from relay.daemon.shared import SharedPlaces
from relay.daemon.worker import STOPPING, client_sockets
from relay.model.status import Counts, Status, merged
from relay.websocket.sockets import bind, port_of

log = structlog.get_logger()

STOP_SECONDS: Final = 15.0
"""Timeout for a worker to stop, in addition to the time over which it disconnects its clients."""


class Pool:
    """Serves subscribers from `WS_WORKERS` processes."""

    def __init__(self, settings: Settings, sockets: Sequence[socket.socket] = ()) -> None:
        self._settings = settings
        self._shared = list(sockets)
        self._lifetime = contextlib.ExitStack()
        self._processes: list[Process] = []
        self._keeping: asyncio.Task[None] | None = None
        self._stopping = False
        self.port = settings.WS_PORT

    async def open(self) -> None:
        """Bind the port. Raises StartError."""
        if sys.platform != "linux":
            raise StartError(f"WS_WORKERS: {self._settings.WS_WORKERS} works on Linux only: expected 1 here")
        if self._settings.WS_SOCKET and not self._shared:
            self._shared = await client_sockets(self._settings)
        if self._shared:
            self.port = port_of(self._shared) or self.port
            for sock in self._shared:
                self._lifetime.callback(sock.close)
        else:
            await self._bind()
        count = self._settings.WS_WORKERS
        file = os.memfd_create("relay-places")
        self._lifetime.callback(os.close, file)
        os.ftruncate(file, count * 8)
        places = SharedPlaces(self._settings.WS_MAX_CONNECTIONS, file, count)
        rates = os.memfd_create("relay-rates")
        self._lifetime.callback(os.close, rates)
        os.ftruncate(rates, Rates.BYTES)
        os.pwrite(rates, secrets.token_bytes(Rates.KEY_BYTES), 0)
        settings = self._settings.model_copy(update={"WS_PORT": self.port})
        files = (file, rates, *(sock.fileno() for sock in self._shared))
        self._processes = [Process(number, settings, places, files) for number in range(1, count + 1)]

    async def _bind(self) -> None:
        host = self._settings.WS_HOST
        with listening_on("WS_PORT", host, self.port):
            # Without reuse_port, this fails if another program has the port, even with reuse_port.
            probe = await bind(host, self.port)
            self.port = port_of(probe) or self.port
            for sock in probe:
                sock.close()
            for sock in await bind(host, self.port, reuse_port=True):
                self._lifetime.callback(sock.close)

    async def start(self) -> asyncio.Task[None]:
        """Start the workers; once they listen, return the task that keeps them running. Raises StartError."""
        try:
            for process in self._processes:
                await process.start()
        except OSError as ex:
            raise StartError(f"cannot start a worker: {ex.filename or sys.executable}: {ex.strerror}") from ex
        for process in self._processes:
            await process.listens()
        self._keeping = asyncio.create_task(self._keep(), name="workers")
        return self._keeping

    async def status(self) -> Status:
        """Ask all workers for their status, and return the sum."""
        answers = await asyncio.gather(*(process.status() for process in self._processes))
        present = [answer for answer in answers if answer]
        known = [process.known for process in self._processes if process.known]
        stops = STOPPING if self._stopping else None
        problem = _problem(self._processes)
        unready = [status.unready for status in present if status.unready]
        databases = [status.database for status in present if status.database]
        streams = [status.stream for status in present if status.stream]
        figures = merged(known) | {"max_connections": self._settings.WS_MAX_CONNECTIONS}
        figures["feed_up"] &= len(present) == len(answers)
        return Status(
            **figures,
            running=bool(present) and not stops,
            port=self.port,
            problem=stops or problem,
            # If a worker is missing, the others serve new clients.
            unready=stops or next(iter(unready), None if present else problem),
            database=max(databases, key=lambda database: database.lag_seconds, default=None),
            stream=min(streams, key=lambda stream: stream.entry or 0, default=None),
            counts=sum(
                (process.counts for process in self._processes),
                Counts(suppressed=logs.suppressed(), dropped=logs.dropped()),
            ),
            workers=len(present),
            workers_configured=len(answers),
        )

    async def reload(self) -> None:
        """Make the workers read credentials and certificates again."""
        for process in self._processes:
            process.reload()

    async def drain(self) -> None:
        """Make the workers disconnect their clients, and wait until they have ended."""
        self._stopping = True
        if self._keeping:
            self._keeping.cancel()
        seconds = self._settings.WS_DRAIN / 1000 + STOP_SECONDS
        await asyncio.gather(*(process.stop(seconds) for process in self._processes))

    def abort(self) -> None:
        """Kill the workers."""
        for process in self._processes:
            process.kill()

    async def close(self) -> None:
        """Wait until the workers have ended."""
        with self._lifetime:
            await self.drain()

    async def _keep(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for process in self._processes:
                tasks.create_task(process.keep())


def _problem(processes: Sequence[Process]) -> str | None:
    """Return the problem of the workers: once if all have the same, otherwise with each worker's number."""
    feeds = {process.known.problem if process.known else None for process in processes}
    if len(feeds) == 1 and not any(process.problem for process in processes):
        return feeds.pop()
    problems = []
    for process in processes:
        if process.problem:
            problems.append(f"worker {process.number} {process.problem}")
        elif process.known and process.known.problem:
            problems.append(f"worker {process.number}: {process.known.problem}")
    return "; ".join(problems) or None
