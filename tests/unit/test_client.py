"""The Python client's core: the conformance cases, and properties of it whatever comes in whatever order."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.client import effects, link
from relay.client.core import Session
from relay.client.following import Following, selection
from relay.client.replica import Backlog, Change, Task, parse

CASES = json.loads((Path(__file__).parents[1] / "conformance" / "cases.json").read_text())

NAMES = {"fromLane": "from_lane", "toLane": "to_lane", "boardId": "board_id", "closeCode": "close_code"}
"""What Python calls what the cases name."""

Json = dict[str, Any]


class World:
    """A session with a connection and a clock of its own, and chance that always gives the longest pause."""

    def __init__(self, tokens: list[str] | None = None) -> None:
        self.session = Session(lambda: 1.0)
        self.now = 0.0
        self.link = "none"
        self.closed = False
        self.sent: list[Json] = []
        self.changes: dict[Following, list[list[Change]]] = {}
        self.errors: dict[Following, list[effects.RelayError]] = {}
        self.included: dict[Following, list[Json]] = {}
        self.tokens = tokens
        self.token: str | None = None

    def act(self) -> None:
        """Carry out what the session decides, as the shell does."""
        for effect in self.session.take_effects():
            match effect:
                case effects.Attempt():
                    assert self.link == "none"
                    self.link = "attempt"
                    self.token = self.tokens.pop(0) if self.tokens else None
                case effects.Send(text):
                    assert self.link == "open"
                    self.sent.append(json.loads(text))
                case effects.Hangup():
                    assert self.link != "none"
                    self.closed = self.link == "open"
                    self.link = "none"
                case effects.Changed(board, changes):
                    alone = [[change] for change in changes if change.batch is None]
                    self.changes.setdefault(board, []).extend(alone or [changes])
                case effects.Failed(board, error) if board:
                    self.errors.setdefault(board, []).append(error)
                case effects.Included(board, xid, error):
                    self.include(board, xid, error)

    def include(self, board: Following, xid: str, error: effects.RelayError | None) -> None:
        self.included.setdefault(board, []).append({"xid": xid, "code": error.code if error else None})

    def open(self) -> None:
        assert self.link == "attempt"
        self.link, self.closed = "open", False
        self.session.opened(self.now)
        self.act()

    def receive(self, text: str) -> None:
        if self.link == "open":
            self.session.received(text, self.now)
            self.act()

    def close(self, code: int) -> None:
        assert self.link != "none"
        self.link = "none"
        self.session.ended(code, "", self.now)
        self.act()

    def wait(self, seconds: float) -> None:
        until = round(self.now + seconds, 6)
        while (due := self.session.due) is not None and round(due, 6) <= until:
            self.now = due
            self.session.tick(due)
            self.act()
        self.now = until


class Run:
    """One case of the conformance suite."""

    def __init__(self, case: Json) -> None:
        self.world = World(case.get("tokens"))
        self.boards: dict[str, Following] = {}
        self.world.session.start()
        for name in case.get("boards", ["default"]):
            self.boards[name] = self.world.session.subscribe(name)
        self.world.act()

    def step(self, step: Json) -> None:
        [kind, value] = next(iter(step.items()))
        match kind:
            case "open":
                self.world.open()
            case "receive":
                self.world.receive(json.dumps(value))
            case "receive_text":
                self.world.receive(value)
            case "close":
                self.world.close(value)
            case "wait":
                self.world.wait(value)
            case "call":
                self.call(value, step)
            case "expect":
                self.expect(value)
            case _:
                pytest.fail(f"unknown step {kind}")

    def call(self, name: str, step: Json) -> None:
        session = self.world.session
        match name:
            case "subscribe":
                selected = selection(step.get("lanes"), step.get("columns"), step.get("tasks"))
                self.boards[step["board"]] = session.subscribe(step["board"], selected)
            case "unsubscribe":
                session.unsubscribe(self.boards[step["board"]])
            case "authenticate":
                session.authenticate(step["token"])
            case "close":
                session.close()
            case "includes":
                board = self.boards[step.get("board", "default")]
                try:
                    session.includes(board, step["xid"])
                except effects.RelayError as error:
                    self.world.include(board, step["xid"], error)
            case _:
                pytest.fail(f"unknown call {name}")
        self.world.act()

    def expect(self, expected: Json) -> None:
        board = self.boards[expected.pop("board", "default")]
        for key, value in with_integers(expected).items():
            assert self.found(key, board, value) == value, key

    def found(self, key: str, board: Following, wanted: Any) -> Any:
        world, replica = self.world, board.replica
        sent, errors, changes = world.sent, world.errors, world.changes
        found: dict[str, Callable[[], Any]] = {
            "laneNames": lambda: replica.lane_names,
            "lanes": lambda: {lane: [task["id"] for task in tasks] for lane, tasks in replica.lanes.items()},
            "tasks": lambda: {str(name): task for name, task in replica.tasks.items()},
            "state": lambda: board.state,
            "changes": lambda: only(changes.pop(board, []), wanted),
            "errors": lambda: only(errors.pop(board, []), wanted),
            "included": lambda: world.included.pop(board, []),
            "sent": lambda: [sent.pop(0) for _ in list(sent)],
            "closed": lambda: world.closed,
            "attempting": lambda: world.link == "attempt",
            "token": lambda: world.token,
        }
        return found[key]()


def with_integers(value: Any) -> Any:
    """Put integers for what stands for them."""
    if isinstance(value, list):
        return list(map(with_integers, value))
    if isinstance(value, dict):
        if "$integer" in value:
            return int(value["$integer"])
        return {key: with_integers(its) for key, its in value.items()}
    return value


def only(found: Any, listed: Any) -> Any:
    """Leave out of changes and errors what is not listed; what is listed stays whole."""
    if isinstance(found, list):
        return [only(its, listed[i] if i < len(listed) else {}) for i, its in enumerate(found)]
    return {key: getattr(found, NAMES.get(key, key)) for key in listed}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_conformance(case: Json) -> None:
    """What a client must do, whatever its language."""
    run = Run(case)
    for step in copy.deepcopy(case["steps"]):
        run.step(step)

    assert run.world.sent == []


# Properties

LANES = ["backlog", "todo", "done"]


class Server:
    """A model of a relay with one board: its history of batches, and what it sends to clients that ask."""

    def __init__(self) -> None:
        self.history: list[list[Json]] = []
        self.tasks: dict[int, Json] = {}
        self.sent_batches = 0
        """How many batches the connection that is open has been sent."""

    @property
    def cursor(self) -> str:
        return str(len(self.history))

    def commit(self, rows: list[tuple[int, str, int]]) -> None:
        """Write rows: a task that is there is moved, changed, or deleted if its lane and value say so."""
        messages: list[Json] = []
        for name, lane, value in rows:
            held = self.tasks.get(name)
            if held is None:
                self.tasks[name] = {"id": name, "lane": lane, "value": value}
                messages.append({"type": "task.created", "data": dict(self.tasks[name])})
            elif value == 0:
                del self.tasks[name]
                messages.append({"type": "task.deleted", "data": {"id": name}})
            else:
                changes = {"lane": lane, "value": value}
                if held["lane"] != lane:
                    moved = {"id": name, "fromLane": held["lane"], "toLane": lane}
                    messages.append({"type": "task.moved", "data": moved})
                self.tasks[name] = held | changes
                messages.append({"type": "task.updated", "data": {"id": name, "changes": changes}})
        self.history.append(messages)

    def sync(self, reason: str | None) -> list[Json]:
        lanes = {lane: [task for task in self.tasks.values() if task["lane"] == lane] for lane in LANES}
        top = {"type": "board.sync", "boardId": "default", "cursor": self.cursor, "data": {"lanes": lanes}}
        self.sent_batches = len(self.history)
        return [top | ({"reason": reason} if reason else {})]

    def batch(self, since: int, size: int) -> list[Json]:
        """What was missed since, in parts of so many messages."""
        messages = [message for batch in self.history[since:] for message in batch]
        parts = [messages[i : i + size] for i in range(0, len(messages), size)] or [[]]
        self.sent_batches = len(self.history)
        tops: list[Json] = [{"type": "batch", "boardId": "default", "data": part} for part in parts]
        tops[-1]["cursor"] = self.cursor
        return tops

    def answer(self, subscribe: Json, size: int) -> list[Json]:
        cursor = subscribe["cursor"]
        return self.sync(None) if cursor is None else self.batch(int(cursor), size)


COMMIT = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(LANES), st.integers(0, 3)), min_size=1, max_size=6)
STEP = st.one_of(
    st.tuples(st.just("commit"), COMMIT),
    st.tuples(st.just("deliver"), st.integers(1, 3)),
    st.tuples(st.just("cut"), st.none()),
    st.tuples(st.just("repeat"), st.none()),
    st.tuples(st.just("break"), st.integers(0, 3)),
)


class Wire:
    """A session and the model, a connection that breaks, and a mirror: what a program holds by the changes alone."""

    def __init__(self, *, resumable: bool) -> None:
        self.world, self.server, self.mirror = World(), Server(), dict[Any, Task]()
        self.world.session.start()
        self.board = self.world.session.subscribe("default")
        self.world.act()
        self.world.open()
        self._resumable = resumable
        self._last: Json | None = None

    def take(self, messages: list[Json]) -> None:
        """Bring messages to the client; after each, the changes that it reported have led to what it holds."""
        for message in messages:
            self._last = message
            self.world.receive(json.dumps(message))
            for group in self.world.changes.pop(self.board, []):
                for change in group:
                    follow(self.mirror, change, self.board)
            assert self.mirror == self.board.replica.tasks

    def step(self, kind: str, value: Any) -> None:
        server, world = self.server, self.world
        match kind:
            case "commit":
                server.commit(value)
            case "deliver":
                self.take(server.batch(server.sent_batches, value))
            case "cut":
                parts = server.batch(server.sent_batches, 1)
                self.take(parts[:-1])  # parts that nobody ends
                self.take(server.sync("batch_cut_short"))
            case "repeat" if self._last and self._last.get("data") == []:
                self.take([self._last])
            case "break":
                self.take(server.batch(server.sent_batches, 1)[:value])  # the last part perhaps does not come
                world.close(1006)
                assert self.board.state == "offline"
                world.wait(60)
                world.open()
        self.answer()

    def answer(self) -> None:
        """Answer what the client asks for; a server may always refuse a cursor."""
        while asked := [message for message in self.world.sent if message["type"] == "subscribe"]:
            self.world.sent.clear()
            for message in asked:
                self.take(self.server.answer(message if self._resumable else message | {"cursor": None}, 2))


@settings(max_examples=150)
@given(st.lists(STEP, max_size=25), st.booleans())
def test_whatever_happens_the_board_is_the_servers_and_each_change_is_seen_once(
    steps: list[tuple[str, Any]], resumable: bool
) -> None:
    """Batches in parts, boards between them, links that break within a part, messages that come twice."""
    wire = Wire(resumable=resumable)
    wire.answer()
    for kind, value in [*steps, ("deliver", 3)]:
        wire.step(kind, value)

    replica = wire.board.replica
    assert wire.board.state == "live"
    assert replica.tasks == wire.server.tasks
    assert wire.board.cursor == wire.server.cursor
    assert {task["id"] for tasks in replica.lanes.values() for task in tasks} == set(wire.server.tasks)
    assert all(task["lane"] == lane for lane, tasks in replica.lanes.items() for task in tasks)


def follow(mirror: dict[Any, Task], change: Change, board: Following) -> None:
    """Do with a mirror what a change says, which must fit it: one seen twice, or never, does not."""
    if change.type == "board.sync":
        mirror.clear()
        mirror.update(board.replica.tasks)
        return
    name = change.id
    assert mirror.get(name) == change.before
    if change.task is None:
        del mirror[name]
    else:
        mirror[name] = change.task


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["a", "todo", "default", "task.moved"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "lane", "lanes", "x"]), inner),
    max_leaves=6,
)
TYPES = ["board.sync", "batch", "task.created", "task.updated", "task.moved", "task.deleted", "error", "x"]


@settings(max_examples=150)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(TYPES) | JUNK, "data": JUNK},
            optional={"boardId": st.just("default") | JUNK, "cursor": st.just("c") | JUNK, "reason": JUNK},
        ),
        max_size=8,
    )
)
def test_nothing_that_comes_can_corrupt_the_board(messages: list[Json]) -> None:
    """Whatever a server makes up, the client neither fails nor holds lanes that contradict its tasks."""
    world = World()
    world.session.start()
    board = world.session.subscribe("default")
    world.act()
    world.open()
    for message in messages:
        world.receive(json.dumps(message))
        listed = [(task["id"], task) for tasks in board.replica.lanes.values() for task in tasks]
        assert dict(listed) == board.replica.tasks
        assert len(listed) == len(board.replica.tasks)


def test_a_board_with_a_task_in_two_lanes_is_not_held() -> None:
    """It cannot be what the table is; what was held is held on to, and the board asked for again."""
    world = World()
    world.session.start()
    board = world.session.subscribe("default")
    world.act()
    world.open()
    twice = {lane: [{"id": "a", "lane": lane}] for lane in ("todo", "done")}
    world.receive(json.dumps({"type": "board.sync", "boardId": "default", "cursor": "c", "data": {"lanes": twice}}))

    assert (board.replica.tasks, board.cursor, board.state) == ({}, None, "catching up")
    assert len(world.sent) == 2


def test_too_many_messages_end_the_wait_for_a_token_because_it_may_be_among_them() -> None:
    session = Session(lambda: 0.0)
    session.start()
    session.opened(0.0)
    session.authenticate("fresh")
    session.take_effects()
    session.received('{"type":"error","data":{"code":"too_many_messages","message":"slower"}}', 0.0)
    answers = [each.error for each in session.take_effects() if isinstance(each, effects.Authenticated)]
    assert [answer and answer.code for answer in answers] == ["too_many_messages"]


def test_a_backlog_that_grows_too_long_is_one_board_sync() -> None:
    """What a program missed is not kept; once it has read that, changes are reported again."""
    one, two, three = (Change("task.deleted", name) for name in "abc")
    backlog = Backlog(limit=2)
    backlog.put([one, two, three])  # one batch may be longer
    assert [backlog.get() for _ in range(4)] == [one, two, three, None]

    backlog.put([one, two])
    backlog.put([three])
    backlog.put([three])
    assert [backlog.get() for _ in range(2)] == [Change("board.sync", reason="fell_behind"), None]
    backlog.put([two])
    assert backlog.get() == two


def test_a_board_that_waits_is_the_one_there_is_when_it_is_read() -> None:
    """So a change that came after it is within it and is not reported again; one from before it is reported."""
    one, two, sync = Change("task.deleted", "a"), Change("task.deleted", "b"), Change("board.sync", reason="truncate")
    backlog = Backlog()
    for change in (one, sync, two, sync, two):
        backlog.put([change])

    assert [backlog.get() for _ in range(3)] == [one, sync, None]


def test_integers_keep_their_digits_however_many() -> None:
    """Python's int() takes no more than 4300 digits by itself; a numeric may have more."""
    long = "9" * 5000
    message = parse(f'{{"type":"x","data":[{2**64 + 1},{long}]}}')

    assert message is not None
    assert message["data"][0] == 2**64 + 1
    assert str(message["data"][1]) == long


