"""The stream in NATS JetStream: how publishers append to it, and edges read it.

Subjects, all under the stream's name: `NAME.board.TOKEN` for the parts of each board, `NAME.all` for commits and for
parts that concern all boards, `NAME.state` for states. Not in the stream are `NAME.ask.PLACE.…`, on which edges ask
for boards and for what relay.may_read says; each publisher that is active has a place of its own, which its states
name. Answers come to inboxes that begin with `_INBOX_publisher` and `_INBOX_edge`, so that a server's permissions can
tell them apart: deploy/nats-accounts.conf names every subject that is used.

Rules:
- An entry is appended only if the stream ends where its publisher believes that it does: JetStream compares the
  sequence. So of two publishers one is refused, and what was sent twice is stored once. JetStream's de-duplication by
  message id is not used: it would also drop what a publisher must repeat after an interruption.
- An entry that does not fit into a message is refused before it is sent: NATS would close the connection.
- Entries come in the order of their sequences. Whether one is missing is for the reader's assembly to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import msgspec
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from relay.config.settings import Settings
from relay.nats.connection import EXPECTED, HEADER_BYTES, Connection, NoMessageError, NoStreamError, Refused
from relay.nats.consumer import Consumer, Delivered
from relay.nats.questions import Questions
from relay.nats.stream import MAX_BOARDS, Encoded, Entry, Part, State, token

ANSWER_SECONDS: Final = 5.0
"""Timeout of JetStream to answer, or to store what was sent."""


class _Error(msgspec.Struct):
    code: int
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    error: _Error | None = None


_decode_ack: Final = msgspec.json.Decoder(_Ack).decode


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sequences of the first and the last entry that the stream has; if it has none, the first is greater."""

    first: int
    last: int


