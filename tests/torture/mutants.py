"""Broken relays, for the torture to find: `python -m tests.torture.mutants NAME serve …`.

Each takes away one thing that exactness rests on, as a plausible mistake would. A torture that does not catch all of
them proves nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client

from relay.commands import cli
from relay.hub import board
from relay.model import transaction as net
from relay.model.messages import Meaning
from relay.model.snapshot import Snapshot
from relay.nats import assembly, marks, stream
from relay.postgres import decode, journal
from tests.acceptance.support import RELAY

NOTHING: Final = Snapshot.parse("3:3:")


def late_committers() -> None:
    """Forgets the transactions that were running at the last poll: what commits out of order is skipped."""
    journal._running = lambda snapshot: []  # noqa: ARG005, SLF001


def tail_dropped() -> None:
    """Forgets what the feed delivered while a board was read."""
    synced = board.Board.synced

    def without_tail(self: board.Board[Any], snapshot: Snapshot, position: Snapshot) -> Any:
        if self._tail:
            self._tail.clear()
        return synced(self, snapshot, position)

    board.Board.synced = without_tail  # type: ignore[method-assign]


def ahead_is_live() -> None:
    """Treats a subscriber that is ahead of the feed like the others: what its board contains comes again."""

    def place(self: board.Board[Any], group: set[Any], _snapshot: Snapshot, position: Snapshot) -> Snapshot:
        self._live |= group
        return position

    board.Board._place = place  # type: ignore[method-assign, assignment]  # noqa: SLF001


def truncate_ignored() -> None:
    """Does not read the boards again when it should."""
    read = decode.transactions_of

    def without_sync(*arguments: Any) -> list[net.Transaction]:
        return [replace(transaction, sync=None) for transaction in read(*arguments)]

    journal.transactions_of = without_sync  # type: ignore[attr-defined, assignment]


def horizon_ignored() -> None:
    """Goes on from where the journal no longer does."""
    batch = journal._batch  # noqa: SLF001

    def without_horizon(*arguments: Any) -> journal.Batch:
        return replace(batch(*arguments), horizon=NOTHING)

    journal._batch = without_horizon  # type: ignore[assignment]  # noqa: SLF001


def counted_once() -> None:
    """Counts an image once, however often it came or left: a row that is changed back and changed again is lost."""

    def as_sets(images: Iterable[net.Image]) -> list[net.Image]:
        texts = {sign: {_content(image) for image in images if image.sign == sign} for sign in (-1, 1)}
        return [image for image in images if _content(image) not in texts[-image.sign]]

    net.cancelled = as_sets


def cancelled_in_order() -> None:
    """Lets an image cancel out only one that came before it in the journal."""

    def forwards(images: Iterable[net.Image]) -> list[net.Image]:
        kept: list[net.Image] = []
        for image in images:
            came = [other for other in kept if other.sign > 0 > image.sign and _content(other) == _content(image)]
            if came:
                kept.remove(came[0])
            else:
                kept.append(image)
        return kept

    net.cancelled = forwards


def last_entry_wins() -> None:
    """Takes the journal's order for that of the changes: the first image was before, the last one is after."""

    def first_and_last(images: list[net.Image]) -> tuple[net.Image | None, net.Image | None]:
        return images[0] if images[0].sign < 0 else None, images[-1] if images[-1].sign > 0 else None

    net._before_and_after = first_and_last  # noqa: SLF001


def entries_sent() -> None:
    """Sends each entry of the journal as it comes, instead of what remains of all."""

    def one_by_one(self: net.Transaction, boards: Container[str | None]) -> dict[str, Meaning]:
        found: dict[str, Meaning] = {}
        left: net.Image | None = None
        for image in (*self.images, None):
            replaced = image is not None and left is not None and image.sign > 0 and image[:3] == left[:3]
            for before, after in [(left, image if replaced else None), (None, None if replaced else image)]:
                one = before or after
                if one is not None and one.board in boards and (before or one.sign > 0):
                    found[one.board] = [*(found.get(one.board) or ()), *net._messages(before, after)]  # noqa: SLF001
            left = image if image is not None and image.sign < 0 else None
        return found

    net.Transaction.messages = one_by_one  # type: ignore[method-assign]