@pytest.mark.parametrize("text", [b"\xff", "[" * 100_000, "", "7", '{"type":7}'])
def test_an_invalid_message_is_reported(text: str | bytes) -> None:
    """No text of a stranger is an exception."""
    assert parse(text) is None


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ä"])
def test_an_invalid_token_is_refused_without_being_shown(token: str) -> None:
    """It would end up in a header."""
    with pytest.raises(ValueError, match=r"^the token is empty, or no text that a header can hold"):
        link.check_token(token)


def test_an_invalid_address_is_refused_without_showing_its_secrets() -> None:
    """One line, without user and query."""
    with pytest.raises(ValueError, match=r"^'http://relay' is no address of a relay: expected one like ws://"):
        link.check("http://me:secret@relay?token=secret")


def test_subscriptions_to_one_board_select_the_same_and_invalid_names_are_refused() -> None:
    session = Session(lambda: 1.0)
    session.subscribe("default", selection(["todo", "done"], None, ["7"]))
    session.subscribe("default", selection({"done", "todo"}, None, [7]))
    with pytest.raises(effects.RelayError, match="followed with another selection") as caught:
        session.subscribe("default")
    assert caught.value.code == "other_selection"
    for lanes in ("todo", [7]):
        with pytest.raises(TypeError, match="expected a collection of strings"):
            selection(lanes, None, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a collection of ids"):
        selection(None, None, [1.5])  # type: ignore[list-item]
