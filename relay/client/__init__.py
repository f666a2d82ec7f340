"""The Python client: keeps boards equal to the database, whatever happens to the connection.

    async with connect("ws://localhost:4002", token=token) as relay:
        board = await relay.subscribe("default")
        async for change in board:
            print(change.type, len(board.tasks))

`relay.client.sync` is for programs without asyncio. The client does not import anything of the daemon.
"""

from relay.client import sync
from relay.client.effects import RelayError
from relay.client.following import State
from relay.client.replica import Change, Task, TaskId
from relay.client.shell import Board, Relay, Token, connect

__all__ = ["Board", "Change", "Relay", "RelayError", "State", "Task", "TaskId", "Token", "connect", "sync"]
