"""The contract for machines against a real relay: there is nothing in it that is never sent."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest
from websockets.asyncio.client import ClientConnection, connect

from relay.auth.gate import Gate
from relay.auth.tokens import Access, static_tokens
from relay.hub import boards
from relay.model import messages as protocol
from relay.websocket import commands
from relay.websocket.limits import Limits
from tests.contract import KINDS, checked
from tests.integration.conftest import Relay
from tests.servers import Database

MISTAKES: list[tuple[Any, protocol.ErrorCode]] = [
    ("no JSON", "invalid_json"),
    ("[]", "invalid_message"),
    ('{"type":"foo"}', "unknown_type"),
    ('{"type":"subscribe"}', "invalid_board_id"),
    (b"{}", "binary_message"),
    ('{"type":"subscribe","boardId":"default","lanes":[1]}', "invalid_selection"),
    ('{"type":"includes","boardId":"default","xid":1}', "invalid_xid"),
    ('{"type":"includes","boardId":"default","xid":"1"}', "not_subscribed"),
    ('{"type":"subscribe","boardId":"other"}', "not_allowed"),
    ('{"type":"authenticate","token":"bad"}', "not_authenticated"),
]


async def test_every_kind_of_message_and_every_error_comes_from_a_relay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client is sent each of them; all are of the schema."""
    monkeypatch.setattr(boards, "MAX_SELECTIONS", 0)
    monkeypatch.setattr(commands, "MAX_WAITS", 1)
    gate = Gate(Access(static_tokens(["all", "some:default"], "test")))
    relay = Relay(database.dsn, gate=gate, limits=Limits(boards=1, messages_a_second=10))
    async with relay.running(), connect(f"{relay.url}?token=some", proxy=None) as connection:
        client = Recorder(connection)
        for message, code in MISTAKES:
            assert (await client.said(message))["data"]["code"] == code
        await client.said('{"type":"ping"}')
        await client.said('{"type":"authenticate","token":"all"}')
        await client.said('{"type":"subscribe","boardId":"default"}')
        await client.said('{"type":"subscribe","boardId":"other"}')
        await client.said('{"type":"subscribe","boardId":"default","cursor":null,"lanes":["todo"]}')
        await client.said('{"type":"includes","boardId":"default","xid":"1"}')
        await connection.send('{"type":"includes","boardId":"default","xid":"9223372036854775807"}')
        await client.said('{"type":"includes","boardId":"default","xid":"9223372036854775806"}')
        for _ in range(2):
            relay.hub.expire_waits()
        assert (await client.receive())["data"]["code"] == "not_included"
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        database.execute("update tasks set lane = 'done', title = 'B'")
        database.execute("delete from tasks")
        while (await client.receive())["type"] != "task.deleted":
            pass
        database.execute("revoke select on tasks from relay_reader")
        assert (await client.said('{"type":"subscribe","boardId":"default"}'))["data"]["code"] == "board_unavailable"
        database.execute("grant select on tasks to relay_reader")
        assert (await client.receive())["type"] == "board.sync"
        await client.said('{"type":"subscribe","boardId":"default","cursor":"none of ours"}')
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await client.receive()
        while (await client.said('{"type":"ping"}'))["type"] == "pong":
            pass

    assert client.kinds == set(KINDS)
    assert client.codes == set(get_args(protocol.ErrorCode))


class Recorder:
    """A client that notes what kinds of messages it was sent."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self.kinds: set[str] = set()
        self.codes: set[str] = set()

    async def said(self, message: str | bytes) -> Any:
        """Send a message and return the answer."""
        await self._connection.send(message)
        return await self.receive()

    async def receive(self) -> Any:
        """Return the next message."""
        async with asyncio.timeout(20):
            message = checked(await self._connection.recv())
        self.kinds |= {name for name, validator in KINDS.items() if validator.is_valid(message)}
        if message["type"] == "error":
            self.codes.add(message["data"]["code"])
        return message
