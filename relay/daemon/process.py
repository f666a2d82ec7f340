"""A worker's process, as seen by its parent, and its successors after its death.

Rules:
- A worker ends when its control socket does. So none outlives the process that started it.
- The counts that a dead worker has reported stay in the sums.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from relay.backoff import Backoff
from relay.config import Settings
from relay.daemon import child
from relay.daemon.child import DRAIN, RELOAD, STATUS
from relay.daemon.errors import StartError
from relay.daemon.shared import SharedPlaces
from relay.model.status import Counts, Status

log = structlog.get_logger()

START_SECONDS: Final = 30.0
"""Timeout for a worker to listen, when the daemon starts."""

ANSWER_SECONDS: Final = 1.0
"""Timeout for a worker to answer with its status."""


class Process:
    """A worker, restarted after its death.

    `known` is its last status, None while it does not listen. `problem` is what is wrong with the process,
    `known.problem` what is wrong with its feed.
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
        """The counts of this worker and its predecessors, since the daemon's start."""
        return self._before + self.known.counts if self.known else self._before

    async def start(self) -> None:
        """Start the worker, and ask for its status, which it sends once it listens."""
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
        assert self._process, "start comes before"
        assert self._answer, "start asks"
        try:
            async with asyncio.timeout(START_SECONDS):
                if not await asyncio.shield(self._answer):
                    how = _how_it_ended(await self._process.wait())
                    raise StartError(f"worker {self.number} {how} before it listened: see the log")
        except TimeoutError:
            raise StartError(f"worker {self.number} does not listen after {START_SECONDS:.0f} seconds") from None

    async def status(self) -> Status | None:
        """Return its status; None if it does not run or does not answer in time."""
        if self._writer is None or self.known is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.shield(self._ask(self._writer))
        except TimeoutError:
            self.problem = "does not answer"
            return None

    async def keep(self) -> None:
        """Restart it whenever it has died, until cancelled."""
        clock = asyncio.get_running_loop()
        backoff = Backoff()
        while True:
            backoff.begin(clock.time())
            await self._end()
            await asyncio.sleep(backoff.fail(clock.time(), "it has ended"))
            try:
                await self.start()
            except OSError as ex:
                self.problem = f"cannot be started again: {ex.strerror}"
                log.error("worker.failed", worker=self.number, problem=self.problem)  # noqa: TRY400  # one line

    def reload(self) -> None:
        """Make it read credentials and certificates again."""
        if self._writer:
            self._writer.write(RELOAD)

    async def stop(self, seconds: float) -> None:
        """Make it stop, and wait up to `seconds` for its end; then kill it."""
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
        """Kill it."""
        if self._process and self._process.returncode is None:
            self._process.kill()

    async def _spawn(self, control: int) -> asyncio.subprocess.Process:
        with _signals_blocked():
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # import what this process has imported, not what may be in the working folder
                "-m",
                child.__name__,
                *map(str, (self.number, control, *self._files)),
                env={**os.environ, **self._settings},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(control, *self._files),
            )

    def _ask(self, writer: asyncio.StreamWriter) -> asyncio.Future[Status | None]:
        """Ask for its status. Callers that ask before it has answered share the answer."""
        if self._answer is None or self._answer.done():
            self._answer = asyncio.get_running_loop().create_future()
            writer.write(STATUS)
        return self._answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read its answers until the end of the socket."""
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
        """Wait until it has died, and clean up."""
        if self._process is None or self._answers is None:
            return
        how = _how_it_ended(await self._process.wait())
        # All its answers arrive before the end of the socket.
        await self._answers
        self._process = None
        self._places.give_back_all(self.number - 1)
        self.problem = f"{how} and is started again"
        log.error("worker.died", worker=self.number, reason=how)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals that stop this process in processes started within, because Ctrl-C reaches all of them.

    A process inherits the mask. It exists when `create_subprocess_exec` first yields to the loop, so processes that
    are started at the same time do not interfere.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _how_it_ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
