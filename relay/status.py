"""What a relay tells of itself for its operator, be it one process or several together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Counts(BaseModel):
    """What has been sent since the start; none of it ever becomes less."""

    model_config = ConfigDict(frozen=True)

    messages: Mapping[str, int] = {}
    """By type, each as often as it was sent."""
    bytes: int = 0
    fell_behind: int = 0
    """How often a subscriber could take no more."""
    refused: Mapping[str, int] = {}
    """Connections and tokens that were refused, by reason."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            messages=Counter(self.messages) + Counter(other.messages),
            bytes=self.bytes + other.bytes,
            fell_behind=self.fell_behind + other.fell_behind,
            refused=Counter(self.refused) + Counter(other.refused),
        )


class Status(BaseModel):
    """How it is at a moment."""

    model_config = ConfigDict(frozen=True)

    running: bool
    """Whether clients can connect."""
    port: int
    connections: int = 0
    subscriptions: int = 0
    feed_up: bool = False
    """Whether changes flow, to all."""
    problem: str | None = None
    """Why clients are not served as they should be, in one line."""
    counts: Counts = Counts()
    workers: int = 1
    """How many processes serve clients; `of` so many."""
    of: int = 1