class Stream:
    """The stream, over one connection to NATS. All methods raise StreamError."""

    def __init__(self, connection: Connection) -> None:
        self.questions = Questions(connection)
        self.ended = connection.ended
        self._connection = connection
        self._client = connection.client
        self._name = connection.name
        self._jetstream = JetStreamContext(
            connection.client, domain=connection.domain or None, timeout=ANSWER_SECONDS
        )
        self._max_entry = 0
        self._ack_inbox = ""
        self._sent = 0
        self._acks: dict[str, asyncio.Future[None]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, servers: str, role: str) -> AsyncIterator[Self]:
        """Connect."""
        async with Connection.open(settings, servers, role) as connection:
            yield cls(connection)

    # The stream itself

    async def bounds(self) -> Bounds:
        """Return which entries there are. Raises StreamError if there is no stream."""
        with self._connection.errors():
            info = await self._jetstream.stream_info(self._name)
        self._max_entry = max(0, info.config.max_msg_size or 0)
        return Bounds(info.state.first_seq, info.state.last_seq)

    async def make(self, seconds: float, size: int, replicas: int) -> None:
        """Make the stream, if there is none, with limits of the age and the total size of its entries."""
        with contextlib.suppress(NoStreamError):
            await self.bounds()
            return
        with self._connection.errors():
            await self._jetstream.add_stream(
                name=self._name,
                description="The change feed of a relay: see docs/scaling.md of pg-change-relay.",
                subjects=[f"{self._name}.board.*", f"{self._name}.all", f"{self._name}.state"],
                retention=api.RetentionPolicy.LIMITS,
                discard=api.DiscardPolicy.OLD,
                storage=api.StorageType.FILE,
                max_age=seconds,
                max_bytes=size,
                num_replicas=replicas,
            )

    @property
    def room(self) -> int:
        """Maximum size of an entry, in bytes."""
        room = self._connection.room
        return min(room, self._max_entry - HEADER_BYTES) if self._max_entry else room

    # Appending

    async def append(self, entries: Sequence[Encoded], last: int) -> int:
        """Append to a stream whose last entry is `last`; return which one is then. Raises Outrun if it is another.

        Raises Refused if an entry is too large, or JetStream does not take it.

        All are sent at once, for the server takes them in their order, and none after one that it refuses; unless an
        entry of another publisher stands where that one should. Then the entries after it do not follow on, and no
        assembly believes them. nats-py's own way to send many never hears of a refusal.
        """
        self._require_room(entries)
        with self._connection.errors():
            async with asyncio.timeout(ANSWER_SECONDS):
                inbox = await self._open_ack_inbox()
                acks = [self._expect_ack() for _ in entries]
                for expected, (entry, data), (name, _) in zip(
                    range(last, last + len(acks)), entries, acks, strict=True
                ):
                    await self._client.publish(
                        self._subject(entry), data, reply=f"{inbox}.{name}", headers={EXPECTED: str(expected)}
                    )
                for _, ack in acks:
                    await ack
        return last + len(entries)

    def _require_room(self, entries: Sequence[Encoded]) -> None:
        longest = max((len(data) for _, data in entries), default=0)
        if longest > self.room:
            raise Refused(
                f"an entry has {longest} bytes, and NATS takes {self.room}: raise max_payload there, "
                f"and max_msg_size of stream {self._name} if it has one"
            )

    async def _open_ack_inbox(self) -> str:
        if not self._ack_inbox:
            inbox = self._client.new_inbox()
            await self._client.subscribe(f"{inbox}.*", cb=self._acknowledge)
            self._ack_inbox = inbox
        return self._ack_inbox

    def _expect_ack(self) -> tuple[str, asyncio.Future[None]]:
        self._sent += 1
        name = str(self._sent)
        self._acks[name] = asyncio.get_running_loop().create_future()
        return name, self._acks[name]

    async def _acknowledge(self, message: Msg) -> None:
        ack = self._acks.pop(message.subject.rpartition(".")[2], None)
        if ack is None or ack.done():
            return
        if message.headers and "Status" in message.headers:
            ack.set_exception(self._connection.no_stream())
        elif error := _decode_ack(message.data).error:
            ack.set_exception(self._connection.refused(error.code, error.err_code, error.description))
        else:
            ack.set_result(None)
        # Of several that are refused together, only the first is awaited: mark the others as seen.
        ack.exception()

    def _subject(self, entry: Entry) -> str:
        match entry:
            case State():
                return f"{self._name}.state"
            case Part(board=str(board)):
                return self._subject_of(board)
            case _:
                return f"{self._name}.all"

    def _subject_of(self, board: str) -> str:
        return f"{self._name}.board.{token(board)}"

    # Reading

    async def last_state(self) -> tuple[int, bytes] | None:
        """Return the last state that the stream has, with its sequence."""
        try:
            with self._connection.errors():
                found = await self._jetstream.get_msg(self._name, subject=f"{self._name}.state")
        except NoMessageError:
            return None
        return (found.seq, found.data) if found.seq is not None and found.data is not None else None

    async def states(self) -> list[Delivered]:
        """Return all states that the stream has."""
        return [each async for each in self._read(1, [f"{self._name}.state"])]

    async def read(self, first: int, last: int, boards: Collection[str] | None = None) -> AsyncGenerator[Delivered]:
        """Read the entries that there are between two sequences, perhaps without the parts of other boards."""
        async with contextlib.aclosing(self._read(first, self._subjects(boards))) as entries:
            async for each in entries:
                if each.sequence <= last:
                    yield each
                if each.sequence >= last:
                    return

    async def _read(self, first: int, subjects: Sequence[str]) -> AsyncGenerator[Delivered]:
        """Read the entries that there are from a sequence on."""
        consumer = await self._consume(first, subjects)
        try:
            pending = consumer.pending
            while pending:
                for each in await consumer.arrived():
                    yield each
                    pending = each.pending
        finally:
            await consumer.close()

    async def follow(self, first: int, boards: Collection[str] | None) -> Consumer:
        """Have entries delivered from a sequence on, as they come, perhaps without the parts of other boards."""
        return await self._consume(first, self._subjects(boards))

    async def _consume(self, first: int, subjects: Sequence[str]) -> Consumer:
        consumer = Consumer(self._connection)
        with self._connection.errors():
            try:
                await consumer.open(self._jetstream, first, subjects)
            except BaseException:
                await consumer.close()
                raise
        return consumer

    def _subjects(self, boards: Collection[str] | None) -> Sequence[str]:
        """Return the subjects to name for the parts of these boards and what concerns all; none for everything."""
        if boards is None or len(boards) > MAX_BOARDS:
            return ()
        subjects = [f"{self._name}.all", f"{self._name}.state", *map(self._subject_of, boards)]
        # They must fit into one request, beside the consumer's other settings.
        return subjects if sum(len(subject) + 3 for subject in subjects) < self._connection.room // 2 else ()
