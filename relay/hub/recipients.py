"""Recipients: sends deliveries to the two kinds of subscribers.

Plain subscribers get the guide's messages, resumable ones get batches with cursors. Nothing is kept for a subscriber
that is not ready: its board notes that it fell behind.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import structlog

from relay.hub import delivery
from relay.hub.board import Board, Delivery
from relay.hub.delivery import Sender
from relay.hub.ports import Subscriber
from relay.model.cursor import Epoch
from relay.model.selection import board_of

log = structlog.get_logger()


class Recipients:
    """Sends deliveries. `fell_behind` counts how often a subscriber could take no more."""

    def __init__(self, sender: Sender) -> None:
        self.fell_behind = 0
        self._sender = sender
        self._resumable: defaultdict[str, set[Subscriber]] = defaultdict(set)
        # The boards on which no cursor was sent since the last `take_quiet`.
        self._quiet: set[str] = set()

    def resume(self, name: str, subscriber: Subscriber) -> None:
        """Make a subscriber resumable: it is sent cursors from now on."""
        self._resumable[name].add(subscriber)

    def leave(self, name: str, subscriber: Subscriber) -> None:
        """Forget a subscriber of a board."""
        if resumable := self._resumable.get(name):
            resumable.discard(subscriber)

    def forget(self, name: str) -> None:
        """Forget a board that nobody follows any more."""
        self._resumable.pop(name, None)

    def resumable(self, name: str, subscribers: AbstractSet[Subscriber]) -> AbstractSet[Subscriber]:
        """Return those of a board's subscribers that are resumable."""
        return subscribers & self._resumable.get(name, frozenset())

    def take_quiet(self) -> set[str]:
        """Return the boards on which no cursor was sent since the last call."""
        quiet, self._quiet = self._quiet, {name for name, subscribers in self._resumable.items() if subscribers}
        return quiet

    def deliver(
        self,
        name: str,
        board: Board[Subscriber],
        deliveries: Iterable[Delivery[Subscriber]],
        epoch: Epoch | None,
        data: bytes = b"",
    ) -> None:
        """Send what a board yields, with cursors of this epoch. `data` is the whole board, if it is sent."""
        recipients = 0
        found: Counter[str] = Counter()
        for each in deliveries:
            wanted, behind = len(each.to), self._send(name, each, epoch, data)
            if behind:
                self.fell_behind += len(behind)
                board.fall_behind(behind)
            receivers = wanted - len(behind)
            recipients += receivers
            kinds = delivery.kinds(each)
            self._sender.count(kinds, receivers)
            # Not +=: a subscriber that was ahead of the source gets a part of what the others get.
            found |= kinds
        if recipients:
            for kind, count in found.items():
                log.debug(
                    "websocket.broadcast",
                    type=kind,
                    recipients=recipients,
                    board=board_of(name)[:100],
                    messages=count,
                )

    def _send(self, name: str, one: Delivery[Subscriber], epoch: Epoch | None, data: bytes) -> Sequence[Subscriber]:
        """Send a delivery; return the subscribers that were not ready."""
        resumable = self.resumable(name, one.to)
        plain = one.to - resumable if resumable else one.to
        behind: list[Subscriber] = []
        if plain:
            behind += self._sender.send(plain, delivery.for_plain(one, data))
        if resumable:
            assert epoch is not None, "nothing is delivered before the source has begun"
            self._quiet.discard(name)
            behind += self._sender.send(resumable, delivery.for_resumable(name, one, data, epoch))
        return behind
