"""What a session does besides reading: it inspects the triggers, prunes the journal, and checks its connections."""

from __future__ import annotations

import asyncio
from typing import Final

from relay.postgres.session import Session

INSPECT_SECONDS: Final = 10.0
"""Interval at which the feed checks that the triggers are still in place."""

PRUNE_SECONDS: Final = 5.0
"""Interval between prunes of the journal, and between readings of its vitals."""

LINK_SECONDS: Final = 0.25
"""Interval at which silent connections are checked."""


async def inspect(session: Session) -> None:
    """Regularly read what is watched, and check that its triggers are in place, fit, and have their rights."""
    while True:
        await asyncio.sleep(INSPECT_SECONDS)
        await (session.refresh() if session.unfit else session.restore_rights())
        await session.watches.load()


async def prune(session: Session) -> None:
    """Prune the journal, and read its vitals whenever nothing is left to prune."""
    while True:
        if not await session.prune():
            await session.read_vitals()
            await asyncio.sleep(PRUNE_SECONDS)


async def check_links(session: Session) -> None:
    """Check all connections. Raises FeedError if one is dead."""
    while True:
        await asyncio.sleep(LINK_SECONDS)
        await session.require_answers()
