"""The hub, between a little Postgres and clients that check every delivery; and its rules one by one."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.hub import boards, hub, recipients
from relay.hub.hub import Hub
from relay.hub.ports import Frame, Resume, Resuming
from relay.hub.shares import Shares
from relay.hub.waits import Waits
from relay.model import messages as protocol
from relay.model import selection
from relay.model.cursor import Epoch
from relay.model.selection import selected
from relay.model.snapshot import Snapshot
from relay.model.transaction import Image, Transaction
from tests.unit import tasks
from tests.unit.little_postgres import LittlePostgres


@pytest.fixture(scope="module", autouse=True)
def _silence() -> Iterator[None]:
    """Log nothing: a line per broadcast is a lot of lines here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def frame(message: protocol.Message) -> bytes:
    return message.json + b"\n"


def bracketed(message: protocol.Message) -> bytes:
    return b"<" + message.json + b">"


EPOCH = Epoch(run="0" * 12, keys={"0" * 12: b"secret"}, shape="1" * 12)

Rows = frozenset[int]
"""What a board holds: a row for every transaction that wrote there, under its id. Boards only grow, so that no two
moments of one are alike unless nothing was committed there in between. A client that missed a TRUNCATE lacks its
row."""


class World:
    """A little Postgres with boards in it, and every moment of them."""

    def __init__(self) -> None:
        self.postgres = LittlePostgres()
        self.between_batches = True
        """Else a part of a batch was published, and there is no telling what clients hold."""
        self.moments: dict[str, list[Rows]] = {board: [frozenset()] for board in ("a", "b")}
        self._entries: dict[int, list[Entry]] = {}
        self._last_entry: dict[int, int] = {}
        self._written = 0

    def write(self, xid: int, board: str | None) -> None:
        """Insert a row, or with no board: truncate the table."""
        entries = self._entries.setdefault(xid, [])
        if board not in entries:
            entries.append(board)
        self._written += 1
        self._last_entry[xid] = self._written

    def may_write(self, xid: int) -> bool:
        """Whether nobody else has the table to itself."""
        return all(None not in self._entries.get(other, ()) for other in self.postgres.running if other != xid)

    def may_truncate(self, xid: int) -> bool:
        """Whether nobody else has written and goes on."""
        return all(other not in self._entries for other in self.postgres.running if other != xid)

    def commit(self, xid: int) -> None:
        self.postgres.commit(xid)
        for board in self.moments:
            if {board, None} & set(self._entries.get(xid, ())):
                self.moments[board].append(self.moments[board][-1] | {xid})

    def transactions(self, xids: set[int]) -> list[Transaction]:
        """Return what these transactions did, in the order of their last entries."""
        ordered = sorted(xids & self._entries.keys(), key=self._last_entry.__getitem__)
        return [self._transaction(xid) for xid in ordered]

    def _transaction(self, xid: int) -> Transaction:
        images = [insertion(xid, board) for board in self._entries[xid] if board is not None]
        return Transaction(xid, images, "truncate" if None in self._entries[xid] else None)


Entry = str | None


def insertion(xid: int, board: str) -> Image:
    [image] = tasks.images(tasks.inserted(tasks.row(xid, board)), boards={board})
    return image


def data_of(board: str, rows: Rows) -> bytes:
    return json.dumps({"board": board, "rows": sorted(rows)}).encode()


@dataclass
class Held:
    """What a client holds of a board that it follows."""

    rows: Rows = frozenset()
    synced: bool = False
    """It has had a board.sync since it asked last, or what it missed."""
    whole: bool = True
    """It has had the end of the last batch."""
    marks: list[tuple[str, Rows]] = field(default_factory=list)
    """Every cursor that it was sent, and what it held then."""
    waits: set[int] = field(default_factory=set)
    """The transactions that it waits for."""


@dataclass(eq=False)
class Client:
    """A subscriber that takes no delivery that would lead it anywhere but forward to a moment of its boards."""

    world: World
    resumable: bool = False
    ready: bool = True
    frame: Frame = field(default=frame)
    address: str = ""
    room: int | None = None
    """So many deliveries make it not ready, if any number does."""
    boards: dict[str, Held] = field(default_factory=dict)

    def send(self, frames: bytes) -> None:
        assert frames, "there was nothing to send"
        if frames.startswith(b'{"type":"included"'):
            self._include(**json.loads(frames)["data"])
            return
        assert self.ready, "it was not ready"
        for line in frames.splitlines():
            board, rows, cursor = self._read(json.loads(line))
            assert board in self.boards, "it does not follow this board"
            assert rows >= self.boards[board].rows, "the moment moved backwards"
            self.boards[board].rows = rows
            if cursor is not None:
                assert self.world.between_batches, "a cursor stands between batches"
                assert rows in self.world.moments[board], "there was no such moment to resume from"
                self.boards[board].marks.append((cursor, rows))
        if self.world.between_batches:
            assert self.boards[board].rows in self.world.moments[board], "there was no such moment"
        if self.room is not None:
            self.room -= 1
            self.ready = self.room > 0

    def _include(self, boardId: str, xid: str) -> None:  # noqa: N803  # as in the message
        held = self.boards[boardId]
        held.waits.remove(int(xid))
        assert held.synced, "the board was to be sent first"
        assert int(xid) not in self.world.postgres.running, "it is not over"
        wrote_here = any(int(xid) in rows for rows in self.world.moments[boardId])
        assert int(xid) in held.rows or not wrote_here, "what it changed was not sent"

    def _read(self, message: dict[str, object]) -> tuple[str, Rows, str | None]:
        match message:
            case {"type": "board.sync", "data": {"board": str(board), "rows": list(rows)}}:
                self.boards[board].synced = self.boards[board].whole = True
                assert ("cursor" in message) == self.resumable
                return board, frozenset(rows), message.get("cursor")  # type: ignore[return-value]
            case {"type": "batch", "boardId": str(board), "data": list(messages)}:
                assert self.resumable, "it did not ask to resume"
                cursor = message.get("cursor")
                assert (cursor is not None) == self.world.between_batches, "each batch ends with a cursor"
                self.boards[board].synced = True
                self.boards[board].whole = cursor is not None
                held = self.boards[board].rows
                for each in messages:
                    held |= {self._created(each, board, held)}
                return board, held, cursor  # type: ignore[return-value]
            case {"type": "task.created", "data": {"boardId": str(board)}}:
                assert not self.resumable, "it asked for batches"
                assert self.boards[board].synced, "the board was to be sent first"
                held = self.boards[board].rows
                return board, held | {self._created(message, board, held)}, None
        raise AssertionError(message)

    def _created(self, message: dict[str, object], board: str, rows: Rows) -> int:
        match message:
            case {"type": "task.created", "data": {"id": int(row), "boardId": its_board}}:
                assert its_board == board
                assert row not in rows, "it came twice"
                return row
        raise AssertionError(message)


