"""The stream's entries and what they amount to: whole batches, in order, each once, or an error."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from relay.model.cursor import Reason
from relay.model.snapshot import Snapshot
from relay.nats import assembly as assembling
from relay.nats import stream
from relay.nats.assembly import Assembly, Batch, Begin
from relay.nats.consumer import place
from relay.nats.stream import Commit, Effect, End, Entry, Part, State, StreamBroken, commits, decode, encode, token

RAW = msgspec.Raw(b'{"type":"task.deleted","data":{"id":1}}')


def at(number: int) -> str:
    return f"{number + 3}:{number + 3}:"


def state(
    position: int, *, after: int | None = None, step: int = 0, publisher: str = "one", name: str = "s", **given: Any
) -> State:
    before = at(position if after is None else after)
    return State(name, publisher, step, before, at(position), "run", {"run": b"key"}, "shape", publisher, **given)


def part(step: int, *xids: int, publisher: str = "one", board: str = "b") -> Part:
    return Part(publisher, step, [Effect(xid, [RAW]) for xid in xids], board)


def commit(step: int, after: int, position: int, publisher: str = "one", **parts: int) -> Commit:
    return Commit(publisher, step, parts, end=End(at(after), at(position)))


def taken(assembly: Assembly, entries: Iterable[Entry]) -> list[Batch | Begin]:
    """Take entries as they are when they have been written and read."""
    return [found for entry in entries for found in assembly.take(decode(encode(entry)))]


def xids(found: Iterable[Batch | Begin]) -> list[tuple[list[int], str | None]]:
    return [
        ([one.xid for one in each.transactions], str(each.position) if each.position else None)
        for each in found
        if isinstance(each, Batch)
    ]


def test_a_batch_counts_from_its_end_on() -> None:
    """Its parts are one batch, with the position that they lead to."""
    assembly = Assembly(state(0))
    assert taken(assembly, [part(1, 10), part(1, 11, board="c"), part(1, 12)]) == []
    assert not assembly.between_batches
    assert xids(taken(assembly, [commit(1, 0, 1, b=2, c=1)])) == [([10, 11, 12], at(1))]
    assert (assembly.step, str(assembly.position), assembly.between_batches) == (1, at(1), True)


def test_what_an_interrupted_publisher_left_counts_for_nothing() -> None:
    """The next one begins with a state, and with the whole batch."""
    assembly = Assembly(state(0))
    found = taken(
        assembly,
        [
            part(1, 10),
            state(0, step=1, publisher="two"),
            part(2, 10, 11, publisher="two"),
            commit(2, 0, 2, publisher="two", b=1),
        ],
    )
    assert xids(found) == [([], at(0)), ([10, 11], at(2))]
    assert not [each for each in found if isinstance(each, Begin)]


def test_a_batch_that_is_too_large_is_passed_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where nobody needs it whole."""
    monkeypatch.setattr(assembling, "GATHER_BYTES", len(RAW))
    entries: list[Entry] = [part(1, 10), part(1, 11, 12), part(1, 13), commit(1, 0, 1, b=3)]
    assert xids(taken(Assembly(state(0)), entries)) == [([10, 11, 12], None), ([13], at(1))]
    assert xids(taken(Assembly(state(0), whole=True), entries)) == [([10, 11, 12, 13], at(1))]


