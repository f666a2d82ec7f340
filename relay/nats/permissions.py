"""Asks the active publisher for the decisions of relay.may_read, for an edge that has no Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from relay.hub.ports import Question
from relay.nats.connection import Refused
from relay.nats.follower import Follower
from relay.nats.jetstream import Stream
from relay.postgres.requests import Asked

log = structlog.get_logger()

ASK_AGAIN_SECONDS: Final = 0.25
"""Pause before questions are asked again if no publisher answered."""

_decode_answers: Final = msgspec.json.Decoder(list[bool]).decode


class Permissions:
    """Asks questions in order. `asked_since` is when the current one was first asked; None if none waits."""

    def __init__(self, follower: Follower) -> None:
        self.asked_since: float | None = None
        self._follower = follower
        self._questions: asyncio.Queue[Asked] = asyncio.Queue()

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Return whether these boards may be read with these claims, once a publisher has answered."""
        answer: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait(Asked(questions, answer))
        return await answer

    async def run(self, stream: Stream) -> None:
        """Ask questions, until cancelled. Raises StreamError."""
        while True:
            asked = await self._questions.get()
            self.asked_since = self.asked_since or time.monotonic()
            try:
                answers = await self._ask(stream, asked.questions)
            except BaseException:
                self._questions.put_nowait(asked)
                raise
            if answers is None:
                self._questions.put_nowait(asked)
                await asyncio.sleep(ASK_AGAIN_SECONDS)
                continue
            self.asked_since = None
            if not asked.answer.done():
                asked.answer.set_result(answers)

    async def _ask(self, stream: Stream, asked: Sequence[Question]) -> Sequence[bool] | None:
        """Ask the publisher, in portions that fit into a message. A question that does not fit is answered no."""
        assert self._follower.state, "it has begun"
        try:
            found = await stream.questions.ask(self._follower.state.asked_at, "may_read", _encode(asked))
        except Refused as ex:
            if len(asked) == 1:
                log.warning("access.may_read_failed", problem=str(ex))
                return [False]
        else:
            return _decode_answers(found[0]) if found else None
        half = len(asked) // 2
        first = await self._ask(stream, asked[:half])
        second = first and await self._ask(stream, asked[half:])
        return [*first, *second] if first and second else None


def _encode(asked: Sequence[Question]) -> bytes:
    # A name that is not valid text names no board, so a replacement that names none either gets the same answer.
    return msgspec.json.encode([(claims, name.encode(errors="replace").decode()) for claims, name in asked])