@dataclass
class Read:
    """A board that is being read: the snapshot and the rows, once they were taken."""

    board: str
    taken: tuple[Snapshot, Rows] | None = None


class Play:
    """A hub, a feed that reads the journal and boards side by side, and two clients.

    A number decides on the details of each step.
    """

    def __init__(self) -> None:
        self.world = World()
        self.wanted: deque[str] = deque()
        self.changes_wanted = False
        self.hub = Hub(self)
        self.clients = [Client(self.world), Client(self.world, resumable=True)]
        self.position = self.world.postgres.snapshot()
        self.published: set[int] = set()
        self.poll: tuple[Snapshot, set[int]] | None = None
        self.parts: deque[Transaction] | None = None
        self.read: Read | None = None
        self.resume: Resume | None = None
        self.missed: tuple[Snapshot, set[int]] | None = None
        self.hub.begin(EPOCH, self.position, None)

    # What the hub asks for

    def ask(self, board: str, by: object = None) -> None:  # noqa: ARG002  # the protocol's
        self.wanted.append(board)

    def ask_changes(self, resuming: Resuming) -> None:
        assert resuming is self.hub
        self.changes_wanted = True

    # Postgres

    def begin_and_commit(self, number: int) -> None:
        xid = self.world.postgres.begin()
        self._write(xid, number)
        self.world.commit(xid)

    def begin(self, number: int) -> None:
        if len(self.world.postgres.running) < 3:
            self._write(self.world.postgres.begin(), number)

    def write(self, number: int) -> None:
        if running := self.world.postgres.running:
            self._write(running[number % len(running)], number)

    def _write(self, xid: int, number: int) -> None:
        if self.world.may_write(xid):
            self.world.write(xid, BOARDS[number % 3])
            if number == 11:
                self.world.write(xid, "b")

    def truncate_and_commit(self, _number: int) -> None:
        xid = self.world.postgres.begin()
        if self.world.may_truncate(xid):
            self.world.write(xid, None)
        self.world.commit(xid)

    def end(self, number: int) -> None:
        if running := self.world.postgres.running:
            end = self.world.postgres.roll_back if number == 11 else self.world.commit
            end(running[number % len(running)])

    # The feed

    def read_journal(self, number: int) -> None:
        """Poll for what is new, or publish what was found, all of it or in parts."""
        if self.poll is None:
            self.poll = self.world.postgres.snapshot(), set(self.world.postgres.committed)
            return
        if self.parts is None:
            new = self.world.transactions(self.poll[1] - self.published)
            self.parts = deque(part for transaction in new for part in in_parts(transaction))
        if self.parts and number % 2:
            self.world.between_batches = False
            self.hub.publish([self.parts.popleft()], None)
        else:
            (self.position, self.published), self.poll = self.poll, None
            rest, self.parts = list(self.parts), None
            if not self.world.between_batches and rest:
                self.hub.publish(rest, None)
                rest = []
            self.world.between_batches = True
            self.hub.publish(together(rest), self.position)

    def read_boards(self, _number: int) -> None:
        """Begin to read a board, or see what is on it, or hand it over."""
        if self.read is None:
            if self.wanted:
                board = self.wanted.popleft()
                self.read = Read(board) if self.hub.begin_read(board) else None
        elif self.read.taken is None:
            self.read.taken = self.world.postgres.snapshot(), self.world.moments[self.read.board][-1]
        else:
            board, (snapshot, rows), self.read = self.read.board, self.read.taken, None
            self.hub.synced(board, snapshot, data_of(board, rows))

    def read_missed(self, _number: int) -> None:
        """Begin to read the journal for those who resume, or see what is in it, or hand it over."""
        if self.resume is None:
            if self.changes_wanted:
                self.changes_wanted = False
                self.resume = self.hub.begin_resume()
        elif self.missed is None:
            self.missed = self.world.postgres.snapshot(), set(self.world.postgres.committed)
        else:
            oldest, (now, visible) = self.resume.oldest, self.missed
            self.resume = self.missed = None
            unseen = {xid for xid in visible if not oldest.sees(xid)}
            self.hub.resumed(now, self.world.transactions(unseen), Snapshot.parse("3:3:"))

    def reconnect(self, number: int) -> None:
        cut_short = not self.world.between_batches
        self.poll = self.parts = None
        self.world.between_batches = True
        if self.resume is not None:
            self.resume = self.missed = None
            self.hub.abandon_resume()
        if self.read is not None:
            board, self.read = self.read.board, None
            self.hub.abandon_read(board)
        if number % 2 or cut_short:
            self.position, self.published = self.world.postgres.snapshot(), set(self.world.postgres.committed)
            self.hub.begin(EPOCH, self.position, "journal_pruned")
        else:
            self.hub.begin(EPOCH, self.position, None)

    def refresh(self, _number: int) -> None:
        if self.world.between_batches:
            self.hub.refresh()

    # The clients

    def subscribe(self, number: int) -> None:
        """Subscribe; a resumable client from the last cursor that it has, or an earlier one, or from none."""
        client, board = self.clients[number % 2], BOARDS[number % 3]
        held = client.boards.setdefault(board, Held())
        held.synced = False
        cursor = None
        if client.resumable and held.marks and number < 9:
            cursor, held.rows = held.marks[-1 if number < 6 else 0]
        self.hub.subscribe(client, board, resumable=client.resumable, cursor=cursor)

    def unsubscribe(self, number: int) -> None:
        client, board = self.clients[number % 2], BOARDS[number % 3]
        client.boards.pop(board, None)
        self.hub.unsubscribe(client, board)

    def wait(self, number: int) -> None:
        """Wait for a transaction: one that is over, that runs, or that has not begun."""
        client, board = self.clients[number % 2], BOARDS[number % 3]
        if held := client.boards.get(board):
            xid = 10 + (self.world.postgres.ended + number) // 2
            held.waits.add(xid)
            self.hub.includes(client, board, xid)

    def leave(self, number: int) -> None:
        client = self.clients[number % 2]
        self.hub.leave(client)
        self.clients[number % 2] = Client(self.world, resumable=client.resumable)
        client.boards.clear()

    def come_back(self, number: int) -> None:
        """Lose the connection, and come back on another with what was held and the last cursor."""
        client = self.clients[1]
        self.hub.leave(client)
        self.clients[1] = back = Client(self.world, resumable=True)
        for board, held in client.boards.items():
            back.boards[board] = Held(marks=held.marks[-3:])
            cursor = None
            if held.marks:
                cursor, back.boards[board].rows = held.marks[-1 - number % min(3, len(held.marks))]
            self.hub.subscribe(back, board, resumable=True, cursor=cursor)

    def become_slow(self, number: int) -> None:
        client = self.clients[number % 2]
        client.room = number // 3
        client.ready = client.room > 0

    def catch_up(self, number: int) -> None:
        client = self.clients[number % 2]
        client.room = None
        client.ready = True
        self.hub.caught_up(client)

    # The end

    def settle(self) -> None:
        """Let all catch up: then every subscriber has the board as it is."""
        for number in range(len(self.clients)):
            self.catch_up(number)
        for _ in range(2 if self.poll else 1):
            self.read_journal(1)
            while self.poll:
                self.read_journal(1 if self.parts is None or self.parts else 0)
        for _ in range(1_000):
            if self.read is None and not self.wanted and self.resume is None and not self.changes_wanted:
                break
            self.read_boards(0)
            self.read_missed(0)
        else:
            raise AssertionError("boards are read for ever")
        for client in self.clients:
            for board, held in client.boards.items():
                assert held.synced
                assert held.whole
                assert held.rows == self.world.moments[board][-1]
                assert not any(map(self.position.sees, held.waits)), "it waits for what is over"


