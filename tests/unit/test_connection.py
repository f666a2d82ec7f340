"""A connection, without a server: a cancellation is never lost."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import psycopg
import pytest

from relay.postgres.connection import Connection, connect


async def test_cancellation_that_psycopg_loses_still_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 loses one that comes as a wait ends; the feed of a publisher would then go on for ever."""
    waiting = asyncio.Event()

    async def loses_it(*_given: object, **_options: object) -> NoReturn:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise psycopg.OperationalError("the server is away") from None
        raise AssertionError

    monkeypatch.setattr(Connection, "connect", loses_it)
    task = asyncio.create_task(connect(""))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