def test_a_batch_of_which_a_part_was_passed_on_is_cut_short_by_another_publisher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that has the part must be sent the board."""
    monkeypatch.setattr(assembling, "GATHER_BYTES", 0)
    found = taken(Assembly(state(0)), [part(1, 10), state(0, step=1, publisher="two")])
    assert [each.lost for each in found if isinstance(each, Begin)] == ["batch_cut_short"]


@pytest.mark.parametrize(
    ("entry", "lost"),
    [
        (state(5, step=7, name="another"), "journal_pruned"),
        (state(5, step=7, name="another", lost="epoch_changed"), "epoch_changed"),
        (state(5, step=1, lost="schema_changed"), "schema_changed"),
        (State("s", "one", 1, at(0), at(1), "later", {"run": b"key", "later": b"key"}, "shape", "one"), None),
    ],
    ids=["another stream", "another and why", "continuity lost", "another run of the server"],
)
def test_a_state_says_what_begins(entry: State, lost: Reason | None) -> None:
    """Another stream, a loss of continuity, or just other cursors."""
    assert taken(Assembly(state(0)), [entry]) == [Begin(entry.epoch, Snapshot.parse(entry.position), lost)]


def test_a_state_moves_the_position_when_nothing_happens() -> None:
    """So cursors of quiet boards stay young."""
    assembly = Assembly(state(0))
    assert xids(taken(assembly, [state(4, step=1, after=0)])) == [([], at(4))]
    assert xids(taken(assembly, [part(2, 10), commit(2, 4, 5, b=1)])) == [([10], at(5))]


@pytest.mark.parametrize(
    "entries",
    [
        [part(2, 10)],
        [part(1, 10, publisher="two")],
        [part(1, 10), commit(1, 1, 2, b=1)],
        [part(1, 10), commit(1, 0, 1, b=1), part(1, 10), commit(1, 1, 2, b=1)],
        [part(1, 10), state(0, step=1)],
        [state(0, step=2)],
        [state(0, step=2, lost="resync")],
        [state(5, step=1, after=2)],
        [state(5, step=1, after=0), state(4, step=2, after=5)],
        [Commit("one", 1, end=End(at(0), "nonsense"))],
        [part(1, 10), commit(1, 0, 1, b=2)],
        [part(1, 10), part(1, 11), commit(1, 0, 1, b=1)],
        [commit(1, 0, 1, b=1)],
        [Commit("one", 1, common=1, end=End(at(0), at(1)))],
    ],
    ids=[
        "a batch is missing",
        "a publisher without a state",
        "a batch that goes on from elsewhere",
        "a batch twice",
        "a state within a batch",
        "a step is missing before a state",
        "a step is missing before a break of continuity",
        "a state that goes on from elsewhere",
        "back in time",
        "no position",
        "a part is missing",
        "a part twice",
        "a board is missing",
        "a part for all boards is missing",
    ],
)
def test_what_does_not_follow_is_not_believed(entries: list[Entry]) -> None:
    """A stream that was restored, or that strangers write to, is noticed."""
    with pytest.raises(StreamBroken):
        taken(Assembly(state(0)), entries)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"entry":"part"}', b'{"entry":"other"}', b"[1]"])
def test_an_entry_of_a_stranger_is_an_error(data: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(StreamBroken, match="not the relay's"):
        decode(data)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_each_board_has_a_subject_of_its_own(one: str, other: str) -> None:
    """A token has no dot, no wildcard and no space, is not empty and not too long; two boards never share one."""
    assert not set(token(one)) & set(".*> \t\r\n")
    assert 0 < len(token(one)) <= stream.TOKEN_LETTERS
    assert (token(one) == token(other)) == (one == other)


@pytest.mark.parametrize(
    "before", ["$JS.ACK.relay", "$JS.ACK._.hash.relay", "$JS.ACK.hub.hash.relay"], ids=["2.9", "newer", "domain"]
)
@pytest.mark.parametrize("after", ["", ".token"])
def test_where_an_entry_stands_is_read_as_nats_py_does(before: str, after: str) -> None:
    """Of each way in which servers say it; only the newer ones may say more."""
    reply = f"{before}.consumer.1.4711.12.1700000000000000000.42{after if before.count('.') > 2 else ''}"
    known = Msg(Client(), reply=reply).metadata

    assert place(reply) == (known.sequence.stream, known.num_pending) == (4711, 42)


def test_a_reader_of_some_boards_needs_the_parts_of_these_alone() -> None:
    """Others may come or not, for servers differ in what they leave out; what is read must be there."""
    entries: list[Entry] = [part(1, 10), part(1, 11, board="c"), commit(1, 0, 1, b=1, c=1)]
    assert xids(taken(Assembly(state(0), "b".__eq__), entries)) == [([10], at(1))]
    assert xids(taken(Assembly(state(0), "b".__eq__), [entries[0], entries[2]])) == [([10], at(1))]
    assert xids(taken(Assembly(state(0), "".__eq__), entries[2:])) == [([], at(1))]
    with pytest.raises(StreamBroken, match="step 1 has 0 parts for board 'b': expected 1"):
        taken(Assembly(state(0), "b".__eq__), entries[1:])


def test_it_is_within_a_batch_from_the_first_entry_that_comes_of_it() -> None:
    """Even one that is passed over: another selection of boards that began there would miss what came before."""
    for entry in (part(1, 10), Commit("one", 1, {"b": 1})):
        assembly = Assembly(state(0), "".__eq__)
        assert taken(assembly, [entry]) == []
        assert not assembly.between_batches


MESSAGES = st.lists(
    st.integers(1, 1500).map(lambda size: msgspec.Raw(b'"' + b"m" * size + b'"')), min_size=1, max_size=5
)
EFFECTS = st.lists(st.builds(Effect, st.integers(1, 2**63), st.none() | MESSAGES), max_size=60)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(NAMES, EFFECTS, st.integers(900, 4000))
def test_no_part_is_larger_than_there_is_room(name: str, effects: list[Effect], room: int) -> None:
    """All is said in order, or is to be read again if it cannot be said."""
    assume(stream.can_name(name, room))
    entries = list(stream.fitted(Part("one", 1, effects, name), room))
    parts = [decode(data) for _, data in entries]

    assert all(len(data) <= room for _, data in entries)
    assert [entry for entry, _ in entries] == parts
    said: dict[int, list[bytes] | None] = {}
    for part in parts:
        assert isinstance(part, Part)
        assert part.board == name
        for each in part.effects:
            before = said.setdefault(each.xid, [])
            new = None if each.messages is None else [bytes(raw) for raw in each.messages]
            said[each.xid] = None if before is None or new is None else before + new
    for xid in {each.xid for each in effects}:
        its = [each.messages for each in effects if each.xid == xid]
        if (found := said[xid]) is not None:
            assert found == [bytes(raw) for messages in its for raw in messages or ()]
        else:
            assert any(messages is None or max(map(len, messages)) > room // 2 - 200 for messages in its)


def test_a_batch_of_transactions_that_are_not_said_is_split_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand of them take more than an entry, though they have no message."""
    monkeypatch.setattr(stream, "ENTRY_BYTES", 10**9)
    effects = [Effect(10**12 + number) for number in range(100_000)]
    entries = list(stream.fitted(Part("one", 1, effects, "b"), 2**20))
    assert len(entries) > 1
    assert max(len(data) for _, data in entries) <= 2**20


