"""A publisher's answers to edges: boards, and decisions of relay.may_read.

Edges that request the same board share a read of it. A read answers only requests from before it began, because an
edge that asks later must not get an older board than it may already have passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from relay.model.messages import Message, error
from relay.model.snapshot import Snapshot
from relay.nats.questions import Answer
from relay.nats.stream import BoardHead, BoardRefused
from relay.postgres.feed import Feed
from relay.postgres.requests import UNAVAILABLE

_decode_questions: Final = msgspec.json.Decoder(list[tuple[dict[str, Any], str]]).decode


FAILED_SECONDS: Final = 1.0
"""Timeout for a board whose last read failed."""


class Answers:
    """Answers of one feed. The methods about reads are those of a Sink."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._asked: dict[str, list[asyncio.Future[Answer]]] = {}
        self._reading: dict[str, list[asyncio.Future[Answer]]] = {}

    async def board(self, question: bytes) -> Answer | None:
        """Answer with a board once it is read. If its last read failed, say so after FAILED_SECONDS."""
        name = question.decode(errors="replace")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(answer)
        self._feed.ask(name)
        if name not in self._feed.failing:
            return await answer
        # It is read again after a pause that edges should not have to wait for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAILED_SECONDS):
                return await answer
        return _refusal(error("board_unavailable", UNAVAILABLE, name))

    async def may_read(self, question: bytes) -> Answer | None:
        """Answer which boards may be read with which claims."""
        try:
            asked = _decode_questions(question)
        except msgspec.MsgspecError:
            return None
        return msgspec.json.encode(await self._feed.may_read(asked)), b""

    def asking(self, name: str) -> int:
        """Return how many questions wait for a board."""
        return sum(len(waiting.get(name, ())) for waiting in (self._asked, self._reading))

    def begin_read(self, name: str) -> bool:
        """Note that the feed begins to read a board, for all requests until now."""
        if name in self._reading or name not in self._asked:
            return False  # the read under way began before they asked
        self._reading[name] = self._asked.pop(name)
        return True

    def abandon_read(self, name: str) -> None:
        """Request a board again."""
        self._asked[name] = self._reading.pop(name, []) + self._asked.get(name, [])
        self._feed.ask(name)

    def synced(self, name: str, run: str, snapshot: Snapshot, data: bytes) -> None:
        """Answer with a board that was read."""
        self._answer(self._reading.pop(name, []), (msgspec.json.encode(BoardHead(run, str(snapshot))), data))
        if name in self._asked:
            self._feed.ask(name)

    def refuse(self, name: str, problem: Message, *, final: bool) -> None:
        """Answer that a board cannot be read at present, or, if `final`, cannot exist."""
        waiting = self._reading.pop(name, []) + self._asked.pop(name, [])
        self._answer(waiting, _refusal(problem, final=final))

    def _answer(self, waiting: list[asyncio.Future[Answer]], found: Answer) -> None:
        for answer in waiting:
            if not answer.done():
                answer.set_result(found)


def _refusal(problem: Message, *, final: bool = False) -> Answer:
    return msgspec.json.encode(BoardRefused(final)), problem.json
