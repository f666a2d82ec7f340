"""The hub, between a little Postgres and clients that check every delivery; and its rules one by one."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import hub
from relay.changes import Change, Transaction
from relay.hub import Hub
from relay.protocol import Message
from relay.snapshot import Snapshot
from tests.unit import tasks
from tests.unit.little_postgres import LittlePostgres


@pytest.fixture(scope="module", autouse=True)
def _silence() -> Iterator[None]:
    """Log nothing: a line per broadcast is a lot of lines here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def frame(message: bytes) -> bytes:
    return message + b"\n"


Rows = frozenset[int]
"""What a board holds: a row for every transaction that wrote there, under its id. Boards only grow, so that no two
moments of one are alike unless nothing was committed there in between. Who missed a TRUNCATE lacks its row."""


class World:
    """A little Postgres with boards in it, and every moment of them."""

    def __init__(self) -> None:
        self.postgres = LittlePostgres()
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
        changes = [insertion(xid, board) for board in self._entries[xid] if board is not None]
        return Transaction(xid, changes, "truncate" if None in self._entries[xid] else None)


Entry = str | None


def insertion(xid: int, board: str) -> Change:
    return tasks.inserted(tasks.side(xid, key=xid, board=board))


def sync_of(board: str, rows: Rows) -> Message:
    return Message("board.sync", json.dumps({"type": "board.sync", "board": board, "rows": sorted(rows)}).encode())


@dataclass
class Held:
    """What a client holds of a board that it follows."""

    rows: Rows = frozenset()
    synced: bool = False
    """It has had a board.sync since it asked last."""


@dataclass(eq=False)
class Client:
    """A subscriber that takes no delivery that would lead it anywhere but forward to a moment of its boards."""

    world: World
    ready: bool = True
    room: int | None = None
    """So many deliveries make it not ready, if any number does."""
    boards: dict[str, Held] = field(default_factory=dict)

    def send(self, frames: bytes) -> None:
        assert self.ready, "it was not ready"
        assert frames, "there was nothing to send"
        for line in frames.splitlines():
            board, rows = self._read(json.loads(line))
            assert board in self.boards, "it does not follow this board"
            assert rows >= self.boards[board].rows, "the moment moved backwards"
            self.boards[board].rows = rows
        assert self.boards[board].rows in self.world.moments[board], "there was no such moment"
        if self.room is not None:
            self.room -= 1
            self.ready = self.room > 0

    def _read(self, message: dict[str, object]) -> tuple[str, Rows]:
        match message:
            case {"type": "board.sync", "board": str(board), "rows": list(rows)}:
                self.boards[board].synced = True
                return board, frozenset(rows)
            case {"type": "task.created", "data": {"id": int(row), "boardId": str(board)}}:
                assert self.boards[board].synced, "the board was to be sent first"
                assert row not in self.boards[board].rows, "it came twice"
                return board, self.boards[board].rows | {row}
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
        self.hub = Hub(ask=self.wanted.append, frame=frame)
        self.clients = [Client(self.world) for _ in range(2)]
        self.position = self.world.postgres.snapshot()
        self.published: set[int] = set()
        self.look: tuple[Snapshot, set[int]] | None = None
        self.read: Read | None = None
        self.hub.resync(self.position)

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

    def read_journal(self, _number: int) -> None:
        """Look what is new, or publish what was found."""
        if self.look is None:
            self.look = self.world.postgres.snapshot(), set(self.world.postgres.committed)
        else:
            (self.position, visible), self.look = self.look, None
            new, self.published = visible - self.published, visible
            self.hub.publish(self.world.transactions(new), self.position)

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
            self.hub.synced(board, snapshot, sync_of(board, rows))

    def reconnect(self, number: int) -> None:
        self.look = None
        if self.read is not None:
            board, self.read = self.read.board, None
            self.hub.abandon_read(board)
        if number % 2:
            self.position, self.published = self.world.postgres.snapshot(), set(self.world.postgres.committed)
            self.hub.resync(self.position)

    # The clients

    def subscribe(self, number: int) -> None:
        client, board = self.clients[number % 2], BOARDS[number % 3]
        client.boards.setdefault(board, Held()).synced = False
        self.hub.subscribe(client, board)

    def unsubscribe(self, number: int) -> None:
        client, board = self.clients[number % 2], BOARDS[number % 3]
        client.boards.pop(board, None)
        self.hub.unsubscribe(client, board)

    def leave(self, number: int) -> None:
        client = self.clients[number % 2]
        client.boards.clear()
        self.hub.leave(client)
        self.clients[number % 2] = Client(self.world)

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
        for _ in range(3 if self.look else 2):
            self.read_journal(0)
        for _ in range(1_000):
            if self.read is None and not self.wanted:
                break
            self.read_boards(0)
        else:
            raise AssertionError("boards are read for ever")
        for client in self.clients:
            for board, held in client.boards.items():
                assert held.synced
                assert held.rows == self.world.moments[board][-1]