BOARDS = ("a", "a", "b")  # most of what happens is on one of two

WHAT_HAPPENS = {
    Play.begin_and_commit: 6,
    Play.begin: 2,
    Play.write: 1,
    Play.end: 3,
    Play.truncate_and_commit: 1,
    Play.read_journal: 8,
    Play.read_boards: 10,
    Play.read_missed: 6,
    Play.refresh: 1,
    Play.reconnect: 1,
    Play.come_back: 3,
    Play.subscribe: 5,
    Play.wait: 3,
    Play.unsubscribe: 1,
    Play.leave: 1,
    Play.become_slow: 1,
    Play.catch_up: 2,
}


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([step for step, weight in WHAT_HAPPENS.items() for _ in range(weight)]),
            st.integers(0, 11),
        ),
        min_size=40,
        max_size=120,
    )
)
def test_every_delivery_leads_forward_to_a_moment_of_the_board_and_the_last_to_its_last(
    steps: list[tuple[Callable[[Play, int], None], int]],
) -> None:
    play = Play()
    for step, number in steps:
        step(play, number)
    play.settle()


def in_parts(transaction: Transaction) -> list[Transaction]:
    """Return a transaction row by row."""
    if transaction.sync:
        return [transaction]
    return [Transaction(transaction.xid, [image]) for image in transaction.images]


def together(parts: Sequence[Transaction]) -> list[Transaction]:
    """Put together again what was taken apart."""
    whole: dict[int, Transaction] = {}
    for part in parts:
        into = whole.setdefault(part.xid, Transaction(part.xid, sync=part.sync))
        into.images += part.images
    return list(whole.values())


# The rules one by one

SYNC = b'<{"type":"board.sync","data":sync}>'


@dataclass(eq=False)
class Listener:
    """A subscriber that keeps what it is sent."""

    ready: bool = True
    frame: Frame = field(default=bracketed)
    address: str = ""
    sent: list[bytes] = field(default_factory=list)

    def send(self, frames: bytes) -> None:
        self.sent.append(frames)


@dataclass
class Scene:
    """A hub, and what it asked for."""

    asked: list[str] = field(default_factory=list)
    asked_for_changes: int = 0

    def __post_init__(self) -> None:
        self.hub = Hub(self)
        self.hub.begin(EPOCH, Snapshot.parse("10:10:"), None)

    def ask(self, board: str, by: object = None) -> None:  # noqa: ARG002  # the protocol's
        self.asked.append(board)

    def ask_changes(self, resuming: Resuming) -> None:
        assert resuming is self.hub
        self.asked_for_changes += 1

    def read(self, board: str, snapshot: str) -> None:
        """Read a board that was asked for."""
        self.asked.remove(board)
        assert self.hub.begin_read(board)
        self.hub.synced(board, Snapshot.parse(snapshot), b"sync")

    def live(self, *boards: str) -> Listener:
        """Return a subscriber that has these boards as of the feed's first position."""
        listener = Listener()
        for board in boards:
            self.hub.subscribe(listener, board)
            self.read(board, "10:10:")
        listener.sent.clear()
        return listener


def framed(*xids: int, board: str) -> bytes:
    """Return the frames of what transactions inserted on a board, one row each."""
    return b"".join(
        f'<{{"type":"task.created","data":{{"id":{xid},"boardId":"{board}","lane":"todo"}}}}>'.encode()
        for xid in xids
    )


def wrote(xid: int, *boards: str) -> Transaction:
    return Transaction(xid, [insertion(xid, board) for board in boards])


def truncated(xid: int) -> Transaction:
    return Transaction(xid, sync="truncate")


def test_a_subscriber_gets_the_board_framed() -> None:
    scene, ann = Scene(), Listener()
    scene.hub.subscribe(ann, "a")
    assert (scene.asked, ann.sent) == (["a"], [])
    scene.read("a", "10:10:")
    assert (scene.asked, ann.sent) == ([], [SYNC])


def test_a_batch_is_one_delivery() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("a")
    scene.hub.publish([wrote(10, "a"), wrote(11, "a"), wrote(12, "a")], Snapshot.parse("13:13:"))
    assert ann.sent == bob.sent == [framed(10, 11, 12, board="a")]
    assert ann.sent[0] is bob.sent[0]


def test_a_subscriber_that_came_later_shares_the_delivery_of_those_before() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), Listener()
    scene.hub.publish([wrote(10, "a")], Snapshot.parse("11:11:"))
    scene.hub.subscribe(bob, "a")
    scene.read("a", "11:11:")
    scene.hub.publish([wrote(11, "a"), wrote(12, "a")], Snapshot.parse("13:13:"))
    assert bob.sent == [SYNC, framed(11, 12, board="a")]
    assert ann.sent[-1] is bob.sent[-1]


def test_a_subscriber_gets_its_own_boards_alone() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("a", "b")
    scene.hub.publish([wrote(10, "b", "c"), wrote(11, "a")], Snapshot.parse("12:12:"))
    assert ann.sent == [framed(11, board="a")]
    assert sorted(bob.sent) == [framed(10, board="b"), framed(11, board="a")]


def test_many_that_subscribe_cost_one_read() -> None:
    scene = Scene()
    crowd = [Listener() for _ in range(100)]
    for one in crowd:
        scene.hub.subscribe(one, "a")
    assert scene.asked == ["a"]
    scene.read("a", "10:10:")
    assert all(one.sent == [SYNC] for one in crowd)


