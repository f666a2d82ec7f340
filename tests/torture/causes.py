"""Why a client may be sent its board again: the faults that break continuity, and no transaction but TRUNCATE."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

_ON_THE_WAY: Final = (
    "restart",
    "crash",
    "kill_backend",
    "terminate_sessions",
    "kill_relay",
    "freeze",
    "strand",
    "cut",
    "preset_settings",
    "suspend_relay",
)
_NATS: Final = (
    "restart_nats",
    "kill_nats",
    "lose_stream",
    "purge_stream",
    "fill_stream",
    "kill_publisher",
    "stop_publisher",
    "suspend_publishers",
    "cut_edge",
    "strand_edge",
    "strand_publisher",
    "freeze_publisher",
)

CAUSES: Final[Mapping[str, tuple[str, ...]]] = {
    # After a restart, a relay that is not connected yet does not know the run of a cursor from another.
    "epoch_changed": ("crash", "kill_backend", "restart"),
    # After a crash, nobody knows since when the tables have their shape: open transactions may be older.
    "schema_changed": ("alter", "rename_label", "switch_triggers", "crash", "kill_backend"),
    # A transaction that wrote a row before and after one of these, so that its images do not fit each other.
    "changes_missing": ("alter", "rename_label", "switch_triggers"),
    "journal_pruned": ("prune", "cut", *_ON_THE_WAY, *_NATS),
    "too_much_missed": ("bulk", *_ON_THE_WAY, *_NATS),
    "journalling_paused": ("pause_journal",),
    "batch_cut_short": (*_ON_THE_WAY, *_NATS),
    "truncate": ("truncate",),
    "resync": ("resync",),
}
"""The faults that may be behind each reason. A reason that is not here is wrong whatever happened."""

UNAVAILABLE: Final = (
    *("lock_table", "deny_reading", "alter", "rewrite", "truncate"),
    *("freeze", "strand", "cut", "suspend_relay"),
    *("freeze_publisher", "strand_publisher", "suspend_publishers"),
)
"""The faults that may be behind a board that cannot be read: its table was taken, or somebody waited to take it,
perhaps for a relay or a publisher that stood still amid a read of its own."""

_OWN: Final = ("", "fell_behind", "subscribed_again")
"""What the client brought upon itself, by coming without a cursor, not reading, or asking twice."""


def explains(faults: Container[str], reason: str) -> bool:
    """Whether a board may come for this reason when these faults have happened."""
    if reason == "board_unavailable":
        return any(fault in faults for fault in UNAVAILABLE)
    return reason in _OWN or any(fault in faults for fault in CAUSES.get(reason, ()))
