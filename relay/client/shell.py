"""The Python client over asyncio: executes what the `Session` of `core.py` decides.

Rules:
- After each call of the session, its effects are executed in the same step (`Relay._act`).
- One task connects and reads, another writes. Messages of an abandoned connection are ignored.
- A `Board` is one subscription. No other part of a program can end it, or read its changes.
- A connection belongs to the process that opened it: in a fork, every call is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Final, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from relay.client import core, effects, link
from relay.client.core import Session
from relay.client.effects import RelayError
from relay.client.following import Following, State, selection
from relay.client.replica import Backlog, Change, Task, TaskId

log: Final = logging.getLogger("relay.client")

TokenFunction = Callable[[], str | Awaitable[str | None] | None]
Token = str | None | TokenFunction

_BROKEN: Final = 1006


def connect(url: str, *, token: Token = None, proxy: bool = True) -> Relay:
    """Connect to a relay, and reconnect whenever the connection is lost: `async with connect(…) as relay`.

    `token` is a token, or a function (it may be async) that is called before each attempt to connect. `proxy` is
    whether to use the proxy that the environment names (`https_proxy` and the like), if any. Raises ValueError for an
    invalid address or token.
    """
    return Relay(url, token, proxy=proxy)


class Board:
    """One subscription to a board. Iterate over it for the board's changes, each once, in order.

    The first change is a `board.sync` with the current board. A later loop continues where the last one stopped. If
    too many changes wait, they are replaced by one `board.sync` with the reason `fell_behind`. The loop ends when the
    subscription does, and raises RelayError when the relay refuses the connection or the board.
    """

    def __init__(self, relay: Relay, following: Following) -> None:
        self._relay = relay
        self._following = following
        self._backlog = Backlog()
        self._woken = asyncio.Event()
        self._error: RelayError | None = None
        self._left: tuple[Mapping[TaskId, Task], Mapping[str, list[Task]], Mapping[str, str | None] | None] | None = (
            None
        )
        """Tasks, lanes and lane names at the end of the subscription."""
        self._looping = False
        self._waits: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        """The calls of `includes` under way, by transaction id."""
        if following.present:
            self._backlog.put([Change("board.sync")])

    @property
    def id(self) -> str:
        return self._following.name

    @property
    def tasks(self) -> Mapping[TaskId, Task]:
        """The tasks by id. Do not modify them; a change makes a new dict for its task."""
        return self._left[0] if self._left else self._following.replica.tasks

    @property
    def lanes(self) -> Mapping[str, list[Task]]:
        """Each lane's tasks in order."""
        return self._left[1] if self._left else self._following.replica.lanes

    @property
    def lane_names(self) -> Mapping[str, str | None] | None:
        """The lanes' names in their order, if lanes are rows of a table; otherwise None."""
        return self._left[2] if self._left else self._following.replica.lane_names

    @property
    def state(self) -> State:
        return "offline" if self._left or self._relay.forked else self._following.state

    def unsubscribe(self) -> None:
        """End this subscription, but not others to the same board. Its loop ends, and its tasks stay as they are."""
        self._relay._leave(self)  # noqa: SLF001  # the two are one

    async def includes(self, xid: int | str) -> None:
        """Return once the board includes a transaction, whose id is `pg_current_xact_id()`, called within it.

        The transaction may have changed nothing, or have been rolled back. Without a connection, this waits; limit it
        by `asyncio.timeout`. Raises RelayError: with the code `not_included` if the transaction did not end within
        half a minute, or if the database was replaced; otherwise with that of the board or the connection.
        """
        self._relay.check_process()
        if self._left:
            raise RelayError("unsubscribed", "the board was left", board_id=self.id)
        text = str(int(xid))
        included = asyncio.get_running_loop().create_future()
        self._waits[text].add(included)
        try:
            self._relay._await(self, text)  # noqa: SLF001  # the two are one
            await included
        finally:
            self._waits[text].discard(included)
            if not self._waits[text]:
                del self._waits[text]

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    async def __anext__(self) -> Change:
        self._relay.check_process()
        if self._looping:
            raise RuntimeError("two loops over one board: each change would reach only one of them")
        self._looping = True
        try:
            return await self._next()
        finally:
            self._looping = False

    async def _next(self) -> Change:
        while True:
            if change := self._backlog.get():
                return replace(change, tasks=dict(self.tasks)) if change.type == "board.sync" else change
            self._raise_error()
            if self._left:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()

    async def _first(self) -> None:
        """Wait until the board has arrived. Raises RelayError."""
        while not self._following.present:
            self._raise_error()
            if self._left:
                raise RelayError("unsubscribed", "the board was left before it came", board_id=self.id)
            self._woken.clear()
            await self._woken.wait()

    def _raise_error(self) -> None:
        """Raise an error of the board once, because the relay may yet allow it; raise a permanent one each time."""
        if error := self._error:
            self._error = self._relay._session.stopped  # noqa: SLF001  # the two are one
            raise error

    # For the relay

    def _changed(self, changes: list[Change]) -> None:
        self._backlog.put(changes)
        self._error = None
        self._woken.set()

    def _failed(self, error: RelayError) -> None:
        self._error = error
        self._woken.set()

    def _included(self, xid: str, error: RelayError | None) -> None:
        for included in self._waits.get(xid, ()):
            _settle(included, error)

    def _end(self, why: RelayError) -> None:
        for xid in self._waits:
            self._included(xid, why)
        replica = self._following.replica
        self._left = self._left or (dict(replica.tasks), replica.lanes, replica.lane_names)
        self._woken.set()