def test_a_subscriber_that_subscribes_during_a_read_is_asked_for_when_it_is_over() -> None:
    scene, ann, bob = Scene(), Listener(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.asked.clear()
    scene.hub.begin_read("a")
    scene.hub.subscribe(bob, "a")
    assert scene.asked == []
    scene.hub.synced("a", Snapshot.parse("10:10:"), b"sync")
    assert (scene.asked, ann.sent, bob.sent) == (["a"], [SYNC], [])


def test_a_failed_read_is_asked_for_again() -> None:
    scene, ann = Scene(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.asked.clear()
    scene.hub.begin_read("a")
    scene.hub.abandon_read("a")
    assert scene.asked == ["a"]
    scene.read("a", "10:10:")
    assert ann.sent == [SYNC]


def test_a_board_that_is_given_up_before_its_read_begins_is_asked_for_again() -> None:
    """An edge waits for a board's changes before it reads it, and its connection may end meanwhile."""
    scene, ann = Scene(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.asked.clear()
    scene.hub.abandon_read("a")
    assert scene.asked == ["a"]
    scene.read("a", "10:10:")
    assert ann.sent == [SYNC]


def test_a_board_that_was_given_up_when_all_had_left_is_asked_for_when_it_is_followed_again() -> None:
    """Before its read began, or during it."""
    scene, ann, bob = Scene(), Listener(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.hub.leave(ann)
    scene.asked.clear()
    scene.hub.abandon_read("a")
    scene.hub.subscribe(bob, "a")
    assert scene.asked == ["a"]
    scene.read("a", "10:10:")
    assert bob.sent == [SYNC]


def test_boards_that_had_to_wait_are_asked_for_when_the_last_one_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.hub.requests.MAX_REQUESTS", 1)
    scene, ann, bob = Scene(), Listener(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.hub.subscribe(bob, "b")
    assert scene.asked == ["a"]
    scene.hub.leave(ann)
    scene.hub.abandon_read("a")
    assert scene.asked == ["a", "b"]


def test_amid_a_batch_a_board_is_not_handed_over_but_read_again() -> None:
    """A session may end there: what it published of the batch is no committed moment, and has no cursor."""
    scene, ann, bob = Scene(), Listener(), Listener()
    scene.hub.subscribe(ann, "a", resumable=True)
    scene.hub.subscribe(bob, "a", resumable=True, cursor=cursor_at("9:9:"))
    scene.asked.clear()
    scene.hub.begin_read("a")
    resume = scene.hub.begin_resume()
    assert resume is not None
    scene.hub.publish(transactions(10), None)
    scene.hub.synced("a", Snapshot.parse("10:10:"), b"{}")
    scene.hub.resumed(Snapshot.parse("10:10:"), [], Snapshot.parse("3:3:"))
    assert (ann.sent, bob.sent) == ([], [])
    assert scene.asked == ["a"]
    scene.hub.begin(EPOCH, Snapshot.parse("12:12:"), None)
    scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("12:12:"), b"{}")
    resumed(scene, "12:12:", 10)
    assert [batch["cursor"] for batch in (*batches(ann), *batches(bob))] == [cursor_at("12:12:")] * 2
    assert [change["data"]["id"] for change in batches(bob)[0]["data"]] == [10]


def test_a_board_that_cannot_be_read_is_reported_once_to_each_and_read_again() -> None:
    """Subscribers stay; new ones learn of it with the next read that fails. Once it was read, it is news again."""
    scene, ann, bob = Scene(), Listener(), Listener()
    error = protocol.error("board_unavailable", "not now", "a")
    said = b"<" + error.json + b">"
    scene.hub.subscribe(ann, "a")
    scene.asked.clear()
    for late in (None, bob):
        scene.hub.begin_read("a")
        if late:
            scene.hub.subscribe(late, "a")
        scene.hub.fail_read("a", error)
    assert (scene.asked, ann.sent, bob.sent) == (["a", "a"], [said], [])
    scene.hub.begin_read("a")
    scene.hub.fail_read("a", error)
    assert (ann.sent, bob.sent) == ([said], [said])
    scene.read("a", "10:10:")
    assert ann.sent[1:] == bob.sent[1:] == [SYNC]
    scene.hub.publish([truncated(10)], Snapshot.parse("11:11:"))
    scene.hub.begin_read("a")
    scene.hub.fail_read("a", error)
    assert ann.sent[2:] == bob.sent[2:] == [said]


def test_a_truncate_sends_every_subscriber_each_board_again() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("b")
    scene.hub.publish([truncated(10)], Snapshot.parse("11:11:"))
    assert sorted(scene.asked) == ["a", "b"]
    for board in ("a", "b"):
        scene.read(board, "11:11:")
    assert ann.sent == bob.sent == [SYNC]


def test_a_resync_sends_every_subscriber_each_board_again() -> None:
    scene = Scene()
    ann, bob = scene.live("a", "b"), scene.live("b")
    scene.hub.begin(EPOCH, Snapshot.parse("20:20:"), "resync")
    assert sorted(scene.asked) == ["a", "b"]
    for board in ("a", "b"):
        scene.read(board, "20:20:")
    assert (ann.sent, bob.sent) == ([SYNC, SYNC], [SYNC])


def test_what_no_history_can_produce_has_its_board_alone_read_again_with_the_reason() -> None:
    scene = Scene()
    ann, bob, eve = scene.live("a"), scene.live("b"), Listener()
    scene.hub.subscribe(eve, "a", resumable=True)
    scene.read("a", "10:10:")
    eve.sent.clear()
    both = Transaction(10, [insertion(10, "a"), insertion(10, "a"), insertion(10, "b")])
    scene.hub.publish([both], Snapshot.parse("11:11:"))
    assert (ann.sent, bob.sent, scene.asked) == ([], [framed(10, board="b")], ["a"])
    scene.read("a", "11:11:")
    assert ann.sent == [SYNC]
    assert b'"reason":"changes_missing"' in eve.sent[0]


def test_what_a_subscriber_holds_before_a_sync_is_a_moment_of_the_board() -> None:
    """Transaction 12 may have committed before 10: a batch is in the order of last entries, not of commits."""
    scene = Scene()
    ann = scene.live("a")
    scene.hub.publish([wrote(10, "a"), Transaction(11, sync="resync"), wrote(12, "a")], Snapshot.parse("13:13:"))
    assert b"".join(ann.sent) in (b"", framed(12, board="a"), framed(10, 12, board="a"))


def test_a_subscriber_that_is_not_ready_is_sent_nothing_until_it_is_and_then_the_board_again() -> None:
    scene = Scene()
    ann, bob = scene.live("a", "b"), scene.live("a")
    ann.ready = False
    scene.hub.publish([wrote(10, "a")], Snapshot.parse("11:11:"))
    scene.hub.publish([wrote(11, "a")], Snapshot.parse("12:12:"))
    assert (ann.sent, scene.asked) == ([], [])
    assert bob.sent == [framed(10, board="a"), framed(11, board="a")]
    ann.ready = True
    scene.hub.caught_up(ann)
    assert scene.asked == ["a"]
    scene.read("a", "12:12:")
    assert ann.sent == [SYNC]


def test_a_subscriber_that_missed_nothing_while_it_was_not_ready_is_sent_nothing_again() -> None:
    scene = Scene()
    ann = scene.live("a", "b")
    ann.ready = False
    scene.hub.publish([wrote(10, "c")], Snapshot.parse("11:11:"))
    ann.ready = True
    scene.hub.caught_up(ann)
    assert scene.asked == []
    scene.hub.publish([wrote(11, "a")], Snapshot.parse("12:12:"))
    assert ann.sent == [framed(11, board="a")]


def test_a_subscriber_that_unsubscribed_a_board_goes_on_with_the_others() -> None:
    scene = Scene()
    ann = scene.live("a", "b")
    scene.hub.unsubscribe(ann, "a")
    scene.hub.publish([wrote(10, "a", "b")], Snapshot.parse("11:11:"))
    assert ann.sent == [framed(10, board="b")]


def test_a_board_that_is_refused_is_an_error_to_its_subscribers_and_to_nobody_else() -> None:
    """They follow their other boards, and may ask for this one again."""
    scene = Scene()
    ann, bob, cat = scene.live("a", "b"), scene.live("a"), scene.live("b")
    error = protocol.error("invalid_board_id", "too long")
    said = b"<" + error.json + b">"
    scene.hub.refuse("a", error)
    assert (ann.sent, bob.sent, cat.sent) == ([said], [said], [])
    assert "a" not in scene.hub
    scene.hub.publish([wrote(10, "a", "b")], Snapshot.parse("11:11:"))
    assert (ann.sent[1:], bob.sent[1:], cat.sent) == ([framed(10, board="b")], [], [framed(10, board="b")])
    scene.hub.subscribe(bob, "a")
    assert scene.asked == ["a"]


def test_a_subscriber_that_left_is_sent_nothing() -> None:
    scene = Scene()
    ann, bob = scene.live("a", "b"), scene.live("a")
    scene.hub.leave(ann)
    scene.hub.publish([wrote(10, "a", "b")], Snapshot.parse("11:11:"))
    assert (ann.sent, bob.sent) == ([], [framed(10, board="a")])


def test_a_subscriber_that_was_never_there_can_unsubscribe_leave_and_catch_up() -> None:
    scene, ann = Scene(), Listener()
    bob = scene.live("a")
    scene.hub.unsubscribe(ann, "a")
    scene.hub.unsubscribe(bob, "b")
    scene.hub.caught_up(ann)
    scene.hub.leave(ann)
    scene.hub.publish([wrote(10, "a")], Snapshot.parse("11:11:"))
    assert (ann.sent, bob.sent) == ([], [framed(10, board="a")])


def test_a_board_that_all_have_left_is_not_read() -> None:
    scene, ann = Scene(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.hub.unsubscribe(ann, "a")
    assert scene.hub.begin_read("a") is False


def test_a_board_that_all_left_during_its_read_is_not_handed_over() -> None:
    scene, ann, bob = Scene(), Listener(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.hub.begin_read("a")
    scene.hub.leave(ann)
    scene.hub.synced("a", Snapshot.parse("10:10:"), b"sync")
    scene.hub.abandon_read("a")
    scene.hub.subscribe(bob, "a")
    assert (ann.sent, bob.sent) == ([], [])


def test_a_board_that_nobody_waits_for_is_not_read() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), Listener()
    scene.hub.subscribe(bob, "a")
    scene.hub.leave(bob)
    assert scene.hub.begin_read("a") is False
    scene.hub.publish([wrote(10, "a")], Snapshot.parse("11:11:"))
    assert ann.sent == [framed(10, board="a")]


def test_a_subscriber_that_subscribes_and_unsubscribes_many_times_costs_one_read() -> None:
    scene, ann = Scene(), Listener()
    for _ in range(100):
        scene.hub.subscribe(ann, "a")
        scene.hub.unsubscribe(ann, "a")
    scene.hub.subscribe(ann, "a")
    reads = 0
    while scene.asked:
        if scene.hub.begin_read(scene.asked.pop(0)):
            reads += 1
            scene.hub.synced("a", Snapshot.parse("10:10:"), b"sync")
    assert (reads, ann.sent) == (1, [SYNC])


def test_what_is_broadcast_is_logged_with_its_type_and_how_many_received_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    slow, _, _ = scene.live("a"), scene.live("a"), scene.live("a")
    slow.ready = False
    # A logger of its own, for the module's may be bound already to where another test sent it.
    structlog.reset_defaults()
    monkeypatch.setattr(recipients, "log", structlog.get_logger())
    with structlog.testing.capture_logs() as logged:
        scene.hub.publish([wrote(10, "a"), wrote(11, "a")], Snapshot.parse("12:12:"))
    assert logged == [
        {
            "event": "websocket.broadcast",
            "log_level": "debug",
            "type": "task.created",
            "recipients": 2,
            "board": "a",
            "messages": 2,
        }
    ]


# Resuming


def cursor_at(snapshot: str, board: str = "a", epoch: Epoch = EPOCH) -> str:
    return epoch.seal(board, Snapshot.parse(snapshot))


def batches(listener: Listener) -> list[dict[str, Any]]:
    """Return all that a resumable listener was sent, as JSON."""
    return [json.loads(text) for text in b"".join(listener.sent).decode().strip("<>").split("><") if text]


def transactions(*xids: int, board: str = "a") -> list[Transaction]:
    return [Transaction(xid, [insertion(xid, board)]) for xid in xids]


def resumed(scene: Scene, now: str, *xids: int, horizon: str = "3:3:") -> None:
    """Read the journal for those who resume."""
    resume = scene.hub.begin_resume()
    assert resume is not None
    unseen = [xid for xid in xids if not resume.oldest.sees(xid)]
    scene.hub.resumed(Snapshot.parse(now), transactions(*unseen), Snapshot.parse(horizon))


def test_ten_thousand_that_resume_cost_one_read_and_bytes_once_per_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    batch = protocol.batch

    def counted(board: str, cursor: str, messages: Sequence[protocol.Message]) -> list[protocol.Message]:
        made.append(board)
        return batch(board, cursor, messages)

    monkeypatch.setattr(protocol, "batch", counted)
    scene = Scene()
    crowd = [Listener() for _ in range(10_000)]
    for number, one in enumerate(crowd):
        scene.hub.subscribe(one, "a", resumable=True, cursor=cursor_at(f"{5 + number % 5}:{5 + number % 5}:"))
    resumed(scene, "10:10:", 6, 8)
    assert scene.hub.begin_resume() is None
    assert len(made) == 5
    for number, one in enumerate(crowd):
        [message] = batches(one)
        assert [each["data"]["id"] for each in message["data"]] == [xid for xid in (6, 8) if xid >= 5 + number % 5]
        assert message["cursor"] == cursor_at("10:10:")


def test_a_subscriber_that_resumes_on_any_of_many_boards_is_served_by_one_read_from_the_oldest_cursor_on() -> None:
    scene = Scene()
    ann, bob = Listener(), Listener()
    scene.hub.subscribe(ann, "a", resumable=True, cursor=cursor_at("9:9:", "a"))
    scene.hub.subscribe(bob, "b", resumable=True, cursor=cursor_at("5:8:6", "b"))
    resume = scene.hub.begin_resume()
    assert resume == Resume(Snapshot.parse("5:8:6"), Snapshot.parse("9:9:"), frozenset({"a", "b"}))
    found = [*transactions(6, board="b"), *transactions(8, 9)]
    scene.hub.resumed(Snapshot.parse("10:10:"), found, Snapshot.parse("3:3:"))
    assert [each["data"]["id"] for each in batches(ann)[0]["data"]] == [9]
    assert [each["data"]["id"] for each in batches(bob)[0]["data"]] == [6]


def test_a_subscriber_that_comes_before_the_feed_knows_the_epoch_resumes_when_it_does() -> None:
    scene = Scene()
    scene.hub = Hub(scene)
    ann = Listener()
    scene.hub.subscribe(ann, "a", resumable=True, cursor=cursor_at("9:9:"))
    assert scene.hub.begin_resume() is None
    scene.hub.begin(EPOCH, Snapshot.parse("10:10:"), None)
    resumed(scene, "10:10:", 9)
    assert [each["data"]["id"] for each in batches(ann)[0]["data"]] == [9]


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        ("", "cursor_invalid"),
        ("no cursor", "cursor_invalid"),
        (cursor_at("9:9:", "b"), "cursor_invalid"),
        (cursor_at("9:9:", epoch=replace(EPOCH, keys={EPOCH.run: b"guessed"})), "cursor_invalid"),
        (cursor_at("9:9:", epoch=Epoch("2" * 12, {"2" * 12: b"secret"}, EPOCH.shape)), "epoch_changed"),
        (cursor_at("9:9:", epoch=replace(EPOCH, shape="2" * 12)), "schema_changed"),
    ],
)
def test_cursor_that_is_not_good_is_answered_by_the_board_and_the_reason(cursor: str, reason: str) -> None:
    scene = Scene()
    ann = Listener()
    scene.hub.subscribe(ann, "a", resumable=True, cursor=cursor)
    assert scene.hub.begin_resume() is None
    scene.asked.remove("a")
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("10:10:"), b"{}")
    assert batches(ann) == [
        {"type": "board.sync", "boardId": "a", "cursor": cursor_at("10:10:"), "reason": reason, "data": {}}
    ]


@pytest.mark.parametrize(
    ("now", "found", "horizon", "reason"),
    [
        ("10:10:", [], "9:9:", "journal_pruned"),
        ("10:10:", None, "3:3:", "too_much_missed"),
        ("7:7:", [], "3:3:", "epoch_changed"),
        ("10:10:", [Transaction(9, sync="truncate")], "3:3:", "truncate"),
    ],
)
def test_what_cannot_be_resumed_is_answered_by_the_board_and_the_reason(
    now: str, found: list[Transaction] | None, horizon: str, reason: str
) -> None:
    scene = Scene()
    ann = Listener()
    scene.hub.subscribe(ann, "a", resumable=True, cursor=cursor_at("8:8:"))
    assert scene.hub.begin_resume() is not None
    scene.hub.resumed(Snapshot.parse(now), found, Snapshot.parse(horizon))
    scene.asked.remove("a")
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("10:10:"), b"{}")
    assert [message["reason"] for message in batches(ann)] == [reason]


def test_a_subscriber_that_fell_behind_is_informed_of_it() -> None:
    scene = Scene()
    ann = Listener()
    scene.hub.subscribe(ann, "a", resumable=True)
    scene.asked.remove("a")
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("10:10:"), b"{}")
    ann.ready = False
    scene.hub.publish(transactions(10), Snapshot.parse("11:11:"))
    ann.ready = True
    scene.hub.caught_up(ann)
    scene.asked.remove("a")
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("11:11:"), b"{}")
    assert [message.get("reason") for message in batches(ann)] == [None, "fell_behind"]


