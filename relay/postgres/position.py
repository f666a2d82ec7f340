"""Where a feed is in the journal, and whether it can continue from there. Pure.

Rules:
- The position is a snapshot: everything that it sees has been passed to the sink.
- It is valid as long as its run of the server is known (see relay.epochs in sql/install.sql), the watched tables keep
  their shape, and the journal has what follows it. After that, continuity is broken: all clients are sent their
  boards again, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from relay.model.cursor import Epoch, Reason
from relay.model.snapshot import Snapshot
from relay.model.transaction import Transaction


class Position:
    """A snapshot in an epoch. `breaks` counts how often continuity was broken, by reason.

    `stamp` is that of the last batch that certainly has the epoch's shape, see Batch.
    """

    def __init__(self, epoch: Epoch | None = None, snapshot: Snapshot | None = None) -> None:
        self.stamp: str | None = None
        self.breaks: Counter[str] = Counter()
        self._epoch = epoch
        self._snapshot = snapshot
        # Whether clients have got a part of the next batch.
        self._cut_short = False
        # Transactions below this id may have made images before the watched tables got their present shape.
        self._shaped = 0

    @property
    def epoch(self) -> Epoch:
        """The epoch whose cursors are valid now."""
        assert self._epoch is not None, "a session begins with an epoch"
        return self._epoch

    @property
    def snapshot(self) -> Snapshot:
        """What has been passed on."""
        assert self._snapshot is not None, "a session begins with a position"
        return self._snapshot

    def begin(self, epoch: Epoch, now: Snapshot, horizon: Snapshot, *, shaped: int, paused: bool) -> Reason | None:
        """Begin a session: continue from the position if possible (None), else from now, and return the reason.

        Transactions below the id `shaped` may be older than the shape.
        """
        reason = self._broken(epoch, now, horizon, paused=paused)
        self._epoch = epoch
        self._shaped = shaped
        if reason:
            self.restart(now, reason)
        elif self._snapshot is None:
            self._snapshot = now
        return reason

    def pass_part(self) -> None:
        """Note that a part of a batch was passed on, and that more of it follows."""
        self._cut_short = True

    def pass_all(self, now: Snapshot) -> None:
        """Note that everything that a later snapshot sees has been passed on."""
        self._snapshot = now
        self._cut_short = False

    def restart(self, now: Snapshot, reason: Reason) -> None:
        """Continue from now, because the journal lacks what follows the position, or has too much of it."""
        self.pass_all(now)
        self.breaks[reason] += 1

    def reshape(self, shape: str, shaped: int) -> None:
        """Note that the watched tables have another shape; transactions below the id `shaped` may be older."""
        self._epoch = replace(self.epoch, shape=shape)
        self._shaped = shaped

    def mark_outdated(self, transactions: Iterable[Transaction]) -> None:
        """Mark the transactions that may have made images before the shape changed.

        For example, a label of an enum can be renamed while a transaction that has written rows with it is open.
        """
        for one in transactions:
            one.outdated = one.xid < self._shaped

    def _broken(self, epoch: Epoch, now: Snapshot, horizon: Snapshot, *, paused: bool) -> Reason | None:
        """Say why the feed cannot continue from its position; None if it can, or has none."""
        if self._snapshot is None or self._epoch is None:
            return None
        # If the server sees less than the position does, it has lost transactions.
        if self._epoch.run not in epoch.keys or not now.covers(self._snapshot):
            return "epoch_changed"
        if paused:
            return "journalling_paused"
        if not self._snapshot.covers(horizon):
            return "journal_pruned"
        if self._cut_short:
            return "batch_cut_short"
        return None if epoch.shape == self._epoch.shape else "schema_changed"
