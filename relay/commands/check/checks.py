"""All checks, in the order in which their findings can be corrected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from relay.commands.check import core, credentials, database, installation, journal, listening, stream, tables
from relay.commands.check.core import Finding
from relay.config import Settings

HERE: Final = (*credentials.CHECKS, *listening.CHECKS)
"""Checks of this machine."""

THERE: Final = (
    *database.CHECKS,
    *installation.CHECKS,
    *database.SERVER_CHECKS,
    *journal.CHECKS,
    *tables.CHECKS,
)
"""Checks of the database."""

NATS: Final = stream.CHECKS
"""Checks of the stream, if clients are served from NATS."""

LONGEST_NAME: Final = max(len(check.name) for check in (*HERE, *THERE, *NATS))
"""Length of the longest name of a check."""


def run(settings: Settings) -> AsyncIterator[Finding]:
    """Examine everything that the daemon needs with these settings."""
    return core.run(settings, HERE, NATS if settings.SERVE_FROM else THERE)