@pytest.mark.parametrize("left_between", [False, True])
def test_subscribing_again_on_one_connection_brings_the_board_whatever_the_cursor(left_between: bool) -> None:
    scene = Scene()
    ann = Listener()
    scene.hub.subscribe(ann, "a", resumable=True, cursor=cursor_at("9:9:"))
    resumed(scene, "10:10:", 9)
    scene.hub.publish(transactions(10), Snapshot.parse("11:11:"))
    if left_between:
        scene.hub.unsubscribe(ann, "a")
    scene.hub.subscribe(ann, "a", resumable=True, cursor=cursor_at("10:10:"))
    assert scene.hub.begin_resume() is None
    scene.asked.remove("a")
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("11:11:"), b"{}")
    assert [(message["type"], message.get("reason")) for message in batches(ann)] == [
        ("batch", None),
        ("batch", None),
        ("board.sync", "subscribed_again"),
    ]


def test_quiet_boards_get_a_fresh_cursor_and_busy_ones_do_not() -> None:
    scene = Scene()
    quiet, busy, plain = Listener(), Listener(), Listener()
    scene.hub.subscribe(plain, "a")
    for one, board in ((quiet, "a"), (busy, "b")):
        scene.hub.subscribe(one, board, resumable=True)
        scene.asked.remove(board)
        assert scene.hub.begin_read(board)
        scene.hub.synced(board, Snapshot.parse("10:10:"), b"{}")
        one.sent.clear()
    plain.sent.clear()
    scene.hub.refresh()
    scene.hub.publish(transactions(10, board="b"), Snapshot.parse("11:11:"))
    busy.sent.clear()
    scene.hub.refresh()
    assert batches(quiet) == [{"type": "batch", "boardId": "a", "cursor": cursor_at("11:11:"), "data": []}]
    assert (busy.sent, plain.sent) == ([], [])