BOARDS = ("a", "a", "b")  # most of what happens is on one of two

WHAT_HAPPENS = {
    Play.begin_and_commit: 6,
    Play.begin: 2,
    Play.write: 1,
    Play.end: 3,
    Play.truncate_and_commit: 1,
    Play.read_journal: 8,
    Play.read_boards: 10,
    Play.reconnect: 1,
    Play.subscribe: 5,
    Play.unsubscribe: 1,
    Play.leave: 1,
    Play.become_slow: 1,
    Play.catch_up: 2,
}


@settings(max_examples=500, deadline=None)
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


# The rules one by one


@dataclass(eq=False)
class Listener:
    """A subscriber that keeps what it is sent."""

    ready: bool = True
    sent: list[bytes] = field(default_factory=list)

    def send(self, frames: bytes) -> None:
        self.sent.append(frames)


@dataclass
class Scene:
    """A hub, and what it asked for."""

    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub = Hub(ask=self.asked.append, frame=lambda message: b"<" + message + b">")
        self.hub.resync(Snapshot.parse("10:10:"))

    def read(self, board: str, snapshot: str) -> None:
        """Read a board that was asked for."""
        self.asked.remove(board)
        assert self.hub.begin_read(board)
        self.hub.synced(board, Snapshot.parse(snapshot), Message("board.sync", b"sync"))

    def live(self, *boards: str) -> Listener:
        """Return somebody who has these boards as of the feed's first position."""
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
    return Transaction(xid, [replace(insertion(xid, board), watch=n) for n, board in enumerate(boards)])


def truncated(xid: int) -> Transaction:
    return Transaction(xid, sync="truncate")


def test_a_subscriber_gets_the_board_framed() -> None:
    scene, ann = Scene(), Listener()
    scene.hub.subscribe(ann, "a")
    assert (scene.asked, ann.sent) == (["a"], [])
    scene.read("a", "10:10:")
    assert (scene.asked, ann.sent) == ([], [b"<sync>"])


def test_a_batch_is_one_delivery() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("a")
    scene.hub.publish([wrote(10, "a"), wrote(11, "a"), wrote(12, "a")], Snapshot.parse("13:13:"))
    assert ann.sent == bob.sent == [framed(10, 11, 12, board="a")]
    assert ann.sent[0] is bob.sent[0]


def test_who_came_later_shares_the_delivery_of_those_before() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), Listener()
    scene.hub.publish([wrote(10, "a")], Snapshot.parse("11:11:"))
    scene.hub.subscribe(bob, "a")
    scene.read("a", "11:11:")
    scene.hub.publish([wrote(11, "a"), wrote(12, "a")], Snapshot.parse("13:13:"))
    assert bob.sent == [b"<sync>", framed(11, 12, board="a")]
    assert ann.sent[-1] is bob.sent[-1]


def test_a_subscriber_gets_its_own_boards_alone() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("a", "b")
    scene.hub.publish([wrote(10, "b", "c"), wrote(11, "a")], Snapshot.parse("12:12:"))
    assert ann.sent == [framed(11, board="a")]
    assert sorted(bob.sent) == [framed(10, board="b"), framed(11, board="a")]


def test_many_who_subscribe_cost_one_read() -> None:
    scene = Scene()
    crowd = [Listener() for _ in range(100)]
    for one in crowd:
        scene.hub.subscribe(one, "a")
    assert scene.asked == ["a"]
    scene.read("a", "10:10:")
    assert all(one.sent == [b"<sync>"] for one in crowd)


def test_who_subscribes_during_a_read_is_asked_for_when_it_is_over() -> None:
    scene, ann, bob = Scene(), Listener(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.asked.clear()
    scene.hub.begin_read("a")
    scene.hub.subscribe(bob, "a")
    assert scene.asked == []
    scene.hub.synced("a", Snapshot.parse("10:10:"), Message("board.sync", b"sync"))
    assert (scene.asked, ann.sent, bob.sent) == (["a"], [b"<sync>"], [])


def test_a_failed_read_is_asked_for_again() -> None:
    scene, ann = Scene(), Listener()
    scene.hub.subscribe(ann, "a")
    scene.asked.clear()
    scene.hub.begin_read("a")
    scene.hub.abandon_read("a")
    assert scene.asked == ["a"]
    scene.read("a", "10:10:")
    assert ann.sent == [b"<sync>"]


def test_a_truncate_sends_every_subscriber_each_board_again() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), scene.live("b")
    scene.hub.publish([truncated(10)], Snapshot.parse("11:11:"))
    assert sorted(scene.asked) == ["a", "b"]
    for board in ("a", "b"):
        scene.read(board, "11:11:")
    assert ann.sent == bob.sent == [b"<sync>"]


