"""The stream: what a publisher tells edges through NATS JetStream, entry after entry, and what that amounts to. Pure.

The stream has what the feed would tell a hub. A *part* is what some transactions mean to one board, or to all; the
parts of one batch stand together, and the last of them says to which position they lead. A *state* says where the
stream stands and which cursors are good; there is one every second, so whoever comes finds one near the end.

Rules:
- Publishers append and never take back. Who was interrupted leaves a batch without an end; the next publisher begins
  with a state, and with the whole batch anew. So what was gathered of a batch counts for nothing before its end.
- Batches are numbered, and each says which position it goes on from, as states do. An `Assembly`, which takes the
  entries in their order, makes sure of both: a stream that was restored or written by a stranger is not believed.
- Messages are encoded by the publisher, once for all edges, and stay as they are.
- No entry takes more bytes than NATS does, measured on the entry as it is sent: a part is split where it must be, and
  a message that fits into no entry makes its board be read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from relay.model.cursor import Era, Reason
from relay.model.messages import Meaning, Message
from relay.model.snapshot import Snapshot

GATHER_BYTES: Final = 4 * 1024 * 1024
"""So much of one batch is gathered; what is larger is passed on in parts."""

ENTRY_BYTES: Final = 256 * 1024
"""About how large the messages of one entry are together."""

LONGEST_TOKEN: Final = 200
"""A subject's token that would be longer than this ends in a hash instead."""


class StreamBroken(Exception):
    """The entries do not follow each other: why, in one line."""


class Told(msgspec.Struct, frozen=True):
    """What a transaction means to one board: its messages, or none and why the board must be read again."""

    xid: int
    messages: list[msgspec.Raw] | None = None
    reason: Reason = "changes_missing"


class End(msgspec.Struct, frozen=True):
    """Where a batch ends: it has all that became visible between two positions."""

    after: str
    position: str


class Part(msgspec.Struct, frozen=True, tag="part", tag_field="entry", omit_defaults=True):
    """A part of a batch: what its transactions mean to one board, or to all that there are.

    `cursor` is one of that board, for who has applied this and all before it. The last part of a batch has its end.
    """

    publisher: str
    batch: int
    board: str | None = None
    told: list[Told] = []
    sync: Reason | None = None
    cursor: str | None = None
    end: End | None = None


class State(msgspec.Struct, frozen=True, tag="state", tag_field="entry"):
    """Where the stream stands: after so many batches, at this position, with these cursors; it was at `after` before.

    `stream` names all that goes on from one beginning. With `lost`, it does not go on from what was before. Edges ask
    this publisher at `asked_at`. `problem` says why nothing comes from Postgres. All that was committed `lag` seconds
    ago is in the stream.
    """

    stream: str
    publisher: str
    batch: int
    after: str
    position: str
    run: str
    keys: dict[str, bytes]
    shape: str
    asked_at: str
    lost: Reason | None = None
    problem: str | None = None
    lag: float = 0.0

    @property
    def era(self) -> Era:
        """The cursors that are good."""
        return Era(self.run, self.keys, self.shape)


Entry = Part | State

T = TypeVar("T")


class Encoded(NamedTuple):
    """An entry, and what is sent of it."""

    entry: Entry
    data: bytes

    @classmethod
    def of(cls, entry: Entry) -> Encoded:
        return cls(entry, encode(entry))


class BoardRefused(msgspec.Struct, frozen=True, tag="refused", tag_field="answer"):
    """What comes before the error with which a publisher answers for a board that it cannot read."""


class BoardHead(msgspec.Struct, frozen=True, tag="board", tag_field="answer"):
    """What comes with a board that a publisher answers with: the server's run, and the snapshot it was read in."""

    run: str
    snapshot: str


class _Typed(msgspec.Struct):
    type: str


encode: Final = msgspec.json.Encoder().encode
_decoder: Final[msgspec.json.Decoder[Entry]] = msgspec.json.Decoder(Entry)
_type_of: Final = msgspec.json.Decoder(_Typed).decode


def decode(data: bytes) -> Entry:
    """Read an entry. Raises StreamBroken."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as ex:
        raise StreamBroken(f"an entry is not the relay's, or of another version: {ex}") from None


def can_name(board: str, room: int) -> bool:
    """Whether entries and questions of at most so many bytes can name a board, and say something of it.

    A name with half a surrogate pair, as databases have it that do not know their encoding, is no text for JSON.
    """
    try:
        return len(encode(board)) <= room // 2
    except UnicodeEncodeError:
        return False


def fitted(part: Part, room: int) -> Iterator[Encoded]:
    """Give a part as entries of about ENTRY_BYTES, and of at most `room` bytes; the last has its cursor and its end.

    After a transaction with a message for which there is no room, the board is to be read again. If there is no room
    for cursor and end, the end has an entry of its own.
    """
    bare = msgspec.structs.replace(part, told=[], cursor=None, end=None)
    limit = room - len(encode(bare)) - len(b',"told":[]')
    pieces = (piece for told in part.told for piece in _pieces(told, limit))
    *portions, last = list(_portions(pieces, lambda told: len(encode(told)) + 1, limit)) or [[]]
    for portion in portions:
        yield Encoded.of(msgspec.structs.replace(bare, told=portion))
    whole = Encoded.of(msgspec.structs.replace(part, told=last))
    if len(whole.data) <= room:
        yield whole
        return
    if last:
        yield Encoded.of(msgspec.structs.replace(bare, told=last))
    if part.end:
        yield Encoded.of(Part(part.publisher, part.batch, end=part.end))


def _pieces(told: Told, limit: int) -> Iterator[Told]:
    """Split what a transaction means to a board into pieces of at most so many bytes."""
    room = limit - len(encode(Told(told.xid, []))) - 1
    if told.messages is None or any(len(message) > room for message in told.messages):
        yield Told(told.xid, reason=told.reason)
        return
    for portion in _portions(told.messages, lambda message: len(message) + 1, room):
        yield Told(told.xid, portion)


def _portions(items: Iterable[T], size_of: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Split into portions of about ENTRY_BYTES, and of at most `limit`."""
    portion: list[T] = []
    size = 0
    for item in items:
        item_size = size_of(item)
        if portion and size + item_size > min(ENTRY_BYTES, limit):
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += item_size
    if portion:
        yield portion


