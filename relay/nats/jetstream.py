"""NATS JetStream: how publishers append to the stream, and edges read it. The only module that imports nats.

Subjects, all under the stream's name: `NAME.board.TOKEN` for the parts of each board, `NAME.all` for what concerns
all boards, `NAME.state` for states. These are in the stream. Not in it are `NAME.ask.PLACE.…`, on which edges ask for
boards and for what relay.may_read says; each publisher that is active has a place of its own, which its states name.
Answers come to inboxes that begin with `_INBOX_publisher` and `_INBOX_edge`, so that a server's permissions can tell
them apart: deploy/nats.conf names every subject that is used.

Rules:
- An entry is appended only if the stream ends where its publisher believes that it does: JetStream compares the
  sequence. So of two publishers one is refused, and what was sent twice is stored once. JetStream's de-duplication by
  message id is not used: it would also drop what a publisher must say again after an interruption.
- What does not fit into a message is refused here, before it is sent: NATS would end the connection for it.
- A publisher that is asked says at once that it is at work, and again while it is. So one that is gone is noticed in
  `SILENT_SECONDS`, however long a board may take.
- Entries are read by sequence, without a gap: a sequence that is missing is an error, never passed over.
- A connection is never mended. Whatever goes wrong ends it, and who uses it makes another and looks where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec
import nats.errors
import nkeys  # type: ignore[import-untyped]  # it has no types
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import APIError

from relay.config.settings import Settings
from relay.nats.stream import Encoded, Entry, Part, State, token

CONNECT_SECONDS: Final = 5
"""How long connecting may take."""

CLOSE_SECONDS: Final = 1
"""How long closing may take."""

ANSWER_SECONDS: Final = 5.0
"""How long JetStream may take to answer, to store what was sent, or to deliver what it has."""

PING_SECONDS: Final = 2
"""How often NATS is pinged; after two pings without an answer the connection is dead."""

BEAT_SECONDS: Final = 1.0
"""How often JetStream says that there is nothing new. After `SILENT_BEATS` of these in silence it is gone."""
SILENT_BEATS: Final = 3

WORKING_SECONDS: Final = 1.0
"""How often a publisher says that it is at work on an answer."""

SILENT_SECONDS: Final = 2.0
"""How long a publisher may be silent that was asked."""

ANSWER_BYTES: Final = 256 * 1024
"""Of so many bytes is a part of an answer, at most."""

_INBOXES: Final = ("_INBOX", "_R_")
"""How a subject begins on which an answer is waited for, in this account of the server's or in another."""

_WRONG_LAST_SEQUENCE: Final = 10071
_NO_MESSAGE: Final = 10037
_EXPECTED: Final = "Nats-Expected-Last-Sequence"
_PARTS: Final = "Relay-Parts"
_WORKING: Final = b"working"
"""Not empty: where questions come from another account, an empty message ends the answer."""
_PLACE_TOKENS: Final = 9
_LONGEST_SEQUENCE: Final = 20
_HEADER_BYTES: Final = len(f"NATS/1.0\r\n{_EXPECTED}: \r\n\r\n") + _LONGEST_SEQUENCE
"""What an entry takes beside itself; NATS counts it as a part of the message."""


class _Error(msgspec.Struct):
    code: int
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    error: _Error | None = None


_decode_ack: Final = msgspec.json.Decoder(_Ack).decode


class StreamError(Exception):
    """Why the stream cannot be used, in one line."""


class Refused(StreamError):
    """An entry is not taken, for what it is."""


class Outrun(StreamError):
    """Another publisher has appended to the stream."""


class Gap(StreamError):
    """Entries are missing that followed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sequences of the first and the last entry that the stream has; if it has none, the first is greater."""

    first: int
    last: int


@dataclass(slots=True)
class _Arrivals:
    """What has arrived and was not taken."""

    entries: deque[tuple[int, bytes, int]] = field(default_factory=deque)
    any: asyncio.Event = field(default_factory=asyncio.Event)


