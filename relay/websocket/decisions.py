"""Decisions: asks the authorizer about boards, for all clients together, and delivers the answers."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from relay.auth.tokens import Grant
from relay.hub.ports import Authorizer
from relay.websocket.limits import Questions

QUESTIONS: Final = 500
"""Maximum number of questions that are asked at once."""


class Asking(Protocol):
    """Waits for decisions. Compared by identity."""

    def decided(self, board: str, grant: Grant, *, may: bool) -> None:
        """Take a decision: whether a grant allows a board."""


class Decisions:
    """Questions that wait for the authorizer."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._questions: Questions[Asking, Grant] = Questions()
        self._asked = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Number of questions that wait."""
        return len(self._questions)

    def ask(self, asking: Asking, board: str, grant: Grant) -> None:
        """Ask whether a grant allows a board; the answer comes as a call of `decided`."""
        self._questions.ask(asking, board, grant)
        self._asked.set()

    def withdraw(self, asking: Asking, board: str) -> None:
        """Forget a question."""
        self._questions.withdraw(asking, board)

    def forget(self, asking: Asking) -> None:
        """Forget all questions of a client that has disconnected."""
        self._questions.forget(asking)

    async def run(self) -> None:
        """Ask questions and deliver the answers, until cancelled."""
        while True:
            await self._asked.wait()
            if not (asked := self._questions.take(QUESTIONS)):
                self._asked.clear()
                continue
            answers = await self._authorizer.may_read([(grant.claims, board) for _, board, grant in asked])
            for (asking, board, grant), may in zip(asked, answers, strict=True):
                asking.decided(board, grant, may=may)