def token(board: str) -> str:
    """Give a board's name as a subject's token: percent-encoded, a dot too; shortened with a hash if it is long."""
    text = quote(board, safe="").replace(".", "%2E") or "%"
    if len(text) <= LONGEST_TOKEN:
        return text
    return f"{text[: LONGEST_TOKEN // 2]}%-{hashlib.sha256(board.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction means to one board, or with `sync` to all: a transaction as a hub takes it."""

    xid: int
    board: str | None
    sync: Reason | None
    told: Told

    def messages(self, boards: Container[str | None]) -> Mapping[str, Meaning]:
        """Give the board its messages, if it is one of these, or the reason why it must be read again."""
        if self.board is None or self.board not in boards:
            return {}
        its = self.told
        return {self.board: its.reason if its.messages is None else [_message(raw) for raw in its.messages]}


def _message(raw: msgspec.Raw) -> Message:
    return Message(_type_of(raw).type, bytes(raw))


@dataclass(frozen=True, slots=True)
class Batch:
    """Transactions, and the position to which they lead; None if more of the same batch follows."""

    transactions: Sequence[Committed]
    position: Snapshot | None


@dataclass(frozen=True, slots=True)
class Begin:
    """Go on from a position with these cursors; `lost` says why not from the one before."""

    era: Era
    position: Snapshot
    lost: Reason | None


class Assembly:
    """Makes of entries, from a state on, what a hub is told.

    Where `whole`, nothing of a batch is passed on before its end, however large it is.
    """

    def __init__(self, state: State, *, whole: bool = False) -> None:
        self.state = state
        self.position = _position(state.position)
        self.batch = state.batch
        self._whole = whole
        self._gathered: list[Committed] = []
        self._bytes = 0
        self._passed_on = False

    def take(self, entry: Entry) -> Iterator[Batch | Begin]:
        """Take the next entry; say what it brings. Raises StreamBroken."""
        if isinstance(entry, State):
            yield from self._state(entry)
        else:
            yield from self._part(entry)

    def _state(self, state: State) -> Iterator[Batch | Begin]:
        before, self.state = self.state, state
        another = state.stream != before.stream
        cut_short = self._passed_on
        if self._gathered and state.publisher == before.publisher:
            raise StreamBroken("a state stands in the midst of a batch")
        self._gathered, self._bytes, self._passed_on = [], 0, False
        lost: Reason | None = state.lost or ("journal_pruned" if another else None)
        if not lost and state.batch != self.batch:
            raise StreamBroken(f"a state is of batch {state.batch}: expected {self.batch}")
        position = _position(state.position)
        if not lost and (state.after != str(self.position) or not position.covers(self.position)):
            raise StreamBroken(
                f"a state goes from {state.after} to {state.position}: expected on from {self.position}"
            )
        self.batch, self.position = state.batch, position
        lost = lost or ("batch_cut_short" if cut_short else None)
        if lost or state.era != before.era:
            yield Begin(state.era, position, lost)
        else:
            yield Batch((), position)

    def _part(self, part: Part) -> Iterator[Batch]:
        if (part.publisher, part.batch) != (self.state.publisher, self.batch + 1):
            raise StreamBroken(
                f"a part is of batch {part.batch} by {part.publisher}: "
                f"expected {self.batch + 1} by {self.state.publisher}"
            )
        self._gathered += _committed(part)
        self._bytes += sum(len(raw) for told in part.told for raw in told.messages or ())
        if part.end:
            if part.end.after != str(self.position):
                raise StreamBroken(f"a batch goes on from {part.end.after}: expected {self.position}")
            self.position = _position(part.end.position)
            self.batch += 1
            yield Batch(self._take_gathered(), self.position)
            self._passed_on = False
        elif self._bytes > GATHER_BYTES and not self._whole:
            self._passed_on = True
            yield Batch(self._take_gathered(), None)

    def _take_gathered(self) -> Sequence[Committed]:
        gathered, self._gathered, self._bytes = self._gathered, [], 0
        return gathered


def _committed(part: Part) -> Iterable[Committed]:
    return [Committed(told.xid, part.board, part.sync, told) for told in part.told]


def _position(text: str) -> Snapshot:
    try:
        return Snapshot.parse(text)
    except ValueError as ex:
        raise StreamBroken(str(ex)) from None
