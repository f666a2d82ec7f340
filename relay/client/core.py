"""The state and decisions of the Python client, without sockets or clocks. Pure.

The shell (`shell.py`) informs a `Session` about events and their times: a connection opened or ended, a message
arrived, a timer is due. The session answers with *effects* (`effects.py`), from `take_effects()`: what to send, when
to connect, what to report to the program. From the inside out: a `Replica` holds the tasks of one board; a
`Following` also knows its cursor and unfinished batch; the `Session` keeps boards over one connection after another.

Rules (those of tests/conformance, which the JavaScript client obeys too):
- A batch is applied whole or not at all, so at any time a board equals the table at some moment.
- A message that does not fit the board is not interpreted: the board is requested again. If messages repeatedly do
  not fit, that is an error.
- Messages of a connection that has ended are ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

from relay.client.effects import (
    Attempt,
    Authenticated,
    Changed,
    Effect,
    Entered,
    Failed,
    Hangup,
    Included,
    RelayError,
    Send,
)
from relay.client.following import Following, Selection, State
from relay.client.replica import Misfit, parse

FIRST_PAUSE_SECONDS: Final = 0.5
"""Maximum pause after the first failure. It doubles with each failure in a row. Pauses are a random part of it."""

LONGEST_PAUSE_SECONDS: Final = 30.0
"""Maximum pause after any number of failures."""

RESTART_PAUSE_SECONDS: Final = 2.0
"""Maximum pause after close code 1012. It is short, because another relay may be there already. It is also the one
after too many messages."""

PING_SECONDS: Final = 30.0
"""Interval between pings. A connection on which nothing arrived since the last ping is closed."""

MOST_MISFITS: Final = 5
"""Number of misfits in a row after which a board is unusable."""

_BROKEN: Final = 1006
_RESTARTING: Final = 1012
_EXPIRED: Final = 4001
_REFUSED: Final = 4003
_TOO_MANY: Final = 1008
HOPELESS_CODES: Final = frozenset({1002, 1007, 1008, 1009, 4003})
"""Close codes after which reconnecting is of no use; see docs/clients.md."""

_Timer = Literal["attempt", "ping", "waits", "renew"] | Following
_PING: Final = '{"type":"ping"}'


class Session:
    """Boards, over one connection after another. Times are seconds of any clock that only goes forward."""

    def __init__(self, chance: Callable[[], float], ping_seconds: float = PING_SECONDS) -> None:
        self.boards: dict[str, Following] = {}
        self.state: Literal["connecting", "live", "offline"] = "connecting"
        self.stopped: RelayError | None = None
        """Why it does not reconnect by itself."""
        self.has_held_a_board = False
        self._chance = chance
        self._ping_seconds = ping_seconds
        self._link: Literal["none", "attempt", "open"] = "none"
        self._effects: list[Effect] = []
        self._timers: dict[_Timer, float] = {}
        self._failures = 0
        self._board_came = False
        # Whether too many messages were sent on this connection, and whether another token was given since the
        # attempt began that led to it.
        self._hurried = self._renewed = False
        self._heard = False
        # On this connection: what of each board was last asked for, and how many pings were sent and answered.
        self._asked: dict[str, Selection] = {}
        self._pings = self._pongs = 0
        self._authenticating = 0
        self._closed = False

    def take_effects(self) -> list[Effect]:
        """Return the effects in order. Call this after every other method."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def due(self) -> float | None:
        """When to call `tick` next; None if no timer is set."""
        return min(self._timers.values(), default=None)

    # Called for the program

    def start(self) -> None:
        """Begin to connect."""
        self._attempt()

    def subscribe(self, name: str, selection: Selection | None = None) -> Following:
        """Follow a board for one more subscription; return the same object if it is already followed.

        Raises RelayError if it is followed with another selection, because the relay sends only one per connection.
        """
        if self._closed:
            raise RelayError("closed", "this relay was closed: connect again", board_id=name)
        if name not in self.boards:
            self.boards[name] = Following(name, "connecting" if self.state == "live" else self.state, selection or {})
        board = self.boards[name]
        if board.selection != (selection or {}):
            problem = f"the board {name} is followed with another selection: connect again to follow both"
            raise RelayError("other_selection", problem, board_id=name)
        board.subscriptions += 1
        if self._link == "open":
            if not board.followed:
                self._ask(board)
        elif self.stopped:
            self._fail(board, self.stopped)
        elif self._link == "none" and "attempt" not in self._timers:
            self._attempt()
        return board

    def unsubscribe(self, board: Following) -> None:
        """End one subscription to a board. After the last one, the board is no longer followed or updated."""
        board.subscriptions -= 1
        if board.subscriptions or self.boards.get(board.name) is not board:
            return
        del self.boards[board.name]
        self._timers.pop(board, None)
        if board.followed:
            self._send({"type": "unsubscribe", "boardId": board.name})
        self._enter(board, "offline")

    def includes(self, board: Following, xid: str) -> None:
        """Wait for a transaction, until the effect `Included`. Raises RelayError if that cannot come."""
        if self._closed:
            raise RelayError("closed", "this relay was closed: connect again", board_id=board.name)
        if self.stopped:
            raise self.stopped
        if self._link == "open" and not board.followed:
            raise RelayError("not_subscribed", f"the board {board.name} is not followed", board_id=board.name)
        if xid not in board.waits:
            board.waits[xid] = None
            if self._link == "open":
                self._send_wait(board, xid)

    def authenticate(self, token: str) -> bool:
        """Present a fresh token; return whether there is a connection, so that an answer will come."""
        if self._link == "open":
            self._authenticating += 1
            self._send({"type": "authenticate", "token": token})
            return True
        self._renewed = True
        if self.stopped and not self._closed:
            self.stopped = None
            self._attempt()
        return False

    def close(self) -> None:
        """End everything. Boards are no longer updated."""
        if self._closed:
            return
        self._closed = True
        self._hang_up(politely=True)
        for board in list(self.boards.values()):
            self._enter(board, "offline")

    # Called for the connection

    def opened(self, now: float) -> None:
        """Note that the attempt has led to a connection."""
        self._link, self.state, self._heard = "open", "live", True
        self._timers["ping"] = now + self._ping_seconds
        self._asked.clear()
        self._pings = self._pongs = 0
        for board in self.boards.values():
            board.fence = 0
            self._ask(board)

    def heard(self) -> None:
        """Note that data arrived, perhaps only a part of a message."""
        self._heard = True

    def received(self, text: str | bytes, now: float) -> None:
        """Handle a message."""
        if self._link != "open":
            return
        self._heard = True
        message = parse(text)
        if message is None:
            self._hang_up(politely=False)
            self._come_back(now, _BROKEN)
        elif message["type"] == "authenticated":
            self._answer(None)
            for board in self.boards.values():
                if not board.followed:
                    self._ask(board)
        elif message["type"] == "pong":
            self._pongs += 1
        elif message["type"] == "included":
            self._included(message.get("data"))
        elif message["type"] == "error":
            self._refused(message.get("data"), now)
        else:
            self._receive(self._board_of(message), message, now)

    def ended(
        self,
        code: int,
        reason: str,
        now: float,
        *,
        at_least: float = 0.0,
        hopeless: str | None = None,
        refused: bool = False,
    ) -> None:
        """Note that the connection, or the attempt, has ended.

        `at_least` is the pause that the relay asked for, `hopeless` the reason if reconnecting is of no use, and
        `refused` whether another token might have been accepted.
        """
        if self._link == "none":
            return
        self._end_link()
        if (refused or code == _REFUSED) and self._renewed:  # it was the earlier token that was refused
            if self.boards:
                self._attempt()
            return
        if code in HOPELESS_CODES and hopeless is None and not (code == _TOO_MANY and self._hurried):
            hopeless = f"the relay closed the connection: {reason or 'no reason'} ({code})"
        if hopeless is None:
            self._come_back(now, code, at_least)
            return
        self.stopped = RelayError("closed", hopeless, close_code=code)
        self._effects.append(Failed(None, self.stopped))
        for board in list(self.boards.values()):
            self._fail(board, self.stopped)

    def tick(self, now: float) -> None:
        """Do what is due."""
        for timer in sorted(self._timers, key=lambda each: self._timers[each]):
            if self._timers.get(timer, now + 1) > now:
                continue
            del self._timers[timer]
            if timer == "attempt":
                self._attempt()
            elif timer == "ping":
                self._ping(now)
            elif timer == "waits":
                for board in self.boards.values():
                    self._send_waits(board)
            elif timer == "renew":
                self._renew(now)
            elif isinstance(timer, Following):
                self._ask(timer)

    # Messages

    def _board_of(self, message: dict[str, Any]) -> Following | None:
        if "boardId" in message:
            name = message["boardId"]
            board = self.boards.get(name) if isinstance(name, str) else None
            return board if board and board.followed and self._pongs >= board.fence else None
        # A server without cursors does not name the board.
        followed = [board for board in self.boards.values() if board.followed]
        data = message.get("data")
        named = data.get("boardId") if message["type"] == "task.created" and isinstance(data, dict) else None
        return followed[0] if len(followed) == 1 and named in {None, followed[0].name} else None

    def _receive(self, board: Following | None, message: dict[str, Any], now: float) -> None:
        if board is None:
            return
        try:
            changes = board.receive(message)
        except Misfit as ex:
            self._ask_again(board, str(ex), now)
            return
        if changes is None:
            return
        self._timers.pop(board, None)
        self._board_came = self.has_held_a_board = True
        self._failures = 0
        self._enter(board, "live")
        if message.get("reason") == "epoch_changed":  # the same number may now belong to another transaction
            self._end_waits(board, RelayError("not_included", "the database is another now", board_id=board.name))
        if changes:
            self._effects.append(Changed(board, changes))

    def _ask_again(self, board: Following, found: str, now: float) -> None:
        """Request a board again: at once the first time, then after pauses, and a limited number of times."""
        misfits = board.misfit(now)
        if misfits == 1:
            self._ask(board)
        elif misfits < MOST_MISFITS:
            self._enter(board, "catching up")
            self._timers[board] = now + self._chance() * longest_pause(misfits - 1)
        else:
            board.forget_misfits()
            self._send({"type": "unsubscribe", "boardId": board.name})
            problem = f"the board {board.name} cannot be held: found {found}, after {MOST_MISFITS} attempts"
            self._fail(board, RelayError("unusable_board", problem, board_id=board.name))

    def _refused(self, data: object, now: float) -> None:
        refused = data if isinstance(data, dict) else {}
        code, name = str(refused.get("code")), refused.get("boardId")
        error = RelayError(code, f"the relay refused: {refused.get('message')} ({code})", board_id=name)
        board = self.boards.get(name) if isinstance(name, str) else None
        if board and "xid" in refused:
            self._end_wait(board, refused["xid"], error)
            return
        if code == "board_unavailable":  # the board comes by itself, as soon as it can be read
            if board:
                self._enter(board, "catching up")
            self._effects.append(Failed(None, error))
            return
        if board:
            self._timers.pop(board, None)
            self._fail(board, error)
        elif code == "not_authenticated":
            self._answer(error)
        else:
            self._effects.append(Failed(None, error))
        if code == "too_many_messages":
            self._repeat(error, now)

    def _repeat(self, error: RelayError, now: float) -> None:
        """Have what may be among the messages that the relay dropped sent again."""
        self._hurried = True
        while self._authenticating:
            self._answer(error)
        if any(board.fence > self._pongs for board in self.boards.values()):
            self._renew(now)
            return
        for board in self.boards.values():
            if board.state == "catching up":
                self._timers[board] = now + self._chance() * RESTART_PAUSE_SECONDS
        self._timers["waits"] = now + self._chance() * RESTART_PAUSE_SECONDS

    def _included(self, data: object) -> None:
        found = data if isinstance(data, dict) else {}
        name = found.get("boardId")
        if isinstance(name, str) and (board := self.boards.get(name)):
            self._end_wait(board, found.get("xid"))

    def _end_wait(self, board: Following, xid: object, error: RelayError | None = None) -> None:
        if isinstance(xid, str) and xid in board.waits:
            del board.waits[xid]
            self._effects.append(Included(board, xid, error))

    def _end_waits(self, board: Following, error: RelayError) -> None:
        for xid in list(board.waits):
            self._end_wait(board, xid, error)

    def _answer(self, error: RelayError | None) -> None:
        if self._authenticating:
            self._authenticating -= 1
            self._effects.append(Authenticated(error))

    def _ask(self, board: Following) -> None:
        self._enter(board, "catching up")
        if self._asked.setdefault(board.name, board.selection) != board.selection:
            # What was sent of the other part comes before the answer to a ping.
            self._asked[board.name] = board.selection
            if self._hurried:
                board.fence, self._timers["renew"] = sys.maxsize, 0.0
                return
            self._send_ping()
            board.fence = self._pings
        self._effects.append(Send(board.ask()))
        self._send_waits(board)

    def _send_waits(self, board: Following) -> None:
        """Send all waits, perhaps again: the relay ignores duplicates."""
        for xid in board.waits if board.followed else ():
            self._send_wait(board, xid)

    def _send_wait(self, board: Following, xid: str) -> None:
        self._send({"type": "includes", "boardId": board.name, "xid": xid})

    def _send(self, message: object) -> None:
        self._effects.append(Send(json.dumps(message)))

    def _enter(self, board: Following, state: State) -> None:
        if board.state != state:
            board.state = state
            self._effects.append(Entered(board))

    def _fail(self, board: Following, error: RelayError) -> None:
        self._enter(board, "offline")
        self._end_waits(board, error)
        self._effects.append(Failed(board, error))

    # The connection

    def _attempt(self) -> None:
        self._timers.pop("attempt", None)
        self._link = "attempt"
        self._board_came = self._hurried = self._renewed = False
        self._effects.append(Attempt())

    def _ping(self, now: float) -> None:
        if self._heard:
            self._heard = False
            self._send_ping()
            self._timers["ping"] = now + self._ping_seconds
        else:
            self._hang_up(politely=False)
            self._come_back(now, _BROKEN)

    def _send_ping(self) -> None:
        self._pings += 1
        self._effects.append(Send(_PING))

    def _renew(self, now: float) -> None:
        """Connect again, to request another part of a board after too many messages.

        The relay may have dropped a ping, so that pongs cannot be counted, or the end of the other part.
        """
        self._hang_up(politely=True)
        self._come_back(now, _BROKEN)

    def _hang_up(self, *, politely: bool) -> None:
        if self._link != "none":
            self._effects.append(Hangup(politely))
        self._end_link()

    def _end_link(self) -> None:
        self._link, self.state = "none", "offline"
        self._timers.clear()
        while self._authenticating:
            self._answer(RelayError("closed", "the connection ended before the token was answered: present it again"))
        for board in self.boards.values():
            self._enter(board, "offline")

    def _come_back(self, now: float, code: int, at_least: float = 0.0) -> None:
        if self._closed or not self.boards:
            return  # `subscribe` connects
        if code in {_RESTARTING, _TOO_MANY}:
            pause = self._chance() * RESTART_PAUSE_SECONDS
        elif code == _EXPIRED and self._board_came:
            pause = 0.0
        else:
            self._failures += 1
            pause = self._chance() * longest_pause(self._failures)
        self._timers["attempt"] = now + at_least + pause


def longest_pause(failures: int) -> float:
    """Return the maximum pause after this number of failures in a row, in seconds."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 20))