# Selections


def test_bytes_are_made_once_for_each_selection_and_the_board_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    task_created = protocol.task_created

    def counted(task: protocol.Row) -> protocol.Message:
        made.append(task)
        return task_created(task)

    scene = Scene()
    todo, done = selected(["todo"], []).of("a"), selected(["done"], None).of("a")
    crowd = [Listener() for _ in range(30)]
    for number, one in enumerate(crowd):
        scene.hub.subscribe(one, ["a", todo, done][number % 3])
    assert scene.asked == ["a"]
    scene.asked.clear()
    assert scene.hub.begin_read("a")
    scene.hub.synced(
        "a", Snapshot.parse("10:10:"), b'{"lanes":{"todo":[{"id":1,"title":"T","lane":"todo"}],"done":[]}}'
    )
    monkeypatch.setattr(protocol, "task_created", counted)
    scene.hub.publish([wrote(11, "a")], Snapshot.parse("12:12:"))
    assert len(made) == 2
    whole, todos, dones = ([json.loads(sent[1:-1])["data"] for sent in crowd[number].sent] for number in range(3))
    assert [whole[0], todos[0], dones[0]] == [
        {"lanes": {"todo": [{"id": 1, "title": "T", "lane": "todo"}], "done": []}},
        {"lanes": {"todo": [{"id": 1, "lane": "todo"}]}},
        {"lanes": {"done": []}},
    ]
    assert [each["id"] for each in (*whole[1:], *todos[1:])] == [11, 11]
    assert dones[1:] == []
    for number, one in enumerate(crowd):
        assert one.sent == crowd[number % 3].sent
        scene.hub.leave(one)
    assert "a" not in scene.hub
    assert scene.hub.subscriptions == 0


