"""What a publisher answers to the questions of edges: boards, and what relay.may_read says.

Edges that ask for the same board share a read of it. A read answers only questions from before it began: an edge that
asks later must not get an older board than it may have passed on already.
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
"""Timeout of a board that could not be read the last time."""


class Answers:
    """Answers from one feed. The methods about reads are those of a Sink."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._asked: dict[str, list[asyncio.Future[Answer]]] = {}
        self._reading: dict[str, list[asyncio.Future[Answer]]] = {}

    async def board(self, question: bytes) -> Answer | None:
        """Answer with a board, once it is read; or soon that it cannot be read, if it could not the last time."""
        name = question.decode(errors="replace")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(answer)
        self._feed.ask(name)
        if name not in self._feed.failing:
            return await answer
        # It is read again after a pause, for which no edge should wait.
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
        """Note that the feed begins to read a board, for all that have asked until now."""
        if name in self._reading or name not in self._asked:
            return False  # a read under way began before they asked
        self._reading[name] = self._asked.pop(name)
        return True

    def abandon_read(self, name: str) -> None:
        """Have a board read again."""
        self._asked[name] = self._reading.pop(name, []) + self._asked.get(name, [])
        self._feed.ask(name)

    def synced(self, name: str, run: str, snapshot: Snapshot, data: bytes) -> None:
        """Answer with a board that was read."""
        self._answer(self._reading.pop(name, []), (msgspec.json.encode(BoardHead(run, str(snapshot))), data))
        if name in self._asked:
            self._feed.ask(name)

    def refuse(self, name: str, problem: Message, *, final: bool) -> None:
        """Answer that a board cannot be had: now, or at all."""
        waiting = self._reading.pop(name, []) + self._asked.pop(name, [])
        self._answer(waiting, _refusal(problem, final=final))

    def _answer(self, waiting: list[asyncio.Future[Answer]], found: Answer) -> None:
        for answer in waiting:
            if not answer.done():
                answer.set_result(found)


def _refusal(problem: Message, *, final: bool = False) -> Answer:
    return msgspec.json.encode(BoardRefused(final)), problem.json
