"""The Python client for programs without asyncio: the same boards, kept up to date by a thread.

    with relay.client.sync.connect("ws://localhost:4002") as relay:
        board = relay.subscribe("default")
        for change in board: …

Rules:
- The client runs in an event loop in its own thread; each call here passes a request to it and waits.
- `tasks` and `lanes` of a board are copies, because the board may change at any time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from relay.client import shell
from relay.client.effects import RelayError
from relay.client.following import State
from relay.client.replica import Change, Task, TaskId

_T = TypeVar("_T")


def connect(url: str, *, token: shell.Token = None, proxy: bool = True) -> Relay:
    """Connect to a relay, and reconnect whenever the connection is lost: `with connect(…) as relay`.

    `token` is a token, or a function that is called before each attempt to connect, in the client's thread. `proxy`
    is whether to use the proxy that the environment names, if any. Raises ValueError for an invalid address or token.
    """
    return Relay(shell.connect(url, token=token, proxy=proxy))


class Board:
    """One subscription to a board; see `relay.client.Board`."""

    def __init__(self, relay: Relay, board: shell.Board) -> None:
        self._relay = relay
        self._board = board

    @property
    def id(self) -> str:
        return self._board.id

    @property
    def tasks(self) -> Mapping[TaskId, Task]:
        """The tasks by id, as they are now."""
        return self._relay._ask(lambda: dict(self._board.tasks))  # noqa: SLF001  # the two are one

    @property
    def lanes(self) -> Mapping[str, list[Task]]:
        """Each lane's tasks in order, as they are now."""
        return self._relay._ask(lambda: dict(self._board.lanes))  # noqa: SLF001

    @property
    def lane_names(self) -> Mapping[str, str | None] | None:
        """The lanes' names in their order, as they are now, if lanes are rows of a table; otherwise None."""
        return self._relay._ask(lambda: self._board.lane_names)  # noqa: SLF001

    @property
    def state(self) -> State:
        return self._board.state

    def unsubscribe(self) -> None:
        """End this subscription, but not others to the same board. Its loop ends, and its tasks stay as they are."""
        self._relay._ask(self._board.unsubscribe)  # noqa: SLF001

    def includes(self, xid: int | str, timeout: float | None = None) -> None:
        """Return once the board includes a transaction; see `relay.client.Board.includes`.

        Raises RelayError like that, and TimeoutError if it takes longer than `timeout` seconds.
        """
        self._relay._wait(self._board.includes(xid), timeout)  # noqa: SLF001

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        return self.next()

    def next(self, timeout: float | None = None) -> Change:
        """Return the next change. Raises TimeoutError if `timeout` seconds pass, StopIteration at the end."""
        if self._relay.is_open and (change := self._relay._wait(self._next(), timeout)):  # noqa: SLF001
            return change
        raise StopIteration

    async def _next(self) -> Change | None:
        return await anext(self._board, None)


class Relay:
    """Boards over one connection after another; see `connect`. Its calls may come from any thread."""

    def __init__(self, relay: shell.Relay) -> None:
        self._relay = relay
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Held while a request is passed to the loop, so that none arrives after its end.
        self._passing = threading.Lock()

    def __enter__(self) -> Self:
        self._relay.check_unused()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay.client", daemon=True)
        self._thread.start()
        self._wait(self._relay.__aenter__(), None)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> State:
        return self._relay.state

    @property
    def is_open(self) -> bool:
        """Whether it is within its `with` block."""
        return self._loop is not None

    def subscribe(
        self,
        board_id: str,
        timeout: float | None = None,
        *,
        lanes: Collection[str] | None = None,
        columns: Collection[str] | None = None,
        tasks: Collection[str | int] | None = None,
    ) -> Board:
        """Follow a board; return once it has arrived. See `relay.client.Relay.subscribe`.

        Raises RelayError if the relay refuses the connection or the board, or if this process is a fork; TimeoutError
        if the board does not arrive within `timeout` seconds.
        """
        return Board(
            self, self._wait(self._relay.subscribe(board_id, lanes=lanes, columns=columns, tasks=tasks), timeout)
        )

    def authenticate(self, token: str) -> None:
        """Present a fresh token; see `relay.client.Relay.authenticate`."""
        self._wait(self._relay.authenticate(token), None)

    def close(self) -> None:
        """End everything. Loops over boards end, and their tasks stay as they are. A fork forgets the connection."""
        if self._relay.forked:  # thread and connection belong to the other process
            self._loop = self._thread = None
            return
        if (closed := self._pass(self._relay.close())) is None:
            return
        closed.result()
        with self._passing:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop and thread:
            asyncio.run_coroutine_threadsafe(_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _ask(self, question: Callable[[], _T]) -> _T:
        """Run a function in the client's thread, which alone touches boards; directly if there is none any more."""

        async def answer() -> _T:  # the loop takes coroutines only
            return question()

        future = self._pass(answer())
        return future.result() if future else question()

    def _wait(self, what: Coroutine[Any, Any, _T], timeout: float | None) -> _T:
        if (future := self._pass(what, timeout)) is None:
            raise RelayError("closed", "this relay is not open: use it in `with relay.client.sync.connect(…)`")
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C, for example

    def _pass(self, what: Coroutine[Any, Any, _T], timeout: float | None = None) -> Future[_T] | None:
        """Pass a request to the client's thread; return None if there is none. Raises RelayError in a fork."""
        if self._loop and self._relay.forked:
            what.close()
            self._relay.check_process()
        with self._passing:
            if self._loop:
                return asyncio.run_coroutine_threadsafe(_within(timeout, what), self._loop)
        what.close()
        return None


async def _others() -> None:
    """Wait for the requests that other threads have already passed."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


async def _within(timeout: float | None, what: Coroutine[Any, Any, _T]) -> _T:  # noqa: ASYNC109  # the caller's
    """Limit the time of a coroutine within the loop, so that a change that arrives at the last moment is not lost."""
    try:
        async with asyncio.timeout(timeout):
            return await what
    except TimeoutError:
        raise TimeoutError(f"nothing came within {timeout} seconds") from None
