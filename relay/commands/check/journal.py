"""Examines the journal."""

from __future__ import annotations

from typing import Final

from relay.commands.check.core import Check, Place, Verdict, failed, ok, warning
from relay.model.status import FULL_SHARE, OVERDUE_SECONDS
from relay.postgres.vitals import Vitals, read_vitals


async def _journal(place: Place) -> Verdict:
    vitals = await read_vitals(place.link)
    holders = (await place.link.row("select relay.vacuum_holders()"))[0]
    return judge_journal(vitals, holders)


def judge_journal(vitals: Vitals, holders: str | None) -> Verdict:
    """Judge whether the journal has room and is pruned; `holders` are the transactions that prevent a vacuum."""
    journal = vitals.journal
    size = f"{journal.bytes:,} bytes; {journal.keep_bytes:,} are kept, journalling stops at {journal.stop_bytes:,}"
    held = f"; what was pruned is kept in the file by {holders}" if holders else ""
    if journal.paused:
        return failed(
            f"journalling is paused, because the journal was full: {size}{held}",
            "start the daemon: it then goes on; if one runs, end the longest transaction, or raise stop_bytes",
        )
    if journal.overdue_seconds > OVERDUE_SECONDS:
        found = f"not pruned: changes have been due for {journal.overdue_seconds:.0f} s"
        return warning(found, "start the daemon, which prunes, or let a schedule run select relay.prune()")
    if journal.bytes > FULL_SHARE * journal.stop_bytes:
        hint = "start the daemon, which prunes, end the longest transaction, or raise stop_bytes in relay.settings"
        return warning(f"nearly full: {size}{held}", hint)
    if journal.keep_bytes >= journal.stop_bytes:
        found = "journalling stops before the oldest changes go by size: stop_bytes is not above keep_bytes"
        return warning(f"{found}: {size}", "raise stop_bytes, or lower keep_bytes, in relay.settings")
    return ok(size)


CHECKS: Final = (
    Check(
        "journal",
        _journal,
        "not paused; pruned (warning); not nearly full (warning); limits that fit (warning); "
        "whose transaction keeps it from being vacuumed",
        "start the daemon; end the transaction that is named; raise `stop_bytes`",
    ),
)
