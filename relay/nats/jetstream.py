"""The stream in NATS JetStream: how publishers append to it, and edges read it.

Subjects, all under the stream's name: `NAME.board.TOKEN` for the parts of each board, `NAME.all` for commits and for
parts that concern all boards, `NAME.state` for states. `NAME.ask.PLACE.…` is not in the stream: there, edges request
boards and decisions of relay.may_read. Each turn of an active publisher has its own place, which its states contain.
Answers go to inboxes that begin with `_INBOX_publisher` and `_INBOX_edge`, so that the permissions of the server can
distinguish them; deploy/nats-accounts.conf lists every subject.

Rules:
- An entry is appended only if the stream ends where its publisher expects: JetStream compares the sequence. So one of
  two publishers is refused, and an entry that was sent twice is stored once. JetStream's deduplication by message id
  is not used, because it would also drop what a publisher must repeat after an interruption.
- An entry that does not fit into a message is refused before it is sent, because NATS would close the connection.
- Entries arrive in the order of their sequences. The reader's assembly notices missing ones.
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
"""Timeout for answers of JetStream, and for storing entries."""


class _Error(msgspec.Struct):
    code: int
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    error: _Error | None = None


_decode_ack: Final = msgspec.json.Decoder(_Ack).decode


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sequences of the stream's first and last entry; if it is empty, the first is greater."""

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
        """Return the sequences of the entries. Raises NoStreamError if there is no stream."""
        with self._connection.errors():
            info = await self._jetstream.stream_info(self._name)
        self._max_entry = max(0, info.config.max_msg_size or 0)
        return Bounds(info.state.first_seq, info.state.last_seq)

    async def make(self, seconds: float, size: int, replicas: int) -> None:
        """Create the stream if there is none, with limits for the age (seconds) and total size (bytes) of entries."""
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
        """Append to a stream whose last entry is `last`; return the sequence of the new last entry.

        Raises Outrun if the stream ends elsewhere, and Refused if an entry is too large or JetStream refuses it.

        All entries are sent at once. The server takes them in order, and none after one that it refuses, unless
        another publisher's entry has the expected sequence by then; then the later entries are inconsistent, and
        readers ignore them. nats-py's own function to publish many messages does not report refusals.
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
        # Of several refused ones, only the first is awaited. Mark the others as retrieved.
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
        """Return the stream's last state with its sequence; None if it has none."""
        try:
            with self._connection.errors():
                found = await self._jetstream.get_msg(self._name, subject=f"{self._name}.state")
        except NoMessageError:
            return None
        return (found.seq, found.data) if found.seq is not None and found.data is not None else None

    async def states(self) -> list[Delivered]:
        """Return all states in the stream."""
        return [each async for each in self._read(1, [f"{self._name}.state"])]

    async def read(self, first: int, last: int, boards: Collection[str] | None = None) -> AsyncGenerator[Delivered]:
        """Read the existing entries between two sequences, perhaps without the parts of other boards."""
        async with contextlib.aclosing(self._read(first, self._subjects(boards))) as entries:
            async for each in entries:
                if each.sequence <= last:
                    yield each
                if each.sequence >= last:
                    return

    async def _read(self, first: int, subjects: Sequence[str]) -> AsyncGenerator[Delivered]:
        """Read the existing entries from a sequence on."""
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
        """Follow the entries from a sequence on, perhaps without the parts of other boards."""
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
        """Return the subjects of these boards and of what concerns all boards; none means everything."""
        if boards is None or len(boards) > MAX_BOARDS:
            return ()
        subjects = [f"{self._name}.all", f"{self._name}.state", *map(self._subject_of, boards)]
        # They must fit into one request with the consumer's other settings.
        return subjects if sum(len(subject) + 3 for subject in subjects) < self._connection.room // 2 else ()
