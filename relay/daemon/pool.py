"""The workers: several processes that serve subscribers on one port, seen from the one that starts them.

Each is a relay by itself (worker.py). This process has no subscribers and no Postgres: it holds the port, asks the
workers how they are, and starts those again that die.

Rules:
- The port is bound here, without listening, before a worker is started: so it is known, and stays ours while one is
  away. Another program that has it is noticed, although the workers share it.
- A worker ends when its control socket does. So none outlives this process, whatever becomes of it.
- What a dead worker has sent, as far as it has told, stays in the sums.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from relay import logs
from relay.auth.rates import Rates
from relay.config.settings import Settings
from relay.daemon import worker
from relay.daemon.errors import StartError, listening_on
from relay.daemon.worker import DRAIN, RELOAD, STATUS, STOPPING, SharedPlaces, client_sockets
from relay.model.status import Counts, Status, merged
from relay.postgres.feed import LONGEST_RETRY_SECONDS, Retry
from relay.websocket.sockets import bind, port_of

log = structlog.get_logger()

START_SECONDS: Final = 30.0
"""How long a worker may take to listen, when the daemon starts."""

ANSWER_SECONDS: Final = 1.0
"""How long a worker may take to say how it is."""

STOP_SECONDS: Final = 15.0
"""How long a worker may take to stop, beside the time over which it sees its clients off."""


class Pool:
    """Serves subscribers from as many processes as the settings say."""

    def __init__(self, settings: Settings, sockets: Sequence[socket.socket] = ()) -> None:
        self._settings = settings
        self._shared = list(sockets)
        self._lifetime = contextlib.ExitStack()
        self._processes: list[_Process] = []
        self._keeping: asyncio.Task[None] | None = None
        self._stopping = False
        self.port = settings.WS_PORT

    async def open(self) -> None:
        """Take the port. Raises StartError."""
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
        self._processes = [_Process(number, settings, places, files) for number in range(1, count + 1)]

    async def _bind(self) -> None:
        host = self._settings.WS_HOST
        with listening_on("WS_PORT", host, self.port):
            # One that does not share finds out whether another program has the port, even if that one shares it.
            probe = await bind(host, self.port)
            self.port = port_of(probe) or self.port
            for sock in probe:
                sock.close()
            for sock in await bind(host, self.port, reuse_port=True):
                self._lifetime.callback(sock.close)

    async def start(self) -> asyncio.Task[None]:
        """Start the workers, and once they listen keep them running, which is the task's. Raises StartError."""
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
        """Ask all workers how they are, and tell it of the whole."""
        answers = await asyncio.gather(*(process.status() for process in self._processes))
        present = [answer for answer in answers if answer]
        known = [process.known for process in self._processes if process.known]
        stops = STOPPING if self._stopping else None
        problem = _one_line(self._processes)
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
            # Where a worker is missing, the others serve who comes.
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
        """Have the workers read credentials and certificates again."""
        for process in self._processes:
            process.reload()

    async def drain(self) -> None:
        """Have the workers see their clients off, and wait until they are gone."""
        self._stopping = True
        if self._keeping:
            self._keeping.cancel()
        seconds = self._settings.WS_DRAIN / 1000 + STOP_SECONDS
        await asyncio.gather(*(process.stop(seconds) for process in self._processes))

    def abort(self) -> None:
        """End the workers as they are."""
        for process in self._processes:
            process.kill()

    async def close(self) -> None:
        """Wait until the workers are gone."""
        with self._lifetime:
            await self.drain()

    async def _keep(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for process in self._processes:
                tasks.create_task(process.keep())


class _Process:
    """One worker, and after its death the next in its place.

    `known` is what it told last, None while there is none that listens. `problem` says what is the matter with the
    process, `known.problem` what is with its feed.
    """

    def __init__(self, number: int, settings: Settings, places: SharedPlaces, files: Sequence[int]) -> None:
        self.number = number
        self.known: Status | None = None
        self.problem: str | None = "is starting"
        self._settings = {name: str(value) for name, value in settings.model_dump().items()}
        self._places = places
        self._files = files
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._answers: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[Status | None] | None = None
        self._before = Counts()

    @property
    def counts(self) -> Counts:
        """What was sent from this place since the daemon's start."""
        return self._before + self.known.counts if self.known else self._before

    async def start(self) -> None:
        """Start it, and ask it how it is, which it answers once it listens."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            self._process = await self._spawn(theirs.fileno())
            reader, self._writer = await asyncio.open_connection(sock=ours)
            undo.pop_all()
        self._answers = asyncio.create_task(self._read(reader))
        self._ask(self._writer)

    async def listens(self) -> None:
        """Wait until it listens. Raises StartError if it does not."""
        assert self._process, "it was started"
        assert self._answer, "it was asked"
        try:
            async with asyncio.timeout(START_SECONDS):
                if not await asyncio.shield(self._answer):
                    how = _how_it_ended(await self._process.wait())
                    raise StartError(f"worker {self.number} {how} before it listened: see the log")
        except TimeoutError:
            raise StartError(f"worker {self.number} does not listen after {START_SECONDS:.0f} seconds") from None

    async def status(self) -> Status | None:
        """Ask it how it is; None if it is not there or does not answer in time."""
        if self._writer is None or self.known is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(self._ask(self._writer))
        except TimeoutError:
            self.problem = "does not answer"
            return None

    async def keep(self) -> None:
        """Start it again whenever it has died, until cancelled."""
        clock = asyncio.get_running_loop()
        retry = Retry()
        while True:
            began = clock.time()
            await self._end()
            if clock.time() - began > LONGEST_RETRY_SECONDS:
                retry = Retry()
            await asyncio.sleep(retry.next())
            try:
                await self.start()
            except OSError as ex:
                self.problem = f"cannot be started again: {ex.strerror}"
                log.error("worker.failed", worker=self.number, problem=self.problem)  # noqa: TRY400  # one line

    def reload(self) -> None:
        """Tell it to read credentials and certificates again."""
        if self._writer:
            self._writer.write(RELOAD)

    async def stop(self, seconds: float) -> None:
        """Tell it to stop, and wait until it is gone, which may take so long."""
        if self._writer is None or self._process is None:
            return
        if self._process.returncode is None:
            self._writer.write(DRAIN)
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            log.error("worker.killed", worker=self.number, reason="it did not stop")  # noqa: TRY400  # one line
            self.kill()
            await self._process.wait()
        self._writer.close()

    def kill(self) -> None:
        """End it as it is."""
        if self._process and self._process.returncode is None:
            self._process.kill()

    async def _spawn(self, control: int) -> asyncio.subprocess.Process:
        with _signals_blocked():
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # it shall import what this process did, whatever lies in the working folder
                "-m",
                worker.__name__,
                *map(str, (self.number, control, *self._files)),
                env={**os.environ, **self._settings},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(control, *self._files),
            )

    def _ask(self, writer: asyncio.StreamWriter) -> asyncio.Future[Status | None]:
        """Ask it how it is, unless it has not answered yet; who asks meanwhile shares the answer."""
        if self._answer is None or self._answer.done():
            self._answer = asyncio.get_running_loop().create_future()
            writer.write(STATUS)
        return self._answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take its answers, until it has no more."""
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                if self.known is None and self._process:
                    log.info("worker.running", worker=self.number, pid=self._process.pid)
                self.known = Status.model_validate_json(line)
                self.problem = None
                self._settle(self.known)
        self._before, self.known = self.counts, None
        self.problem = "has ended"
        self._settle(None)

    def _settle(self, answer: Status | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result(answer)

    async def _end(self) -> None:
        """Wait for its death, and see to what it leaves."""
        if self._process is None or self._answers is None:
            return
        how = _how_it_ended(await self._process.wait())
        # All that it has said comes before the end of it.
        await self._answers
        self._process = None
        self._places.give_back_all(self.number - 1)
        self.problem = f"{how} and is started again"
        log.error("worker.died", worker=self.number, reason=how)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start a process that is spared the signals which tell us to stop, as Ctrl-C does all of a terminal.

    The process inherits the mask; it exists when `create_subprocess_exec` waits for the first time, so that others
    that are started at the same time do no harm.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _one_line(processes: Sequence[_Process]) -> str | None:
    """Say what is the matter with the workers: once, if it is the same for all, else with whom."""
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


def _how_it_ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