def test_a_board_is_taken_apart_once_for_all_selections_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients follow one task each, of a board with many."""
    read = Mock(side_effect=selection._decode_key)  # noqa: SLF001  # what costs most
    monkeypatch.setattr(selection, "_decode_key", read)
    scene, crowd = Scene(), [Listener() for _ in range(3)]
    for number, one in enumerate(crowd):
        scene.hub.subscribe(one, selected(tasks=[number]).of("a"))
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("10:10:"), b'{"lanes":{"todo":[{"id":0},{"id":1},{"id":2}]}}')
    assert [json.loads(one.sent[0][1:-1])["data"]["lanes"] for one in crowd] == [
        {"todo": [{"id": number}]} for number in range(3)
    ]
    assert read.call_count == 3


def test_changes_are_taken_apart_once_for_all_selections_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients that follow one task each held up everybody for ten seconds after a large update."""
    read = Mock(side_effect=selection._decode_keyed)  # noqa: SLF001  # what costs most
    monkeypatch.setattr(selection, "_decode_keyed", read)
    scene, crowd = Scene(), [Listener() for _ in range(3)]
    for number, one in enumerate(crowd):
        scene.hub.subscribe(one, selected(tasks=[11 + number]).of("a"))
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("10:10:"), b'{"lanes":{}}')
    scene.hub.publish([wrote(xid, "a") for xid in range(11, 15)], Snapshot.parse("15:15:"))
    assert [one.sent[1:] for one in crowd] == [[framed(xid, board="a")] for xid in range(11, 14)]
    assert read.call_count == 4


def test_of_a_large_board_a_few_selections_are_made_of_each_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty of a board of twenty thousand tasks held up everybody for two seconds; and none waits for ever."""
    monkeypatch.setattr(hub, "SELECTED_BYTES", 30)
    scene, crowd = Scene(), [Listener() for _ in range(6)]
    names = ["a", *(selected([lane], None).of("a") for lane in "vwxyz")]
    for name, one in zip(names, crowd, strict=True):
        scene.hub.subscribe(one, name)
    scene.hub.subscribe(Listener(), names[1])
    for number in range(11, 15):
        assert scene.asked == ["a"]
        scene.asked.clear()
        assert scene.hub.begin_read("a")
        scene.hub.publish([wrote(number, "a")], Snapshot.parse(f"{number + 1}:{number + 1}:"))
        scene.hub.synced("a", Snapshot.parse(f"{number}:{number}:"), b'{"lanes":{"v":[],"w":[]}}')
        assert [len(one.sent) > 0 for one in crowd].count(True) == min(2 * number - 19, 6)
        scene.hub.subscribe(crowd[1], names[1])  # a client that asks again comes last
    assert all(b'"type":"board.sync"' in one.sent[0] for one in crowd)


def test_a_selection_takes_the_place_of_another_and_is_answered_as_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 1)
    scene, ann = Scene(), Listener()
    names = [selected([lane], None).of("a") for lane in ("todo", "done")]
    for name in (names[0], "a", names[1]):
        assert scene.hub.make_room_for(ann, name)
        scene.hub.subscribe(ann, name)
        assert scene.hub.following(ann) == ["a"]
    assert not scene.hub.make_room_for(ann, names[0])
    assert scene.hub.make_room_for(ann, "b")
    scene.hub.includes(ann, "a", 9)
    scene.asked.clear()
    assert scene.hub.begin_read("a")
    scene.hub.synced("a", Snapshot.parse("10:10:"), b'{"lanes":{}}')
    assert [json.loads(sent[1:-1])["type"] for sent in ann.sent] == ["board.sync", "included"]
    scene.hub.unsubscribe(ann, "a")
    assert scene.hub.make_room_for(ann, names[0])
    assert "a" not in scene.hub


@dataclass
class Crowd:
    """Clients that take as many selections, or waits, as they get, each another one."""

    hub: Hub
    what: str
    clients: list[Listener] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def come(self, address: str) -> Listener:
        """Have one more client come, and take all that it gets."""
        one = Listener(address=address)
        self.clients.append(one)
        self.hub.subscribe(one, "a")
        while self._takes(one):
            pass
        return one

    def _takes(self, one: Listener) -> bool:
        number = next(self.numbers)
        if self.what == "waits":
            if has_room := self.hub.make_room_for_wait(one):
                self.hub.includes(one, "a", number)
        else:
            name = selected(tasks=[number]).of(str(number))
            if has_room := self.hub.make_room_for(one, name):
                self.hub.subscribe(one, name)
        return has_room

    def has(self, one: Listener) -> int:
        return self.hub.waits(one) if self.what == "waits" else len(self.hub.following(one)) - 1


@pytest.mark.parametrize("what", ["selections", "waits"])
def test_each_newcomer_gets_a_fair_share_of_what_is_limited(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses alike, and the clients of an address alike; whatever is lost is said, and all is given back."""
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 100)
    monkeypatch.setattr(hub, "MAX_WAITS", 100)
    scene = Scene()
    crowd = Crowd(scene.hub, what)
    first = crowd.come("a")
    assert crowd.has(first) == 100
    for address in "aabbbcd":
        crowd.come(address)
    of_address: Counter[str] = Counter()
    for one in crowd.clients:
        of_address[one.address] += crowd.has(one)
        errors = [json.loads(sent[1:-1])["data"] for sent in one.sent]
        assert {error["code"] for error in errors} <= {f"too_many_{what}"}
        assert len({error.get("xid", error["boardId"]) for error in errors}) == len(errors)
    assert [of_address[address] for address in "abcd"] == [25, 25, 25, 25]
    assert all(8 <= crowd.has(one) <= 9 for one in crowd.clients if one.address in "ab")
    assert len(first.sent) == 100 - crowd.has(first)
    for one in crowd.clients:
        scene.hub.leave(one)
    assert crowd.has(crowd.come("a")) == 100


