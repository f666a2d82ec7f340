"""One of several worker processes: `python -m relay.daemon.child`, started by process.py.

Rules:
- All workers listen on the same port, and the kernel distributes connections. They share the count of connections
  (shared.py). Each has its own feed, so none waits for another.
- Commands arrive on the control socket, one per line: answer with the `Status`, read credentials again, or disconnect
  the clients and end. The end of the socket also ends the worker, because then the parent process was killed. Signals
  are blocked here; the parent handles them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Final

import structlog

from relay import config, logs
from relay.config import Settings
from relay.daemon.errors import StartError
from relay.daemon.shared import SharedPlaces, SharedRates
from relay.daemon.worker import Worker

log = structlog.get_logger()

STATUS: Final = b"status\n"
RELOAD: Final = b"reload\n"
DRAIN: Final = b"drain\n"
"""The commands on the control socket."""


def main() -> None:
    """Run one worker of several.

    The arguments are its number, its control socket, the files of places and rates, and the sockets on which all
    workers listen, if they do.
    """
    number, control, places, rates_file, *listening = map(int, sys.argv[1:])
    settings = config.load({name: os.environ[name] for name in Settings.model_fields if name in os.environ})
    logs.start(settings.LOG_LEVEL, worker=number)
    shared = SharedPlaces(settings.WS_MAX_CONNECTIONS, places, settings.WS_WORKERS, number - 1)
    try:
        rates = SharedRates(settings.WS_RATE_LIMIT_PER_CLIENT, settings.WS_RATE_LIMIT_TOTAL, rates_file)
        sockets = [socket.socket(fileno=each) for each in listening]
        asyncio.run(_obey(Worker(settings, shared, rates, sockets), socket.socket(fileno=control)))
    except StartError as ex:
        log.error("worker.failed", problem=str(ex))  # noqa: TRY400  # one line says it all
        sys.exit(1)


async def _obey(worker: Worker, control: socket.socket) -> None:
    """Serve until a command to stop."""
    reader, writer = await asyncio.open_connection(sock=control)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(writer.close)
        stack.push_async_callback(worker.close)
        await worker.open()
        serving = await worker.start()
        stops = asyncio.Event()
        answering = asyncio.create_task(_answer(worker, reader, writer, stops))
        draining = asyncio.create_task(_drain(worker, stops))
        await asyncio.wait({serving, draining}, return_when=asyncio.FIRST_COMPLETED)
        for task in (answering, draining, serving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _drain(worker: Worker, stops: asyncio.Event) -> None:
    await stops.wait()
    await worker.drain()


async def _answer(
    worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stops: asyncio.Event
) -> None:
    """Execute commands from the control socket until it ends, then stop the worker."""
    # A parent that was killed with an answer unread has reset the connection.
    with contextlib.suppress(ConnectionError):
        reloading: set[asyncio.Task[None]] = set()
        async for command in reader:
            if command == RELOAD:
                # In the background, because fetching keys may take long.
                task = asyncio.create_task(worker.reload())
                reloading.add(task)
                task.add_done_callback(reloading.discard)
            elif command == DRAIN:
                stops.set()
            else:
                status = await worker.status()
                writer.write(status.model_dump_json().encode() + b"\n")
                await writer.drain()
    stops.set()


if __name__ == "__main__":
    main()
