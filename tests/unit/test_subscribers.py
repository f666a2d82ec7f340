"""The bench's subscribers find what must not be: a figure counts only if nothing was lost, doubled or reordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from relay.commands.bench.subscribers import Check, Crew, percentile, stamped, take_frames
from relay.model import messages as protocol
from relay.websocket.frames import frame

TEXT = 1


def updated(sequence: int) -> bytes:
    """A change as the relay sends it."""
    return protocol.task_updated(Raw(b'"bench"'), {"title": title(sequence)}).json


def synced(sequence: int) -> bytes:
    """A board whose one task shows that change."""
    task = {"id": Raw(b'"bench"'), "lane": Raw(b'"backlog"'), "title": title(sequence)}
    return protocol.board_sync(protocol.board_data([task])).json


def title(sequence: int) -> Raw:
    return Raw(f'"{stamped(sequence)}"'.encode())


@pytest.fixture
def crew() -> Crew:
    return Crew(port=0, count=1)


@pytest.fixture
def check(crew: Crew) -> Check:
    """A subscriber that has its board, with change 6 in it."""
    check = Check("the subscriber", crew)
    check.take(synced(6), at=0)
    return check


def test_changes_in_order_are_not_a_fault(crew: Crew, check: Check) -> None:
    """Each change after the board counts once."""
    check.take(updated(7), at=0)
    check.take(updated(8), at=0)

    assert (crew.tally.deliveries, crew.tally.faults) == (2, [])


@pytest.mark.parametrize("got", [[8], [7, 7], [7, 6], [7, 9]], ids=["lost", "doubled", "old", "lost later"])
def test_other_changes_are_a_fault(crew: Crew, check: Check, got: list[int]) -> None:
    """A change that is not the next one is reported, with the one that was expected."""
    for sequence in got:
        check.take(updated(sequence), at=0)

    assert crew.tally.faults[0].startswith(f"the subscriber expected change {6 + len(got)} and got")


def test_a_message_without_a_change_is_a_fault(crew: Crew, check: Check) -> None:
    """An error counts as no change."""
    check.take(b'{"type":"error"}', at=0)

    assert len(crew.tally.faults) == 1


def test_a_later_board_counts_as_the_changes_in_it(crew: Crew, check: Check) -> None:
    """A client takes it for all changes up to its own; the next one follows."""
    check.take(synced(9), at=0)
    check.take(updated(10), at=0)

    report = crew.tally.report()
    assert (report.deliveries, report.syncs, report.faults) == (4, 1, [])


def test_latencies_are_of_every_delivery_and_of_the_last(crew: Crew) -> None:
    """Percentiles are in milliseconds, over all deliveries, and over the slowest of each change."""
    for sequence, milliseconds in ((1, 1), (1, 3), (2, 2), (2, 4)):
        crew.tally.take(sequence, sent_at=0, at=milliseconds * 1_000_000)
    report = crew.tally.report()

    assert (report.p50, report.max, report.last_p50) == (3, 4, 4)


def test_percentile_of_nothing_is_nothing() -> None:
    """Nothing is shown where nothing was measured."""
    assert percentile([], 0.5) is None
    assert percentile([1_000_000], 0.99) == 1


@given(st.lists(st.integers(0, 70_000), max_size=5), st.lists(st.integers(1, 200_000), max_size=5))
def test_frames_are_whole_however_they_arrive(sizes: list[int], cuts: list[int]) -> None:
    """A stream cut anywhere gives the frames that went into it."""
    stream = b"".join(bytes(frame(b"x" * size)) for size in sizes)
    got: list[tuple[int, int]] = []
    rest, begin = b"", 0
    for end in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        rest = take_frames(
            rest + stream[begin:end], lambda opcode, payload, _: got.append((opcode, len(payload))), at=0
        )
        begin = end

    assert (got, rest) == ([(TEXT, size) for size in sizes], b"")
