"""The one seam of the relay: what the hub and its neighbours expect of each other. Types only.

A change travels in one direction, through three parties:

    Source ──────────────────▶ Sink ───────────────────▶ Subscriber
    reads what was committed    decides what that means     passes bytes on
    (Postgres, NATS)            (the hub, a publisher)      (a client's connection)

- A **source** follows one database: `postgres.feed.Feed` reads the journal itself, `nats.source.NatsSource` reads
  what a publisher wrote to a stream. `run` passes everything to a sink, in order. A sink asks the source for the two
  things that changes alone cannot give it: a whole board (`ask`), and what a client missed that comes back
  (`ask_changes`).
- A **sink** takes what a source finds: `hub.Hub`, which serves clients, or the publisher's turn, which appends to a
  stream. It never asks which source it has.
- A **subscriber** is one client, as far as the hub is concerned.
- An **authorizer** answers whether a client may read a board, where a database decides that. Both sources do.

A source's *position* is a snapshot: everything that it sees has been passed to the sink. Reads of boards run beside
the changes, and come with a snapshot of their own; the sink makes the two fit.

Rules:
- Methods of sinks and subscribers that are not coroutines return at once, and are called from one thread.
- A source hands over a board, or what was missed, between two batches, never in the midst of one.
- A source never has two reads of one board under way: a sink could not tell whom the first one answers.
- A source that fails reconnects by itself, for ever. It goes on from its position, or calls `begin` with the reason
  why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.model.cursor import Epoch, Reason
from relay.model.messages import Meaning, Message
from relay.model.snapshot import Snapshot
from relay.model.status import Counts, Database, StreamStatus

Question = tuple[Mapping[str, Any], str]
"""The claims of a token, and the board that is to be read with it."""


class Committed(Protocol):
    """A transaction: `transaction.Transaction`, or one whose messages a publisher has encoded.

    With `sync`, it did what only reading the boards again can show: the reason. With `at`, it is none, but says what
    is there as of that snapshot; whoever holds a board as of that one, or of a later one, has it already.
    """

    @property
    def xid(self) -> int: ...

    @property
    def at(self) -> Snapshot | None: ...

    @property
    def sync(self) -> Reason | None: ...

    def messages(self, boards: Container[str | None]) -> Mapping[str, Meaning]:
        """Give each of `boards` that it touches the messages for its subscribers, or why it must be read again."""


@dataclass(frozen=True, slots=True)
class Resume:
    """What to read for clients that come back: the changes of these boards since the oldest of their cursors."""

    oldest: Snapshot
    newest: Snapshot
    boards: frozenset[str]


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The state of a source. `problem` and `unready` are one line each, as in `status.Status`.

    Everything that was committed `lag_seconds` ago has been passed on. `counts` has what this source
    counts, and `database` or `stream` what it follows.
    """

    up: bool
    problem: str | None
    unready: str | None
    lag_seconds: float
    counts: Counts
    database: Database | None = None
    stream: StreamStatus | None = None
    failing: Mapping[str, str] = field(default_factory=dict)
    """The boards that cannot be read, and why not, in one line."""
    incomplete: Mapping[str, str] = field(default_factory=dict)
    """The tables that are shown, but not as they should be, and why, in one line."""


class BoardSource(Protocol):
    """Where a hub has boards read. Both methods return at once."""

    def ask(self, board: str, by: object = None) -> None:
        """Have a board read for the sink: `begin_read`, then `synced`, `refuse`, `fail_read` or `abandon_read`.

        Whoever wants boards, as `by`, takes turns with all others, however many each of them wants.
        """

    def ask_changes(self, resuming: Resuming) -> None:
        """Have the journal read: `begin_resume`, then `resumed` or `abandon_resume`."""


class Source(BoardSource, Protocol):
    """Where changes come from."""

    problem: str | None
    """Why it does not run, in one line; None while it does."""

    async def run(self, sink: Sink) -> None:
        """Pass what is committed to a sink, until cancelled."""

    async def catch_up(self) -> bool:
        """Wait until everything that is committed now has been passed on; false if that takes too long."""

    def status(self, budget: float) -> SourceStatus:
        """Return the state, where a probe may take `budget` seconds before that is a problem."""


class Sink(Protocol):
    """Takes what a source finds."""

    def __contains__(self, board: object) -> bool:
        """Whether it wants the changes of a board."""

    def begin(self, epoch: Epoch, position: Snapshot, lost: Reason | None) -> None:
        """Go on from `position`, with the cursors that are good from now on.

        With `lost`, continuity is broken: what follows does not go on from what came before.
        """

    def publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        """Take what was committed since the last position, in this order, and leads to `position`.

        Without a position, more of the same batch follows, perhaps of the same transaction.
        """

    def begin_read(self, name: str) -> bool:
        """Note that a read of a board begins; return false if it is not wanted any more."""

    def abandon_read(self, name: str) -> None:
        """Note that a board was given up, before or during its read. It is asked for again, if it is still wanted."""

    def fail_read(self, name: str, error: Message) -> None:
        """Do the same as `abandon_read`, and send this error, once, to those that wait for the board."""

    def synced(self, name: str, snapshot: Snapshot, data: bytes) -> None:
        """Take a board that was read: the snapshot it was read in, and its `protocol.board_data`."""

    def refuse(self, name: str, error: Message) -> None:
        """Note that a board cannot be had: its subscribers get this error, and follow it no longer."""


class Resuming(Protocol):
    """Serves clients that come back, and needs what they missed: the hub."""

    def begin_resume(self) -> Resume | None:
        """Note that a read of the journal begins; return what is wanted of it, None if nothing is any more."""

    def abandon_resume(self) -> None:
        """Note that the read failed. It is asked for again."""

    def resumed(self, now: Snapshot, transactions: Sequence[Committed] | None, horizon: Snapshot) -> None:
        """Take what became visible between `Resume.oldest` and `now` on these boards; None if it is too much.

        The journal held everything after `horizon`.
        """


Frame = Callable[[Message], bytes]
"""Makes a message what goes on the wire."""


class Subscriber(Protocol):
    """A client's connection, as far as the hub is concerned. Compared by identity."""

    __slots__ = ()

    ready: bool
    """Whether it can take more now."""

    address: str
    """Where it is. Those of one address have a share of what is limited for all."""

    @property
    def frame(self) -> Frame:
        """Return what makes a message what it is sent. Subscribers with the same one share the bytes, made once."""

    def send(self, frames: bytes) -> None:
        """Pass on what `frame` has made of messages. Must not block and must not call the hub."""


class Authorizer(Protocol):
    """Decides about boards, beside the token that names them."""

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Answer each question, however long it takes."""