def test_a_resync_sends_every_subscriber_each_board_again() -> None:
    scene = Scene()
    ann, bob = scene.live("a", "b"), scene.live("b")
    scene.hub.resync(Snapshot.parse("20:20:"))
    assert sorted(scene.asked) == ["a", "b"]
    for board in ("a", "b"):
        scene.read(board, "20:20:")
    assert (ann.sent, bob.sent) == ([b"<sync>", b"<sync>"], [b"<sync>"])


def test_what_a_subscriber_holds_before_a_sync_is_a_moment_of_the_board() -> None:
    """Transaction 12 may have committed before 10: a batch is in the order of last entries, not of commits."""
    scene = Scene()
    ann = scene.live("a")
    scene.hub.publish([wrote(10, "a"), Transaction(11, sync="resync"), wrote(12, "a")], Snapshot.parse("13:13:"))
    assert b"".join(ann.sent) in (b"", framed(12, board="a"), framed(10, 12, board="a"))


def test_who_is_not_ready_is_sent_nothing_until_it_is_and_then_the_board_anew() -> None:
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
    assert ann.sent == [b"<sync>"]


def test_who_missed_nothing_while_it_was_not_ready_is_sent_nothing_anew() -> None:
    scene = Scene()
    ann = scene.live("a", "b")
    ann.ready = False
    scene.hub.publish([wrote(10, "c")], Snapshot.parse("11:11:"))
    ann.ready = True
    scene.hub.caught_up(ann)
    assert scene.asked == []
    scene.hub.publish([wrote(11, "a")], Snapshot.parse("12:12:"))
    assert ann.sent == [framed(11, board="a")]


def test_who_unsubscribed_a_board_goes_on_with_the_others() -> None:
    scene = Scene()
    ann = scene.live("a", "b")
    scene.hub.unsubscribe(ann, "a")
    scene.hub.publish([wrote(10, "a", "b")], Snapshot.parse("11:11:"))
    assert ann.sent == [framed(10, board="b")]


def test_who_left_is_sent_nothing() -> None:
    scene = Scene()
    ann, bob = scene.live("a", "b"), scene.live("a")
    scene.hub.leave(ann)
    scene.hub.publish([wrote(10, "a", "b")], Snapshot.parse("11:11:"))
    assert (ann.sent, bob.sent) == ([], [framed(10, board="a")])


def test_who_was_never_there_can_unsubscribe_leave_and_catch_up() -> None:
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
    scene.hub.synced("a", Snapshot.parse("10:10:"), Message("board.sync", b"sync"))
    scene.hub.abandon_read("a")
    scene.hub.subscribe(bob, "a")
    assert (ann.sent, bob.sent) == ([], [])


def test_a_board_that_nobody_waits_for_any_more_is_not_read() -> None:
    scene = Scene()
    ann, bob = scene.live("a"), Listener()
    scene.hub.subscribe(bob, "a")
    scene.hub.leave(bob)
    assert scene.hub.begin_read("a") is False
    scene.hub.publish([wrote(10, "a")], Snapshot.parse("11:11:"))
    assert ann.sent == [framed(10, board="a")]


def test_who_subscribes_and_unsubscribes_many_times_costs_one_read() -> None:
    scene, ann = Scene(), Listener()
    for _ in range(100):
        scene.hub.subscribe(ann, "a")
        scene.hub.unsubscribe(ann, "a")
    scene.hub.subscribe(ann, "a")
    reads = 0
    while scene.asked:
        if scene.hub.begin_read(scene.asked.pop(0)):
            reads += 1
            scene.hub.synced("a", Snapshot.parse("10:10:"), Message("board.sync", b"sync"))
    assert (reads, ann.sent) == (1, [b"<sync>"])


def test_what_is_broadcast_is_logged_with_its_type_and_how_many_received_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    slow, _, _ = scene.live("a"), scene.live("a"), scene.live("a")
    slow.ready = False
    # A logger of its own, for the module's may be bound already to where another test sent it.
    structlog.reset_defaults()
    monkeypatch.setattr(hub, "log", structlog.get_logger())
    with structlog.testing.capture_logs() as logged:
        scene.hub.publish([wrote(10, "a"), wrote(11, "a")], Snapshot.parse("12:12:"))
    assert logged == [
        {
            "event": "websocket.broadcast",
            "log_level": "info",
            "type": "task.created",
            "recipients": 2,
            "board": "a",
            "messages": 2,
        }
    ]