@given(st.dictionaries(st.none() | NAMES, st.integers(1, 10**6), max_size=60), st.integers(1500, 4000))
def test_no_commit_is_larger_than_there_is_room(parts: dict[str | None, int], room: int) -> None:
    """However many boards a batch has; the end comes once, and last."""
    assume(all(name is None or stream.can_name(name, room // 2) for name in parts))
    end = End("1" * 20, "2" * 200)
    entries = list(commits("one", 1, parts, end, room))
    found = [decode(data) for _, data in entries]

    assert all(len(data) <= room for _, data in entries)
    assert [entry.end for entry in found if isinstance(entry, Commit)] == [*[None] * (len(found) - 1), end]
    assert {name: count for entry in found if isinstance(entry, Commit) for name, count in entry.parts.items()} == {
        name: count for name, count in parts.items() if name is not None
    }
    assert sum(entry.common for entry in found if isinstance(entry, Commit)) == parts.get(None, 0)


@pytest.mark.parametrize(
    ("board", "named"), [("b" * 498, True), ("b" * 499, False), ("\1" * 100, False), ("\ud800", False)]
)
def test_a_board_can_be_named_whose_name_takes_half_of_an_entry(board: str, named: bool) -> None:
    """As JSON, in which a control character takes six bytes, and half a surrogate pair is no text."""
    assert stream.can_name(board, 1000) == named


def test_plain_names_stay_readable() -> None:
    """What people type on the command line of NATS."""
    assert token("default") == "default"
    assert token("team/a.b") == "team%2Fa%2Eb"
    assert token("x" * 300).startswith("x" * 100 + "%-")


@given(st.integers(), st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_whatever_is_interrupted_each_transaction_comes_once(seed: int, sizes: list[int]) -> None:
    """Publishers are stopped anywhere; the next goes on from what an assembly says of the stream.

    Of two readers one reads all boards, the other one board, and is given the others now and then.
    """
    chance = random.Random(seed)
    written: list[Entry] = [state(0, publisher="p0")]
    name, position, step, todo, next_xid = "p0", 0, 0, list(sizes), 10
    while todo:
        xids_of = range(next_xid, next_xid + todo[0])
        entries: list[Entry] = [part(step + 1, xid, publisher=name, board="bc"[xid % 2]) for xid in xids_of]
        counts = Counter("bc"[xid % 2] for xid in xids_of)
        entries.append(commit(step + 1, position, position + 1, publisher=name, **counts))
        cut = chance.randrange(len(entries) * 2)
        written += entries[:cut]
        step += 1
        if cut >= len(entries):
            todo.pop(0)
            next_xid, position = next_xid + len(xids_of), position + 1
        else:
            name = f"p{len(written)}"
            written.append(state(position, step=step, publisher=name))
    everything = Assembly(state(0, publisher="p0"), whole=True)
    one_board = Assembly(state(0, publisher="p0"), "b".__eq__, whole=True)
    for_one = [each for each in written[1:] if getattr(each, "board", "b") == "b" or chance.random() < 0.5]
    for reader, entries, expected in (
        (everything, written[1:], list(range(10, 10 + sum(sizes)))),
        (one_board, for_one, list(range(10, 10 + sum(sizes), 2))),
    ):
        assert [xid for each, _ in xids(taken(reader, entries)) for xid in each] == expected
        assert (reader.step, str(reader.position)) == (step, at(position))
