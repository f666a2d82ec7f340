"""A consumer of the stream: receives its entries from a sequence on, as they are stored.

It is a push consumer without acknowledgements, in memory, which the server removes when nobody listens. JetStream
sends a heartbeat every second while there is nothing new; flow control limits the data under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api

from relay.nats.connection import Connection, StreamError

BEAT_SECONDS: Final = 1.0
"""Interval of JetStream's heartbeats."""

SILENT_BEATS: Final = 3
"""Number of missing heartbeats after which the consumer is lost."""

_PLACE_TOKENS: Final = 9


class Delivered(NamedTuple):
    """An encoded entry, its sequence, and the number of entries still to be delivered."""

    sequence: int
    data: bytes
    pending: int


class Consumer:
    """Receives entries of the stream.

    `pending` is the number of entries at the beginning. `filtered` is whether the server applies the filter: one
    before 2.10 does not support several subjects, and delivers everything.
    """

    def __init__(self, connection: Connection) -> None:
        self.pending = 0
        self.filtered = False
        self._name = connection.name
        self._client: Client = connection.client
        self._arrived: list[Delivered] = []
        self._event = asyncio.Event()
        self._deliveries: Subscription | None = None

    async def open(self, jetstream: JetStreamContext, first: int, subjects: Sequence[str]) -> None:
        """Receive the entries with one of these subjects from sequence `first` on; without subjects, all entries."""
        inbox = self._client.new_inbox()
        # nats-py's own limits are off: JetStream sends no more than flow control allows.
        self._deliveries = await self._client.subscribe(
            inbox, cb=self._take, pending_msgs_limit=0, pending_bytes_limit=0
        )
        made = await jetstream.add_consumer(
            self._name,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=first,
            # Servers of every version support the first of these.
            filter_subject=subjects[0] if len(subjects) == 1 else None,
            filter_subjects=[*subjects] if len(subjects) > 1 else None,
            ack_policy=api.AckPolicy.NONE,
            deliver_subject=inbox,
            idle_heartbeat=BEAT_SECONDS,
            flow_control=True,
            inactive_threshold=BEAT_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        self.pending = made.num_pending or 0
        self.filtered = bool(made.config.filter_subject or made.config.filter_subjects)

    async def close(self) -> None:
        """Stop receiving."""
        if self._deliveries:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._deliveries.unsubscribe()

    async def arrived(self) -> list[Delivered]:
        """Wait for entries, or for `wake`. Raises StreamError if not even heartbeats arrive."""
        while not self._event.is_set():
            try:
                async with asyncio.timeout(SILENT_BEATS * BEAT_SECONDS):
                    await self._event.wait()
            except TimeoutError:
                raise StreamError(f"stream {self._name} is silent: is it still there?") from None
        self._event.clear()
        found, self._arrived = self._arrived, []
        return found

    def wake(self) -> None:
        """Make `arrived` return, even without entries."""
        self._event.set()

    async def _take(self, message: Msg) -> None:
        if message.headers and "Status" in message.headers:
            await self._answer(message, message.headers)
        else:
            sequence, pending = place(message.reply)
            self._arrived.append(Delivered(sequence, message.data, pending))
        self._event.set()

    async def _answer(self, message: Msg, headers: dict[str, str]) -> None:
        """Answer a flow control message, so that the server continues to send."""
        if waits := message.reply or headers.get("Nats-Consumer-Stalled"):
            await self._client.publish(waits)


def place(reply: str) -> tuple[int, int]:
    """Return an entry's sequence, and the number that follow, from the subject for its acknowledgement.

    nats-py's own parser would take a quarter of an edge's time for an entry that nobody follows.
    """
    tokens = reply.split(".")
    # $JS.ACK.stream.consumer.delivered.SEQUENCE.consumer_sequence.time.PENDING; newer servers may add a domain and an
    # account before the stream, and more at the end.
    first = 5 if len(tokens) == _PLACE_TOKENS else 7
    return int(tokens[first]), int(tokens[first + 3])
