"""The interfaces between the hub and its neighbours. Types only.

A change travels in one direction, through three parties:

    Source ──────────────────▶ Sink ───────────────────▶ Subscriber
    reads committed changes     decides what they mean      passes bytes on
    (Postgres, NATS)            (the hub, a publisher)      (a client's connection)

- A **source** follows one database: `postgres.feed.Feed` reads the journal itself, `nats.source.NatsSource` the
  stream that a publisher writes. `run` passes all changes to a sink, in order. A sink asks the source for two things
  that these changes do not contain: a whole board (`ask`), and what a returning client missed (`ask_changes`).
- A **sink** takes what a source finds: `hub.Hub`, which serves clients, or a publisher's turn, which appends to a
  stream. It does not know which source it has.
- A **subscriber** is a client, as seen by the hub.
- An **authorizer** answers whether a client may read a board, if the database decides that. Both sources are one.

A source's *position* is a snapshot: everything that it sees has been passed to the sink. Boards are read concurrently
and come with their own snapshots; the sink reconciles the two.

Rules:
- Methods of sinks and subscribers that are not coroutines return at once, and are called from one thread.
- A source hands over a board, or what was missed, only between two batches.
- A source never has two reads of one board under way, because the sink could not tell whom the first one answers.
- A source that fails reconnects by itself, forever. It continues from its position, or calls `begin` with the reason
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
"""The claims of a token, and the board that its bearer wants to read."""


class Committed(Protocol):
    """A transaction: `transaction.Transaction`, or one whose messages a publisher has encoded.

    `sync` is the reason why all boards must be read again. With `at`, this is not a transaction but a set of values
    as of that snapshot, which a board as of that or a later snapshot already contains.
    """

    @property
    def xid(self) -> int: ...

    @property
    def at(self) -> Snapshot | None: ...

    @property
    def sync(self) -> Reason | None: ...

    def messages(self, boards: Container[str | None]) -> Mapping[str, Meaning]:
        """Return the messages for each of `boards` that it touches, or the reason why it must be read again."""


@dataclass(frozen=True, slots=True)
class Resume:
    """What to read for resuming clients: the changes of these boards since the oldest of their cursors."""

    oldest: Snapshot
    newest: Snapshot
    boards: frozenset[str]


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The state of a source. Fields have the same meaning as in `status.Status`."""

    up: bool
    problem: str | None
    unready: str | None
    lag_seconds: float
    counts: Counts
    database: Database | None = None
    stream: StreamStatus | None = None
    failing: Mapping[str, str] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)


class BoardSource(Protocol):
    """Reads boards and missed changes for a hub. Both methods return at once."""

    def ask(self, board: str, by: object = None) -> None:
        """Request a board: the sink gets `begin_read`, then `synced`, `refuse`, `fail_read` or `abandon_read`.

        Requests take turns by `by`, so that one client's many boards do not delay another's.
        """

    def ask_changes(self, resuming: Resuming) -> None:
        """Request what resuming clients missed: `begin_resume`, then `resumed` or `abandon_resume`."""


class Source(BoardSource, Protocol):
    """Where changes come from."""

    problem: str | None
    """Why it does not run, in one line; None while it does."""

    async def run(self, sink: Sink) -> None:
        """Pass committed changes to a sink, until cancelled."""

    async def catch_up(self) -> bool:
        """Wait until everything committed so far has been passed on; return False if that takes too long."""

    def status(self, budget: float) -> SourceStatus:
        """Return the state. It is a problem if a probe takes longer than `budget` seconds."""


class Sink(Protocol):
    """Takes what a source finds."""

    def __contains__(self, board: object) -> bool:
        """Whether it wants the changes of a board."""

    def begin(self, epoch: Epoch, position: Snapshot, lost: Reason | None) -> None:
        """Continue from `position`, with the cursors that are valid from now on.

        With `lost`, continuity is broken: what follows does not connect to what came before.
        """

    def publish(self, transactions: Sequence[Committed], position: Snapshot | None) -> None:
        """Take the transactions, in this order, that lead from the last position to `position`.

        Without a position, more of the same batch follows, perhaps of the same transaction.
        """

    def begin_read(self, name: str) -> bool:
        """Note that a read of a board begins; return False if nobody wants it any more."""

    def abandon_read(self, name: str) -> None:
        """Note that a board was given up, before or during its read. If still wanted, it is requested again."""

    def fail_read(self, name: str, error: Message) -> None:
        """Like `abandon_read`, but also send this error, once, to those that wait for the board."""

    def synced(self, name: str, snapshot: Snapshot, data: bytes) -> None:
        """Take a board, encoded by `messages.board_data`, and the snapshot in which it was read."""

    def refuse(self, name: str, error: Message) -> None:
        """Note that a board cannot exist: send its subscribers this error, and end their subscriptions."""


class Resuming(Protocol):
    """Serves resuming clients, and needs what they missed: the hub."""

    def begin_resume(self) -> Resume | None:
        """Note that a read of the journal begins; return what to read, None if nobody resumes any more."""

    def abandon_resume(self) -> None:
        """Note that the read failed. It is requested again."""

    def resumed(self, now: Snapshot, transactions: Sequence[Committed] | None, horizon: Snapshot) -> None:
        """Take what became visible on these boards between `Resume.oldest` and `now`; None if it is too much.

        The journal held everything after `horizon`.
        """


Frame = Callable[[Message], bytes]
"""Encodes a message for the wire."""


class Subscriber(Protocol):
    """A client's connection, as seen by the hub. Compared by identity."""

    __slots__ = ()

    ready: bool
    """Whether it can take more now."""

    address: str
    """The client's address. Each address has a share of what is limited for all."""

    @property
    def frame(self) -> Frame:
        """Return the function that frames its messages. Subscribers with the same one share the bytes."""

    def send(self, frames: bytes) -> None:
        """Send framed messages. Must not block and must not call the hub."""


class Authorizer(Protocol):
    """Decides about boards, in addition to the token."""

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Answer each question, however long it takes."""