class Stream:
    """The stream, over one connection to NATS. All methods raise StreamError."""

    def __init__(self, client: Client, name: str, domain: str = "") -> None:
        self._client = client
        self._name = name
        self._jetstream = JetStreamContext(client, domain=domain or None, timeout=ANSWER_SECONDS)
        self._longest = 0
        self._fault: str | None = None
        self._ended = asyncio.Event()
        self._ack_inbox = ""
        self._sent = 0
        self._acks: dict[str, asyncio.Future[None]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, servers: str, role: str) -> AsyncIterator[Self]:
        """Connect."""
        client = Client()
        stream = cls(client, settings.NATS_STREAM, settings.NATS_DOMAIN)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect(
                    _servers(servers),
                    name=f"relay {role}",
                    # Who checks does so with an edge's rights.
                    inbox_prefix="_INBOX_publisher" if role == "publisher" else "_INBOX_edge",
                    allow_reconnect=False,
                    # Without these it tries for ever to connect for the first time.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=2,
                    error_cb=stream._failed,
                    closed_cb=stream._closed,
                    **_security(settings, servers),
                )
        except (nats.errors.Error, nkeys.NkeysError, OSError, ValueError, TimeoutError) as ex:
            reason = f"{stream._fault or _line(ex)}{_wanted(ex)}"
            await _close(client)
            raise StreamError(f"cannot connect to NATS at {_shown(servers)}: {reason}") from None
        try:
            yield stream
        finally:
            await _close(client)

    async def _failed(self, ex: Exception) -> None:
        self._fault = _line(ex)

    async def _closed(self) -> None:
        self._ended.set()

    async def ended(self) -> None:
        """Wait until the connection has ended; raises StreamError then."""
        await self._ended.wait()
        raise StreamError(f"the connection to NATS has ended: {self._fault or 'it was closed'}")

    # The stream itself

    async def bounds(self) -> Bounds:
        """Tell which entries there are. Raises StreamError if there is no stream."""
        with self._one_line():
            info = await self._jetstream.stream_info(self._name)
        self._longest = max(0, info.config.max_msg_size or 0)
        return Bounds(info.state.first_seq, info.state.last_seq)

    async def make(self, seconds: float, size: int, replicas: int) -> None:
        """Make the stream, if there is none, to keep entries so long and so many bytes of them."""
        with contextlib.suppress(_NoStream):
            await self.bounds()
            return
        with self._one_line():
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
        """How many bytes an entry may have, or a question."""
        most = self._client.max_payload
        return (min(most, self._longest) if self._longest else most) - _HEADER_BYTES

    async def append(self, entries: Sequence[Encoded], last: int) -> int:
        """Append to a stream whose last entry is this one; return which then is. Raises Outrun if it is another.

        Raises Refused if an entry is too large, or JetStream does not take it.

        All are sent at once, for the server takes them in their order, and none after one that it refuses; unless
        another publisher's stands where that one should. Then those after it do not follow on, and no assembly
        believes them. nats-py's own way to send many never hears of a refusal.
        """
        for _, data in entries:
            self._require_room("an entry", data)
        with self._one_line():
            async with asyncio.timeout(ANSWER_SECONDS):
                if not self._ack_inbox:
                    inbox = self._client.new_inbox()
                    await self._client.subscribe(f"{inbox}.*", cb=self._acknowledge)
                    self._ack_inbox = inbox
                acks = [self._expect_ack() for _ in entries]
                for (entry, data), (token, _) in zip(entries, acks, strict=True):
                    headers = {_EXPECTED: str(last)}
                    await self._client.publish(
                        self._subject(entry), data, reply=f"{self._ack_inbox}.{token}", headers=headers
                    )
                    last += 1
                for _, ack in acks:
                    await ack
        return last

    def _require_room(self, what: str, data: bytes) -> None:
        if len(data) > self.room:
            raise Refused(
                f"{what} has {len(data)} bytes, and NATS takes {self.room}: raise max_payload there, "
                f"and max_msg_size of stream {self._name} if it has one"
            )

    def _expect_ack(self) -> tuple[str, asyncio.Future[None]]:
        self._sent += 1
        token = str(self._sent)
        self._acks[token] = asyncio.get_running_loop().create_future()
        return token, self._acks[token]

    async def _acknowledge(self, message: Msg) -> None:
        ack = self._acks.pop(message.subject.rpartition(".")[2], None)
        if ack is None or ack.done():
            return
        if message.headers and "Status" in message.headers:
            ack.set_exception(_NoStream(self._no_stream))
        elif error := _decode_ack(message.data).error:
            ack.set_exception(self._refused(error.code, error.err_code, error.description))
        else:
            ack.set_result(None)
        # Of those that are refused together, only the first is awaited.
        ack.exception()

    def _subject(self, entry: Entry) -> str:
        match entry:
            case State():
                return f"{self._name}.state"
            case Part():
                return f"{self._name}.all" if entry.board is None else f"{self._name}.board.{token(entry.board)}"

    # Reading

    async def last_state(self) -> tuple[int, bytes] | None:
        """Return the last state that the stream has, with its sequence."""
        try:
            with self._one_line():
                found = await self._jetstream.get_msg(self._name, subject=f"{self._name}.state")
        except _NoMessage:
            return None
        return (found.seq, found.data) if found.seq is not None and found.data is not None else None

    async def states(self) -> list[tuple[int, bytes]]:
        """Return all states that the stream has, each with its sequence."""
        found: list[tuple[int, bytes]] = []
        async with self._consumer(1, f"{self._name}.state") as (arrivals, count):
            pending = count
            while pending:
                arrived = await self._arrived(arrivals)
                found += [(sequence, data) for sequence, data, _ in arrived]
                pending = arrived[-1][2]
        return found

    async def read(self, first: int, last: int) -> AsyncIterator[tuple[int, bytes]]:
        """Read these entries, without a gap, each with its sequence."""
        if first > last:
            return
        async with self._consumer(first) as (arrivals, _):
            async for entries in self._contiguous(arrivals, first):
                for sequence, data in entries:
                    yield sequence, data
                    if sequence == last:
                        return

    async def follow(self, first: int) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Read the entries from this one on, without a gap, as they come and for ever; those that came together."""
        async with self._consumer(first) as (arrivals, _):
            async for entries in self._contiguous(arrivals, first):
                yield entries

    async def _contiguous(self, arrivals: _Arrivals, first: int) -> AsyncIterator[list[tuple[int, bytes]]]:
        while True:
            entries = await self._arrived(arrivals)
            for expected, (sequence, _, _) in enumerate(entries, first):
                if sequence != expected:
                    raise Gap(f"entry {expected} is missing in stream {self._name}: found {sequence}")
            first += len(entries)
            yield [(sequence, data) for sequence, data, _ in entries]

    async def _arrived(self, arrivals: _Arrivals) -> list[tuple[int, bytes, int]]:
        """Wait for entries, while JetStream says now and then that there are none."""
        while not arrivals.entries:
            try:
                async with asyncio.timeout(SILENT_BEATS * BEAT_SECONDS):
                    await arrivals.any.wait()
            except TimeoutError:
                raise StreamError(f"stream {self._name} is silent: is it still there?") from None
            arrivals.any.clear()
        found = list(arrivals.entries)
        arrivals.entries.clear()
        return found

    @asynccontextmanager
    async def _consumer(self, first: int, subject: str | None = None) -> AsyncIterator[tuple[_Arrivals, int]]:
        """Have entries delivered from this one on; tells also how many there are already."""
        arrivals = _Arrivals()

        async def take(message: Msg) -> None:
            if message.headers and "Status" in message.headers:
                await self._obey(message)
            else:
                sequence, pending = place(message.reply)
                arrivals.entries.append((sequence, message.data, pending))
            arrivals.any.set()

        inbox = self._client.new_inbox()
        with self._one_line():
            # Without limits of its own: JetStream sends no more than it is told has arrived.
            deliveries = await self._client.subscribe(inbox, cb=take, pending_msgs_limit=0, pending_bytes_limit=0)
            consumer = await self._jetstream.add_consumer(
                self._name,
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=first,
                filter_subject=subject,
                ack_policy=api.AckPolicy.NONE,
                deliver_subject=inbox,
                idle_heartbeat=BEAT_SECONDS,
                flow_control=True,
                inactive_threshold=SILENT_BEATS * BEAT_SECONDS,
                mem_storage=True,
                num_replicas=1,
            )
        try:
            yield arrivals, consumer.num_pending or 0
        finally:
            # The server forgets a consumer by itself to which nobody listens.
            with contextlib.suppress(nats.errors.Error, OSError):
                await deliveries.unsubscribe()

    async def _obey(self, message: Msg) -> None:
        """Answer a status of the consumer, where it says that it waits for us."""
        headers = message.headers or {}
        if waits := message.reply or headers.get("Nats-Consumer-Stalled"):
            await self._client.publish(waits)

    # Asking the publisher

    async def ask(self, place: str, what: str, question: bytes) -> tuple[bytes, bytes] | None:
        """Ask the publisher with this place; return the head and the body of its answer, or None if it is silent.

        Raises Refused if the question is too long.
        """
        self._require_room("a question", question)
        inbox = self._client.new_inbox()
        with self._one_line():
            answers = await self._client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
            try:
                await self._client.publish(f"{self._name}.ask.{place}.{what}", question, reply=inbox)
                while not (head := await answers.next_msg(timeout=SILENT_SECONDS)).headers:
                    pass  # it is at work
                if _PARTS not in head.headers:
                    return None  # NATS says that nobody listens there
                parts = [await answers.next_msg(timeout=SILENT_SECONDS) for _ in range(int(head.headers[_PARTS]))]
            except nats.errors.TimeoutError:
                return None
            finally:
                with contextlib.suppress(nats.errors.Error):
                    await answers.unsubscribe()
        return head.data, b"".join(part.data for part in parts)

    @asynccontextmanager
    async def answering(
        self, place: str, what: str, answer: Callable[[bytes], Awaitable[tuple[bytes, bytes] | None]]
    ) -> AsyncIterator[None]:
        """Answer what edges ask, each question by itself; None answers nothing."""
        running: set[asyncio.Task[None]] = set()

        async def reply(question: Msg) -> None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._reply(question.reply, asyncio.ensure_future(answer(question.data)))

        async def take(question: Msg) -> None:
            # No server checks whether who asks may write where the answer is to go: it could be into the stream.
            if question.reply.startswith(_INBOXES):
                task = asyncio.create_task(reply(question))
                running.add(task)
                task.add_done_callback(running.discard)

        with self._one_line():
            questions = await self._client.subscribe(f"{self._name}.ask.{place}.{what}", cb=take)
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            with contextlib.suppress(nats.errors.Error, OSError):
                await questions.unsubscribe()

    async def _reply(self, inbox: str, answer: asyncio.Future[tuple[bytes, bytes] | None]) -> None:
        try:
            while not answer.done():
                await self._client.publish(inbox, _WORKING)
                await asyncio.wait([answer], timeout=WORKING_SECONDS)
        finally:
            answer.cancel()
        if (found := answer.result()) is None:
            return
        head, body = found
        size = min(ANSWER_BYTES, self.room)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        await self._client.publish(inbox, head, headers={_PARTS: str(len(parts))})
        for part in parts:
            await self._client.publish(inbox, part)

    @contextlib.contextmanager
    def _one_line(self) -> Any:
        """Say in one line what went wrong."""
        try:
            yield
        except APIError as ex:
            raise self._refused(ex.code or 0, ex.err_code or 0, ex.description or _line(ex)) from None
        except TimeoutError:
            raise StreamError(f"NATS does not answer: {self._fault or 'is JetStream enabled?'}") from None
        except (nats.errors.Error, OSError) as ex:
            raise StreamError(f"NATS: {self._fault or _line(ex)}") from None

    def _refused(self, code: int, number: int, description: str) -> StreamError:
        if number == _WRONG_LAST_SEQUENCE:
            return Outrun(f"another publisher has appended to stream {self._name}")
        if number == _NO_MESSAGE:
            return _NoMessage(description)
        if code == HTTPStatus.NOT_FOUND:
            return _NoStream(self._no_stream)
        return Refused(f"JetStream refused: {description}")

    @property
    def _no_stream(self) -> str:
        return f"NATS has no stream {self._name}: start relay publish, which makes it"


class _NoStream(StreamError):
    """There is no such stream."""


class _NoMessage(StreamError):
    """There is no such message."""


async def _close(client: Client) -> None:
    """Close a connection, also one that was not made; TLS would wait long for a server that is silent."""
    if not (client.is_connecting or client.is_connected):
        return
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


def place(reply: str) -> tuple[int, int]:
    """Read an entry's sequence, and how many follow it already, where JetStream says them: in the subject of acks.

    nats-py's own way to do so takes a quarter of what an edge takes for an entry that nobody follows.
    """
    tokens = reply.split(".")
    # Of $JS.ACK.stream.consumer.delivered.SEQUENCE.of consumer.time.PENDING; newer servers may name a domain and an
    # account before the stream, and more after all.
    first = 5 if len(tokens) == _PLACE_TOKENS else 7
    return int(tokens[first]), int(tokens[first + 3])


def _servers(servers: str) -> list[str]:
    return [server.strip() for server in servers.split(",")]


def _shown(servers: str) -> str:
    """Name the servers without what may be a password."""
    return ", ".join(urlsplit(server).netloc.rpartition("@")[2] for server in _servers(servers))


def _security(settings: Settings, servers: str) -> dict[str, Any]:
    """Tell by what we know NATS, and it us."""
    given: dict[str, Any] = {}
    if settings.NATS_CREDENTIALS:
        given["user_credentials"] = _credentials(Path(settings.NATS_CREDENTIALS))
    if settings.NATS_CA or settings.NATS_CERT or servers.startswith("tls://"):
        context = ssl.create_default_context(cafile=settings.NATS_CA or None)
        if settings.NATS_CERT:
            context.load_cert_chain(settings.NATS_CERT, settings.NATS_KEY or None)
        given["tls"] = context
    return given


def _wanted(ex: BaseException) -> str:
    """Guess what a server wants that ends the connection within the handshake: TLS 1.3 may not let it say so."""
    wanted = isinstance(ex, ConnectionError | ssl.SSLError) and not isinstance(ex, ssl.SSLCertVerificationError)
    return " (does it want a certificate, NATS_CERT, or another one?)" if wanted else ""


def _credentials(path: Path) -> Path:
    """Look whether a file is one of credentials; in another, nats would seek them for ever."""
    text = path.read_text()
    if any(f"BEGIN {part}" not in text for part in ("NATS USER JWT", "USER NKEY SEED")):
        raise ValueError(f"{path} is no file of credentials, with a JWT and a seed")
    return path


def _says_something(record: logging.LogRecord) -> bool:
    """Tell what asyncio warns of for nothing: nats-py reads TLS with what was made for a connection without it."""
    return not record.getMessage().startswith("returning true from eof_received()")


logging.getLogger("asyncio").addFilter(_says_something)


def _line(ex: BaseException) -> str:
    text = " ".join(str(ex).split()).removeprefix("nats: ")
    return text or type(ex).__name__
