"""The hub: all boards and their subscribers. No sockets, no Postgres.

A source delivers committed changes (`publish`), whole boards (`synced`), and what returning clients missed
(`resumed`). Clients follow boards (`subscribe`).

Rules:
- All methods are synchronous and quick, and are called from one thread.
- Bytes are made once: a message is encoded once per board, and framed once per delivery; see delivery.py. Cursors
  belong to the board, not to the subscriber.
- One read of the journal, from the oldest cursor on, serves all subscribers that resume, on whatever boards.
- Nothing is handed over in the middle of a batch that comes in parts, because boards are then at no committed moment.
  A source waits for the end of the batch. If the batch is cut short, what was read meanwhile is read again.
- A subscriber is sent everything that a transaction changed on a board before the hub tells it that the board
  includes the transaction.
- The hub keeps nothing for a subscriber that is not ready. When it can read again, `caught_up` requests a fresh
  `board.sync` of every board on which it missed something.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

import structlog

from relay.hub.board import Board, Delivery, bounds
from relay.hub.boards import Boards
from relay.hub.boards import steps as steps_of
from relay.hub.delivery import Sender
from relay.hub.following import Following
from relay.hub.ports import BoardSource, Committed, Resume, Resuming, Sink, Subscriber
from relay.hub.recipients import Recipients
from relay.hub.requests import Requests
from relay.hub.waits import Wait, Waits
from relay.model import messages
from relay.model.cursor import CursorRefused, Epoch, Reason
from relay.model.messages import ErrorCode, Message
from relay.model.selection import Whole, board_of, is_selection, selection_of
from relay.model.snapshot import Snapshot

log = structlog.get_logger()

CROWDED_OUT: Final = "others needed the room that this selection had: select what others do, or the whole board"
"""The error for a selection that was replaced by another."""

SELECTED_BYTES: Final = 4 * 1024 * 1024
"""How much is selected of a board at once, for all selections together: it takes a tenth of a second, and
nothing else happens meanwhile. The selections that are left get the next read of the board."""

MAX_WAITS: Final = 10_000
"""Maximum number of waits for transactions, over all subscribers: each takes memory, and all may expire at once."""


class Hub(Sink, Resuming):
    """Boards and their subscribers.

    For metrics: `sent` and `sent_bytes` are those of the `Sender`, `fell_behind` is that of the `Recipients`.
    """

    def __init__(self, source: BoardSource) -> None:
        self._source = source
        self._requests = Requests(source)
        self._sender = Sender()
        self._recipients = Recipients(self._sender)
        self._following = Following()
        self._waits = Waits()
        self._boards = Boards()
        # The boards for which the journal is read.
        self._resuming: frozenset[str] = frozenset()
        # Whether more of the current batch follows, and the boards to which parts of it were published.
        self._mid_batch = False
        self._in_parts: set[str] = set()
        self._epoch: Epoch | None = None
        self._position: Snapshot | None = None

    def __contains__(self, board: object) -> bool:
        """Whether anybody follows a board, or a selection of it."""
        return board in self._boards.selections

    @property
    def fell_behind(self) -> int:
        """How often a subscriber could take no more."""
        return self._recipients.fell_behind

    @property
    def sent(self) -> Counter[str]:
        """Messages sent, by type."""
        return self._sender.sent

    @property
    def sent_bytes(self) -> int:
        """Bytes sent."""
        return self._sender.sent_bytes

    # Called for clients

    def subscribe(
        self, subscriber: Subscriber, name: str, *, resumable: bool = False, cursor: str | None = None
    ) -> None:
        """Send a subscriber the board, or what it missed since the cursor, and then its changes.

        The name may be that of a selection, which replaces another one of the same board. A subscriber that
        subscribes again gets the whole board, whatever its cursor, because what was sent in between would come twice.
        It also gets the whole board if the cursor is refused.
        """
        name = sys.intern(name)  # a selection's name may be long, and many have the same
        self._stop(subscriber, board_of(name))
        again = self._following.add(subscriber, name)
        board = self._boards.add(name, subscriber)
        if resumable:
            self._recipients.resume(name, subscriber)
        if cursor is None or again:
            board.join(subscriber, None if cursor is None else "subscribed_again")
            self._requests.ask(name, board)
        elif self._epoch is None:
            board.hold(subscriber, cursor)
        else:
            self._resume(self._epoch, subscriber, name, cursor)

    def unsubscribe(self, subscriber: Subscriber, name: str) -> None:
        """End a subscription, and the subscriber's waits on this board."""
        self._waits.leave(subscriber, name)
        self._stop(subscriber, name)

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a subscriber that has disconnected."""
        for name in self._following.selections(subscriber):
            self._leave(subscriber, name)
        self._following.forget(subscriber)
        self._waits.leave(subscriber)

    def includes(self, subscriber: Subscriber, name: str, xid: int) -> None:
        """Notify a subscriber as soon as its board includes a transaction, or when that takes too long."""
        self._waits.add(subscriber, name, xid)
        self._reach(self._position)

    def waits(self, subscriber: Subscriber) -> int:
        """Return the number of transactions that a subscriber waits for."""
        return self._waits.count(subscriber)

    def make_room_for_wait(self, subscriber: Subscriber) -> bool:
        """Return whether a subscriber may wait for one more transaction. This may end another's wait."""
        if len(self._waits) < MAX_WAITS:
            return True
        if (other := self._waits.crowd_out(subscriber)) is None:
            return False
        self._refuse_waits([other], "it gave way to others: wait for fewer at once", "too_many_waits")
        return True

    def expire_waits(self) -> None:
        """Refuse the waits that already existed when this was last called."""
        self._refuse_waits(self._waits.expire(), "it was not over in time, or its number is of another server")

    def caught_up(self, subscriber: Subscriber) -> None:
        """Bring a subscriber up to date that is ready again."""
        for name in self._following.selections(subscriber):
            board = self._boards[name]
            if board.is_behind(subscriber):
                board.join(subscriber, "fell_behind")
                self._requests.ask(name, board)

    # Called by the source, about everything

    def begin(self, epoch: Epoch, position: Snapshot, lost: Reason | None) -> None:
        """Continue from `position`, with the cursors that are valid from now on.

        With `lost`, continuity is broken: every subscriber is sent its boards again, with this reason.
        """
        first = self._position is None
        if lost == "epoch_changed" or (self._epoch and self._epoch.run not in epoch.keys):
            # The same number may now belong to another transaction.
            self._refuse_waits(self._waits.end(), "the database is another now, or crashed, or was restored")
        self._epoch, self._position = epoch, position
        self._mid_batch = False
        self._in_parts.clear()
        for name, board in self._boards.items():
            for subscriber, cursor in board.release().items():
                self._resume(epoch, subscriber, name, cursor)
        if lost and not first:
            for subscriber in self._following:
                for name in self._following.selections(subscriber):
                    self._boards[name].join(subscriber, lost)
        for name, board in self._boards.items():
            self._requests.ask(name, board)
        self._reach(position)

    def publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        """Deliver what was committed since the last position, in this order.

        Without a position, more of the batch follows, perhaps of the same transaction. Until the batch ends, no board
        can be handed over and no cursor issued.
        """
        self._position = position or self._position
        self._mid_batch = position is None
        steps = steps_of(transactions, self._boards.selections)
        for name, its_steps in steps.items():
            board = self._boards[name]
            self._deliver(name, board, board.publish(its_steps, position))
            self._requests.ask(name, board)
        if position is None:
            self._in_parts |= steps.keys()
        elif self._in_parts:
            self._end_parts(position, steps)
        self._reach(position)

    def _end_parts(self, position: Snapshot, steps: Container[str]) -> None:
        """End a batch that came in parts on those of its boards that the last part did not touch."""
        in_parts, self._in_parts = self._in_parts, set()
        for name in in_parts:
            if name not in steps and (board := self._boards.get(name)):
                self._deliver(name, board, board.publish([], position))
                resumable = self._recipients.resumable(name, board.live)
                self._deliver(name, board, [Delivery(resumable, (), position)])

    def refresh(self) -> None:
        """Renew the cursors of boards on which nothing was sent since the last call, before they expire.

        In the middle of a batch this does nothing; the next call will.
        """
        if self._mid_batch:
            return
        for name in self._recipients.take_quiet():
            if (board := self._boards.get(name)) and self._position is not None:
                ready = {one for one in self._recipients.resumable(name, board.live) if one.ready}
                self._deliver(name, board, [Delivery(ready, (), self._position)])

    # Called by the source, about one board

    def begin_read(self, name: str) -> bool:
        """Note that a read of a board begins; return False if nobody wants it any more."""
        self._requests.over(name, self._boards)
        wanted = [board for _, board in self._boards.of(name) if board.needs_read]
        for board in wanted:
            board.begin_read()
        return bool(wanted)

    def abandon_read(self, name: str) -> None:
        """Note that a board was given up, before or during its read. If still wanted, it is requested again."""
        for _, board in self._boards.of(name):
            board.abandon_read()
        # Even if nobody follows it now, so that a later subscriber can request it.
        self._requests.over(name, self._boards)
        for each, board in self._boards.of(name):
            self._requests.ask(each, board)

    def fail_read(self, name: str, error: Message) -> None:
        """Like `abandon_read`, but also send this error, once, to those that wait for the board."""
        for each, board in self._boards.of(name):
            self._sender.answer(board.fail_read(), error)
            self._requests.ask(each, board)

    def refuse(self, name: str, error: Message) -> None:
        """Note that a board cannot exist: send its subscribers this error, and end their subscriptions."""
        subscribers = self._following.subscribers(name)
        for subscriber in subscribers:
            self.unsubscribe(subscriber, name)
        self._sender.answer(subscribers, error)

    def synced(self, name: str, snapshot: Snapshot, data: bytes) -> None:
        """Hand over a board, encoded by `messages.board_data`, and the snapshot in which it was read."""
        if self._mid_batch:
            self.abandon_read(name)
            return
        assert self._position is not None, "the feed has a position before it reads a board"
        whole, room = Whole(data), SELECTED_BYTES
        for each, board in self._boards.of(name):
            if not is_selection(each):
                self._deliver(each, board, board.synced(snapshot, self._position), data)
            elif room <= 0:
                board.abandon_read()
            elif deliveries := list(board.synced(snapshot, self._position)):
                chosen = selection_of(each).data(whole)
                self._deliver(each, board, deliveries, chosen)
                self._boards.put_last(each)
                room -= len(chosen)
            self._requests.ask(each, board)
        self._answer_waits(name)

    # Called by the source, about subscribers that resume

    def begin_resume(self) -> Resume | None:
        """Note that the source begins to read the journal for them; return None if none resumes any more."""
        cursors = {name: cursors for name, board in self._boards.items() if (cursors := board.resuming)}
        if not cursors or self._resuming:
            return None
        self._resuming = frozenset(cursors)
        for name in self._resuming:
            self._boards[name].begin_resume()
        oldest, newest = bounds(chain.from_iterable(cursors.values()))
        return Resume(oldest, newest, frozenset(map(board_of, self._resuming)))

    def abandon_resume(self) -> None:
        """Note that the read failed. It is requested again."""
        for _, board in self._end_resume():
            board.abandon_resume()

    def resumed(self, now: Snapshot, transactions: Sequence[Committed] | None, horizon: Snapshot) -> None:
        """Hand over what became visible on these boards between `Resume.oldest` and `now`; None if it is too much.

        The journal holds everything after `horizon`.
        """
        if self._mid_batch:
            self.abandon_resume()
            return
        assert self._position is not None, "the feed has a position before it reads the journal"
        selections: defaultdict[str, set[str]] = defaultdict(set)
        for name in self._resuming:
            selections[board_of(name)].add(name)
        steps = steps_of(transactions or (), selections)
        for name, board in self._end_resume():
            for cursor in board.cursors:
                if not now.covers(cursor):
                    board.refuse(cursor, "epoch_changed")
                elif not cursor.covers(horizon):
                    board.refuse(cursor, "journal_pruned")
                elif transactions is None:
                    board.refuse(cursor, "too_much_missed")
            self._deliver(name, board, board.resumed(now, steps.get(name, ()), self._position))
            self._requests.ask(name, board)
            self._answer_waits(board_of(name))

    def make_room_for(self, subscriber: Subscriber, name: str) -> bool:
        """Return whether a subscriber may follow a board or selection. This may end another selection.

        The number of selections is limited; see shares.py.
        """
        if self._boards.has_room_for(name):
            return True
        if (other := self._boards.shares.to_crowd_out(subscriber)) is None:
            return False
        board, subscribers = board_of(other), self._boards.shares.holders(other)
        log.info("websocket.crowded_out", board=board[:100], subscribers=len(subscribers))
        for one in subscribers:
            self.unsubscribe(one, board)
        self._sender.answer(subscribers, messages.error("too_many_selections", CROWDED_OUT, board))
        return True

    @property
    def subscriptions(self) -> int:
        """Number of subscriptions, over all boards."""
        return sum(map(len, self._boards.values()))

    def following(self, subscriber: Subscriber) -> list[str]:
        """Return the boards that a subscriber follows."""
        return self._following.boards(subscriber)

    # Internals

    def _resume(self, epoch: Epoch, subscriber: Subscriber, name: str, cursor: str) -> None:
        board = self._boards[name]
        try:
            board.resume(subscriber, epoch.open(name, cursor))
            self._source.ask_changes(self)
        except CursorRefused as refused:
            log.info("websocket.cursor_refused", board=board_of(name)[:100], reason=refused.reason)
            board.join(subscriber, refused.reason)
            self._requests.ask(name, board)

    def _end_resume(self) -> Iterator[tuple[str, Board[Subscriber]]]:
        names, self._resuming = self._resuming, frozenset()
        # Subscribers that came meanwhile need another read.
        self._source.ask_changes(self)
        for name in names:
            if board := self._boards.get(name):
                yield name, board

    def _reach(self, position: Snapshot | None) -> None:
        """Answer the waits for transactions that have now been published."""
        for name in self._waits.reach(position) if position else ():
            self._answer_waits(name)

    def _answer_waits(self, name: str) -> None:
        """Answer the due waits of subscribers that hold the board."""
        for xid, subscribers in self._waits.answer(name, lambda one: self._holds(one, name)).items():
            self._sender.answer(subscribers, messages.included(name, xid))

    def _holds(self, subscriber: Subscriber, name: str) -> bool:
        followed = self._following.selection(subscriber, name)
        return followed is not None and self._boards[followed].holds(subscriber)

    def _refuse_waits(self, waits: Iterable[Wait], why: str, code: ErrorCode = "not_included") -> None:
        for subscriber, name, xid in waits:
            text = f"transaction {xid} is not known to be included: {why}"
            self._sender.answer([subscriber], messages.error(code, text, name, str(xid)))

    def _stop(self, subscriber: Subscriber, name: str) -> None:
        if (followed := self._following.leave(subscriber, name)) is not None:
            self._leave(subscriber, followed)

    def _leave(self, subscriber: Subscriber, name: str) -> None:
        self._recipients.leave(name, subscriber)
        self._boards.leave(name, subscriber)
        if name not in self._boards:
            self._recipients.forget(name)

    def _deliver(
        self, name: str, board: Board[Subscriber], deliveries: Iterable[Delivery[Subscriber]], data: bytes = b""
    ) -> None:
        self._recipients.deliver(name, board, deliveries, self._epoch, data)