def test_what_many_share_is_crowded_out_last_and_takes_the_place_of_nothing() -> None:
    shares: Shares[str] = Shares()
    crowd = [Listener(address="a") for _ in range(3)]
    for one in crowd:
        shares.add(one, "todo")
    for thing in ("x", "y", "z"):
        shares.add(crowd[0], thing)
    shares.add(crowd[1], "z")
    other = Listener(address="b")
    for expected in ("y", "x", "z", None):
        assert shares.to_crowd_out(other) == expected
        for holder in shares.holders(expected or ""):
            shares.remove(holder, expected or "")
    shares.add(other, "todo")
    assert shares.holders("todo") == [*shares.holders("todo")[:3], other]
    for holder in shares.holders("todo"):
        shares.remove(holder, "todo")
    assert not shares


class Counted:
    """A subscriber that counts how often it is searched for."""

    address = "a"
    ready, frame = True, staticmethod(bracketed)
    searches = 0

    def __hash__(self) -> int:
        Counted.searches += 1
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def send(self, frames: bytes) -> None:
        raise AssertionError(frames)


def test_who_has_its_share_is_refused_without_counting_what_everybody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: Shares[int] = Shares()
    crowd = [Counted() for _ in range(3)]
    for number in range(300):
        shares.add(crowd[number % 3], number)
    monkeypatch.setattr(Counted, "searches", 0)
    assert shares.to_crowd_out(crowd[0]) is None
    assert Counted.searches <= 10


# Waiting for transactions


def included(listener: Listener) -> list[tuple[str, str]]:
    """Return which transactions a listener was answered about, and how; nothing else came."""
    answers = [json.loads(sent[1:-1]) for sent in listener.sent]
    listener.sent.clear()
    return [(answer["data"]["xid"], answer["data"].get("code", answer["type"])) for answer in answers]


def test_a_transaction_is_included_when_the_position_is_past_it_whatever_it_did() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("b")
    for xid in (9, 11, 12, 13):
        scene.hub.includes(ann, "a", xid)
    scene.hub.includes(bob, "b", 11)
    assert included(ann) == [("9", "included")]
    scene.hub.publish([], Snapshot.parse("11:13:11"))
    assert included(ann) == [("12", "included")]
    scene.hub.publish([wrote(11, "a")], Snapshot.parse("13:13:"))
    assert ann.sent.pop(0) == framed(11, board="a")
    assert (included(ann), included(bob)) == ([("11", "included")], [("11", "included")])
    assert (scene.hub.waits(ann), scene.hub.waits(bob)) == (1, 0)


def test_nothing_is_included_in_a_board_that_was_not_sent() -> None:
    scene, ann = Scene(), Listener()
    scene.hub.includes(ann, "a", 9)
    scene.hub.subscribe(ann, "a")
    scene.hub.publish([], Snapshot.parse("11:11:"))
    scene.hub.includes(ann, "a", 10)
    assert ann.sent == []
    scene.read("a", "10:10:")
    assert ann.sent.pop(0) == SYNC
    assert sorted(included(ann)) == [("10", "included"), ("9", "included")]


def test_nothing_is_included_amid_a_batch() -> None:
    scene = Scene()
    ann = scene.live("a")
    scene.hub.includes(ann, "a", 11)
    scene.hub.publish([wrote(11, "a")], None)
    assert ann.sent == [framed(11, board="a")]
    scene.hub.publish([], Snapshot.parse("12:12:"))
    assert ann.sent.pop(0) == framed(11, board="a")
    assert included(ann) == [("11", "included")]


def test_waits_end_after_two_intervals_at_most_and_when_the_database_is_another() -> None:
    scene = Scene()
    ann = scene.live("a")
    scene.hub.includes(ann, "a", 20)
    scene.hub.expire_waits()
    scene.hub.includes(ann, "a", 20)
    scene.hub.includes(ann, "a", 21)
    assert included(ann) == []
    scene.hub.expire_waits()
    assert included(ann) == [("20", "not_included")]
    scene.hub.begin(EPOCH, Snapshot.parse("11:11:"), "journal_pruned")
    assert included(ann) == []
    other = Epoch("2" * 12, {"2" * 12: b"other"}, EPOCH.shape)
    scene.hub.begin(other, Snapshot.parse("30:30:"), "journal_pruned")
    assert included(ann) == [("21", "not_included")]
    assert scene.hub.waits(ann) == 0


def test_waits_end_without_an_answer_when_the_board_is_left() -> None:
    scene = Scene()
    ann = scene.live("a", "b")
    for board in ("a", "b"):
        scene.hub.includes(ann, board, 11)
    scene.hub.unsubscribe(ann, "a")
    assert scene.hub.waits(ann) == 1
    scene.hub.leave(ann)
    scene.hub.publish([], Snapshot.parse("20:20:"))
    assert (ann.sent, scene.hub.waits(ann)) == ([], 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.sampled_from("ab")), max_size=40), st.data())
def test_waits_remember_nothing_that_has_ended(waited: list[tuple[bool, int, str]], data: st.DataObject) -> None:
    """What is due is what the position sees, in whatever order it was asked; what ends leaves nothing behind."""
    waits, subscribers = Waits(), [Listener(), Listener()]
    for which, xid, board in waited:
        waits.add(subscribers[which], board, xid)
    xmax = data.draw(st.integers(1, 13))
    running = frozenset(data.draw(st.sets(st.integers(1, 12).filter(lambda xid: xid < xmax))) if xmax > 1 else ())
    position = Snapshot(min(running, default=xmax), xmax, running)
    over = {one for one in waited if position.sees(one[1])}
    assert waits.reach(position) == {board for *_, board in over}
    assert waits.reach(position) == set()
    answers = {board: waits.answer(board, lambda _: True) for board in "ab"}
    assert {(one, xid, board) for board in "ab" for xid, each in answers[board].items() for one in each} == {
        (subscribers[which], xid, board) for which, xid, board in over
    }
    assert sum(map(waits.count, subscribers)) == len(set(waited) - over)
    assert len(waits.end()) == len(set(waited) - over)
    assert not any(vars(waits).values())