def _content(image: net.Image) -> tuple[object, ...]:
    return image.key, image.board, *image.columns.items()


def sequence_unexpected() -> None:
    """Appends to the stream wherever it ends: of two publishers both are heard."""
    publish = Client.publish

    async def without_headers(self: Client, subject: str, payload: bytes = b"", **given: Any) -> None:
        given.pop("headers", None)
        await publish(self, subject, payload, **given)

    Client.publish = without_headers  # type: ignore[method-assign, assignment]


def interrupted_counts() -> None:
    """Counts what an interrupted publisher left of a batch, and then the whole batch."""
    journal.PART_CHANGES = 3  # type: ignore[misc]  # so many are interrupted
    take = assembly.Assembly._take_state  # noqa: SLF001

    def keep(self: assembly.Assembly, state: stream.State) -> Any:
        gathered = self._gathered
        found = take(self, state)
        self._gathered = gathered
        return found

    assembly.Assembly._take_state = keep  # type: ignore[method-assign]  # noqa: SLF001


def mark_too_late() -> None:
    """Reads the stream for resuming clients from the entry after their cursor."""
    before = marks.Marks.before

    def next_mark(self: marks.Marks, cursor: Snapshot, last: int) -> Any:
        known = self._marks
        return known[min(known.index(before(self, cursor, last)) + 1, len(known) - 1)]

    marks.Marks.before = next_mark  # type: ignore[method-assign]


def in_parts() -> None:
    """Is no mutant: reads and passes on batches in parts of some changes, the real one in those of thousands.

    Not of fewer: each part costs some queries, and thousands of them are more than can be caught up with in time.
    """
    journal.PART_CHANGES = 25  # type: ignore[misc]
    stream.ENTRY_BYTES = 500  # type: ignore[misc]
    assembly.GATHER_BYTES = 2000  # type: ignore[misc]


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    mutant.__name__: mutant
    for mutant in (
        counted_once,
        cancelled_in_order,
        last_entry_wins,
        entries_sent,
        late_committers,
        tail_dropped,
        ahead_is_live,
        truncate_ignored,
        horizon_ignored,
        sequence_unexpected,
        interrupted_counts,
        mark_too_late,
    )
}

# Of the JavaScript client: what stands in its file, and what stands there instead.
JAVASCRIPT: Final = {
    # Applies a batch twice, as one that did not notice that its cursor was answered with what it holds.
    "js_batch_twice": (
        "this.replica.apply(this.#parts.flat())",
        "this.replica.apply([...this.#parts, ...this.#parts].flat())",
    ),
    # Says that a task is gone, and keeps it.
    "js_deletion_ignored": ("this.tasks.delete(id);", ""),
    # Takes the last part of a batch for the whole.
    "js_parts_dropped": ("this.#parts.push(data);", "this.#parts = [data];"),
    # Goes on, on a new connection, with the parts that the old one brought.
    "js_parts_kept": ("  ask() {\n    this.#parts = [];", "  ask() {"),
    # Resumes from where a batch began that it holds.
    "js_cursor_kept": ("this.#parts = [];\n    this.#cursor = cursor;", "this.#parts = [];"),
    # Leaves a card in the lane that it came from.
    "js_lane_kept": ("this.#lane(from).delete(id);", ";"),
}


def javascript(name: str | None, program: Path, folder: Path) -> Path:
    """Return the JavaScript client: the file of the package, or a mutant of it."""
    if name not in JAVASCRIPT:
        return program
    right, wrong = JAVASCRIPT[name]
    text = program.read_text()
    assert text.count(right) == 1
    mutant = folder / "client.mjs"
    mutant.write_text(text.replace(right, wrong))
    return mutant


BY_NAME: Final = MUTANTS | {in_parts.__name__: in_parts}
"""What can be started by name."""


def command(name: str | None) -> Sequence[str | Path]:
    """Return how to start a relay: the real one, or one by name."""
    if name is None:
        return [RELAY]
    here = Path(__file__).parents[2]
    start = f"import sys; sys.path.insert(0, {str(here)!r}); from tests.torture import mutants; mutants.main()"
    return [sys.executable, "-c", start, name]


def main() -> None:
    """Break the relay, then run it."""
    BY_NAME[sys.argv.pop(1)]()
    cli.main()
