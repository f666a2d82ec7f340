"""Delivery: encodes what a board's subscribers are sent, once, and sends it.

All plain subscribers share their bytes, and so do all resumable ones, as far as messages are framed for them in the
same way. A delivery is sent whole to every subscriber that is ready when it begins. A large one is sent in turns, one
buffer to each subscriber at a time, so that none waits for another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from relay.hub.board import Delivery
from relay.hub.ports import Frame, Subscriber
from relay.model import messages
from relay.model.cursor import Epoch
from relay.model.messages import Message
from relay.model.selection import board_of

BUFFER_BYTES: Final = 64 * 1024
"""Approximate number of bytes sent to one subscriber before the next one has its turn."""


class Sender:
    """Sends to subscribers.

    For metrics: `sent` counts messages by type, once per subscriber, and `sent_bytes` their bytes on the wire.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.sent_bytes = 0

    def send(self, subscribers: AbstractSet[Subscriber], found: Sequence[Message]) -> list[Subscriber]:
        """Send messages to the subscribers that are ready; return the others."""
        behind = [subscriber for subscriber in subscribers if not subscriber.ready]
        for frame, alike in _by_frame(subscriber for subscriber in subscribers if subscriber.ready):
            self._write(alike, map(frame, found))
        return behind

    def answer(self, subscribers: Sequence[Subscriber], message: Message) -> None:
        """Send one short message to subscribers, whether they are ready or not."""
        for frame, alike in _by_frame(subscribers):
            self._write(alike, [frame(message)])

    def count(self, kinds: Counter[str], receivers: int) -> None:
        """Count messages that were sent to this many subscribers."""
        self.sent.update({kind: count * receivers for kind, count in kinds.items()})

    def _write(self, subscribers: Sequence[Subscriber], frames: Iterable[bytes]) -> None:
        for buffer in _buffers(frames):
            self.sent_bytes += len(buffer) * len(subscribers)
            for subscriber in subscribers:
                subscriber.send(buffer)


def _by_frame(subscribers: Iterable[Subscriber]) -> Iterable[tuple[Frame, list[Subscriber]]]:
    """Group subscribers by how messages are framed for them."""
    groups: defaultdict[Frame, list[Subscriber]] = defaultdict(list)
    for subscriber in subscribers:
        groups[subscriber.frame].append(subscriber)
    return groups.items()


def for_plain(delivery: Delivery[Subscriber], data: bytes) -> list[Message]:
    """Return the messages for plain subscribers. `data` is the whole board, if it is sent."""
    sync = [messages.board_sync(data)] if delivery.synced else []
    return [*sync, *_changes(delivery)]


def for_resumable(name: str, delivery: Delivery[Subscriber], data: bytes, epoch: Epoch) -> list[Message]:
    """Return the messages for resumable subscribers: the same, in batches with cursors."""
    found = list(_changes(delivery))
    at = epoch.seal(name, delivery.at) if delivery.at else None
    sent: list[Message] = []
    if delivery.synced:
        since = epoch.seal(name, delivery.synced) if found or at is None else at
        sent.append(messages.resumable_sync(board_of(name), since, delivery.reason, data))
    if found or not delivery.synced:
        sent += messages.batch(board_of(name), at, found)
    return sent


def kinds(delivery: Delivery[Subscriber]) -> Counter[str]:
    """Count the messages of a delivery by type, as plain subscribers get them."""
    found = Counter(message.type for message in _changes(delivery))
    if delivery.synced:
        found["board.sync"] += 1
    return found


def _changes(delivery: Delivery[Subscriber]) -> Iterator[Message]:
    for step in delivery.steps:
        yield from step.messages


def _buffers(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Join frames into buffers of about BUFFER_BYTES."""
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        if parts and size + len(frame) > BUFFER_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(frame)
        size += len(frame)
    if parts:
        yield b"".join(parts)