class Relay:
    """Boards over one connection after another; see `connect`."""

    def __init__(
        self, url: str, token: Token = None, *, proxy: bool = True, ping_seconds: float = core.PING_SECONDS
    ) -> None:
        link.check(url)
        self._url = url
        self._token = token if callable(token) else link.check_token(token)
        self._session = Session(random.random, ping_seconds)
        self._proxy = proxy
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failing = False
        """Whether the lack of a connection has already been logged as a warning."""
        self._boards: dict[Following, list[Board]] = {}
        self._link: _Link | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._authenticating: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def __aenter__(self) -> Self:
        self.check_unused()
        self._process = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._session.start()
        self._act()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def state(self) -> State:
        return "offline" if self.forked else self._session.state

    async def subscribe(
        self,
        board_id: str,
        *,
        lanes: Collection[str] | None = None,
        columns: Collection[str] | None = None,
        tasks: Collection[str | int] | None = None,
    ) -> Board:
        """Follow a board; return once it has arrived, however long that takes. To limit it, use `asyncio.timeout`.

        `lanes` selects tasks by their lane, `tasks` by their id; `columns` selects columns besides `id`, `boardId`
        and `lane`. Each call is an independent subscription, but all subscriptions to a board must select the same,
        because the relay sends it only once.

        Raises RelayError if the relay refuses the connection or the board, or if this process is a fork.
        """
        self._running_loop()
        following = self._session.subscribe(board_id, selection(lanes, columns, tasks))
        board = Board(self, following)
        self._boards.setdefault(following, []).append(board)
        self._act()
        try:
            await board._first()  # noqa: SLF001  # the two are one
        except BaseException:
            board.unsubscribe()
            raise
        return board

    async def authenticate(self, token: str) -> None:
        """Present a fresh token; return when the relay has accepted it, or at once if there is no connection.

        Raises RelayError with the code `not_authenticated` if it is refused; the previous one then remains valid.
        """
        if link.check_token(token) is None:
            raise ValueError("there is no token: expected a string")
        loop = self._running_loop()
        if not self._session.authenticate(token):
            self._keep(token)
            self._act()
            return
        answer: asyncio.Future[None] = loop.create_future()
        self._authenticating.append((token, answer))
        self._act()
        await answer

    async def close(self) -> None:
        """End everything. Loops over boards end, and their tasks stay as they are. Does nothing in a fork."""
        if self.forked:
            return
        self._session.close()
        self._act()
        for board in [board for boards in self._boards.values() for board in boards]:
            board._end(RelayError("closed", "the relay was closed", board_id=board.id))  # noqa: SLF001  # the two are one
        await asyncio.gather(*self._links, return_exceptions=True)

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that connected, with a copy of its socket but not its loop."""
        return self._process != os.getpid()

    def check_process(self) -> None:
        """Raise RelayError in a fork."""
        if self.forked:
            raise RelayError(
                "forked",
                f"this connection belongs to process {self._process}, and this is {os.getpid()}, a fork of it:"
                " connect after the fork",
            )

    def check_unused(self) -> None:
        """Raise RelayError if it was opened before, because it ends with its `with` block for good."""
        if self._loop:
            raise RelayError("closed", "this relay was opened before: connect again")

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that it is open in. Raises RelayError in another one, and in a fork."""
        self.check_process()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            where = "it is open in another event loop" if self._loop else "use it in `async with connect(…)`"
            raise RelayError("closed", f"this relay is not open here: {where}")
        return loop

    def _leave(self, board: Board) -> None:
        if board._left:  # noqa: SLF001  # the two are one
            return
        following = board._following  # noqa: SLF001
        self._boards[following].remove(board)
        if not self._boards[following]:
            del self._boards[following]
        self._session.unsubscribe(following)
        board._end(RelayError("unsubscribed", "the board was left", board_id=board.id))  # noqa: SLF001
        self._act()

    def _await(self, board: Board, xid: str) -> None:
        self._session.includes(board._following, xid)  # noqa: SLF001  # the two are one
        self._act()

    def _keep(self, token: str) -> None:
        """Present this token from now on, unless a function is called each time."""
        if not callable(self._token):
            self._token = token

    # Effects of the session

    def _act(self) -> None:
        while effects := self._session.take_effects():
            for effect in effects:
                self._carry_out(effect)
        if self._timer:
            self._timer.cancel()
        due = self._session.due
        self._timer = None if due is None else asyncio.get_running_loop().call_at(due, self._tick)

    def _tick(self) -> None:
        self._session.tick(_now())
        self._act()

    def _carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Attempt():
                self._link = _Link(self)
                self._links.add(self._link.task)
                self._link.task.add_done_callback(self._links.discard)
            case effects.Send(text):
                assert self._link
                self._link.outgoing.put_nowait(text)
            case effects.Hangup(politely):
                assert self._link
                self._link.hang_up(politely=politely)
                self._link = None
            case effects.Authenticated(error):
                token, answer = self._authenticating.popleft()
                self._answer(token, answer, error)
            case effects.Failed(None, error):
                log.warning("%s", error)
            case effects.Entered(following):
                log.debug("board %r is %s", following.name, following.state)
            case _:
                self._inform(effect)

    def _inform(self, effect: effects.Changed | effects.Failed | effects.Included) -> None:
        """Inform all subscriptions to a board."""
        if isinstance(effect, effects.Failed):
            log.warning("%s", effect.error)
        for board in self._boards.get(effect.board, ()) if effect.board else ():
            match effect:
                case effects.Changed():
                    board._changed(effect.changes)  # noqa: SLF001  # the two are one
                case effects.Failed():
                    board._failed(effect.error)  # noqa: SLF001
                case effects.Included():
                    board._included(effect.xid, effect.error)  # noqa: SLF001

    def _answer(self, token: str, answer: asyncio.Future[None], error: RelayError | None) -> None:
        if error is None:
            self._keep(token)
        _settle(answer, error)

    # Called by the connection

    async def _fresh_token(self) -> object:
        token = self._token() if callable(self._token) else self._token
        return await token if inspect.isawaitable(token) else token

    def _opened(self, of: _Link) -> None:
        if of is self._link:
            log.info("connected to %s", link.without_secrets(self._url))
            self._failing = False
            self._session.opened(_now())
            self._act()

    def _received(self, of: _Link, text: bytes) -> None:
        if of is self._link:
            self._session.received(text, _now())
            self._act()

    def _ended(self, of: _Link, ex: Exception) -> None:
        if of is not self._link:
            return
        self._link = None
        code = ex.rcvd.code if isinstance(ex, ConnectionClosed) and ex.rcvd else _BROKEN
        level = logging.INFO if of.opened or self._failing else logging.WARNING
        self._failing = True
        log.log(level, "no connection to %s: %s (%d)", link.without_secrets(self._url), link.reason(ex), code)
        refused = link.is_refused(ex)
        may_get_another_token = refused and callable(self._token) and self._session.has_held_a_board
        self._session.ended(
            code,
            link.reason(ex),
            _now(),
            at_least=link.retry_after(ex),
            hopeless=None if may_get_another_token else link.hopeless(ex),
            refused=refused,
        )
        self._act()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _settle(answer: asyncio.Future[None], error: RelayError | None) -> None:
    """Resolve a future, unless nobody waits for it any more."""
    if answer.done():
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)


