"""The hub: all boards and their subscribers. No sockets, no Postgres.

The feed tells it what was committed (`publish`) and what a board looks like (`synced`); the server tells it who
wants what. It asks for boards through `ask`, and sends through each subscriber's `send`.

Rules:
- All methods are synchronous and quick, and are called from one thread: between two of them nothing changes.
- Bytes are made once: a message is encoded and framed once per board, a batch is one buffer.
- The hub keeps nothing for a subscriber that is not ready. When that one can read again, `caught_up` gives it one
  fresh `board.sync` for every board on which it missed something.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from relay.board import Board, Step
from relay.changes import Transaction, messages
from relay.protocol import Message
from relay.snapshot import Snapshot

log = structlog.get_logger()


class Subscriber(Protocol):
    """A client's connection, as far as the hub is concerned. Compared by identity."""

    @property
    def ready(self) -> bool:
        """Whether it can take more now."""

    def send(self, frames: bytes) -> None:
        """Pass frames on. Must not block and must not call the hub."""


class Hub:
    """Boards and their subscribers.

    `ask` is called with a board's name when it is to be read; `frame` makes a message what goes on the wire.
    """

    def __init__(self, ask: Callable[[str], None], frame: Callable[[bytes], bytes]) -> None:
        self._ask = ask
        self._frame = frame
        self._boards: dict[str, Board[Subscriber]] = {}
        self._boards_of: defaultdict[Subscriber, set[str]] = defaultdict(set)
        self._asked: set[str] = set()
        self._position: Snapshot | None = None

    # What the server says

    def subscribe(self, subscriber: Subscriber, name: str) -> None:
        """Send a subscriber the board, and then its changes. Again: the board anew."""
        board = self._boards.setdefault(name, Board())
        board.join(subscriber)
        self._boards_of[subscriber].add(name)
        self._ask_for(name, board)

    def unsubscribe(self, subscriber: Subscriber, name: str) -> None:
        """Send a subscriber nothing more of a board."""
        if name in self._boards_of.get(subscriber, ()):
            self._boards_of[subscriber].discard(name)
            self._leave(subscriber, name)

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a subscriber that is gone."""
        for name in self._boards_of.pop(subscriber, ()):
            self._leave(subscriber, name)

    def caught_up(self, subscriber: Subscriber) -> None:
        """Bring a subscriber up to date that was not ready and is again."""
        for name in self._boards_of.get(subscriber, ()):
            board = self._boards[name]
            if board.is_behind(subscriber):
                board.join(subscriber)
                self._ask_for(name, board)

    # What the feed says

    def publish(self, transactions: Sequence[Transaction], position: Snapshot) -> None:
        """Deliver what was committed since the last position, in this order."""
        self._position = position
        steps: defaultdict[str, list[Step]] = defaultdict(list)
        types: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for transaction in transactions:
            if transaction.sync is not None:
                for name in self._boards:
                    steps[name].append(Step(transaction.xid, b"", sync=True))
                continue
            for name, found in messages(transaction, self._boards).items():
                steps[name].append(Step(transaction.xid, self._frames(found or ()), sync=found is None))
                types[name].update(message.type for message in found or ())
        for name, its_steps in steps.items():
            board = self._boards[name]
            recipients = self._deliver(board, board.publish(its_steps, position))
            self._ask_for(name, board)
            if recipients:
                _log_broadcast(name, types[name], recipients)

    def resync(self, position: Snapshot) -> None:
        """Continuity was broken, or begins: send everybody their boards anew. The feed goes on from `position`."""
        self._position = position
        for subscriber, names in self._boards_of.items():
            for name in names:
                self._boards[name].join(subscriber)
        for name, board in self._boards.items():
            self._ask_for(name, board)

    def begin_read(self, name: str) -> bool:
        """Note that the feed begins to read a board; false if nobody wants it any more."""
        self._asked.discard(name)
        board = self._boards.get(name)
        if board is None or not board.needs_read:
            return False
        board.begin_read()
        return True

    def abandon_read(self, name: str) -> None:
        """Note that reading a board failed; it is asked for again."""
        if board := self._boards.get(name):
            board.abandon_read()
            self._ask_for(name, board)

    def synced(self, name: str, snapshot: Snapshot, sync: Message) -> None:
        """Hand over a board that was read."""
        board = self._boards.get(name)
        if board is None:
            return
        assert self._position is not None, "the feed has a position before it reads a board"
        recipients = self._deliver(board, board.synced(snapshot, self._frame(sync.json), self._position))
        self._ask_for(name, board)
        if recipients:
            _log_broadcast(name, Counter([sync.type]), recipients)

    def _ask_for(self, name: str, board: Board[Subscriber]) -> None:
        if board.needs_read and name not in self._asked:
            self._asked.add(name)
            self._ask(name)

    def _leave(self, subscriber: Subscriber, name: str) -> None:
        board = self._boards[name]
        board.leave(subscriber)
        if not board:
            del self._boards[name]

    def _frames(self, found: Iterable[Message]) -> bytes:
        return b"".join(self._frame(message.json) for message in found)

    def _deliver(self, board: Board[Subscriber], deliveries: Iterable[tuple[set[Subscriber], bytes]]) -> int:
        recipients = 0
        for subscribers, frames in deliveries:
            behind = []
            for subscriber in subscribers:
                if subscriber.ready:
                    subscriber.send(frames)
                else:
                    behind.append(subscriber)
            recipients += len(subscribers) - len(behind)
            board.fall_behind(behind)
        return recipients


def _log_broadcast(board: str, types: Counter[str], recipients: int) -> None:
    for kind, count in types.items():
        log.info("websocket.broadcast", type=kind, recipients=recipients, board=board[:100], messages=count)
