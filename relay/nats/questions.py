"""Questions of edges to the active publisher, and its answers. They are not in the stream.

A publisher acknowledges a question at once, and again while it works on it. So an absent one is noticed within
SILENT_SECONDS, however long a board may take. An answer is a head, which says how many parts follow, and the parts of
its body.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import nats.errors
from nats.aio.msg import Msg

from relay.nats.connection import Connection, Refused

WORKING_SECONDS: Final = 1.0
"""Interval at which a publisher reports that it works on an answer."""

SILENT_SECONDS: Final = 2.0
"""Time after which a silent publisher counts as absent."""

ANSWER_BYTES: Final = 256 * 1024
"""Maximum size of a part of an answer."""

Answer = tuple[bytes, bytes]
"""Head and body."""

_INBOXES: Final = ("_INBOX", "_R_")
"""Prefixes of subjects for answers, in this account of the server and from another."""

_PARTS: Final = "Relay-Parts"
_WORKING: Final = b"working"
"""Must not be empty: an empty message ends the answer to a question from another account."""


class Questions:
    """Both sides of the questions over one connection. Methods raise StreamError.

    `heard` is when the publisher last said that it works on an answer.
    """

    def __init__(self, connection: Connection) -> None:
        self.heard = 0.0
        self._connection = connection
        self._client = connection.client

    async def ask(self, place: str, what: str, question: bytes) -> Answer | None:
        """Ask the publisher at this place; return its answer, or None if it is silent.

        Raises Refused if the question is too long.
        """
        if len(question) > self._connection.room:
            raise Refused(
                f"a question has {len(question)} bytes, and NATS takes {self._connection.room}: "
                "raise max_payload there"
            )
        inbox = self._client.new_inbox()
        with self._connection.errors():
            answers = await self._client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
            try:
                await self._client.publish(self._subject(place, what), question, reply=inbox)
                while not (head := await answers.next_msg(timeout=SILENT_SECONDS)).headers:
                    self.heard = time.monotonic()
                if _PARTS not in head.headers:
                    return None  # the server: no responders
                parts = [await answers.next_msg(timeout=SILENT_SECONDS) for _ in range(int(head.headers[_PARTS]))]
            except nats.errors.TimeoutError:
                return None
            finally:
                with contextlib.suppress(nats.errors.Error):
                    await answers.unsubscribe()
        return head.data, b"".join(part.data for part in parts)

    @asynccontextmanager
    async def answering(
        self, place: str, what: str, answer: Callable[[bytes], Awaitable[Answer | None]]
    ) -> AsyncIterator[None]:
        """Answer questions, each in its own task. If `answer` returns None, no answer is sent."""
        running: set[asyncio.Task[None]] = set()

        async def take(question: Msg) -> None:
            # No server checks whether an edge may write to the reply subject, which could be one of the stream.
            if question.reply.startswith(_INBOXES):
                task = asyncio.create_task(self._reply(question.reply, answer(question.data)))
                running.add(task)
                task.add_done_callback(running.discard)

        with self._connection.errors():
            questions = await self._client.subscribe(self._subject(place, what), cb=take)
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            with contextlib.suppress(nats.errors.Error, OSError):
                await questions.unsubscribe()

    def _subject(self, place: str, what: str) -> str:
        return f"{self._connection.name}.ask.{place}.{what}"

    async def _reply(self, inbox: str, answer: Awaitable[Answer | None]) -> None:
        working = asyncio.ensure_future(answer)
        with contextlib.suppress(nats.errors.Error, OSError):
            try:
                while not working.done():
                    await self._client.publish(inbox, _WORKING)
                    await asyncio.wait([working], timeout=WORKING_SECONDS)
            finally:
                working.cancel()
            if found := working.result():
                await self._send(inbox, *found)

    async def _send(self, inbox: str, head: bytes, body: bytes) -> None:
        size = min(ANSWER_BYTES, self._connection.room)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        await self._client.publish(inbox, head, headers={_PARTS: str(len(parts))})
        for part in parts:
            await self._client.publish(inbox, part)