class _Link:
    """One attempt to connect, and the connection that it leads to."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._connection: ClientConnection | None = None
        self.outgoing: asyncio.Queue[str] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    def hang_up(self, *, politely: bool) -> None:
        if self._connection and not politely:
            self._connection.transport.abort()
        self.task.cancel()

    @property
    def opened(self) -> bool:
        return self._connection is not None

    async def _run(self) -> None:
        relay = self._relay
        try:
            async with asyncio.timeout(link.OPEN_SECONDS):
                given = await relay._fresh_token()  # noqa: SLF001  # the two are one
        except Exception as ex:  # noqa: BLE001  # whatever the program's function raises
            relay._ended(self, OSError(f"the token function failed: {ex!r}"))  # noqa: SLF001
            return
        try:
            token = link.check_token(given)
        except (TypeError, ValueError) as ex:
            relay._ended(self, ex)  # noqa: SLF001
            return
        try:
            heard = relay._session.heard  # noqa: SLF001
            async with link.connected(relay._url, token, heard, proxy=relay._proxy) as self._connection:  # noqa: SLF001
                await self._follow(self._connection)
        except link.FAILURES as ex:
            relay._ended(self, ex)  # noqa: SLF001

    async def _follow(self, connection: ClientConnection) -> None:
        writing = asyncio.create_task(self._write(connection))
        try:
            self._relay._opened(self)  # noqa: SLF001
            while True:
                self._relay._received(self, await connection.recv(decode=False))  # noqa: SLF001
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing

    async def _write(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # the reader reports it
            while True:
                await connection.send(await self.outgoing.get())
