"""What one would write first in Python: notifies(), and websockets.broadcast. Baseline B.

Written fairly: one text per change, not one per client; simultaneous subscribers share a query; no compression.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections import defaultdict

import psycopg
from psycopg.rows import dict_row
from websockets.asyncio.server import ServerConnection, broadcast, serve

boards: dict[str, set[ServerConnection]] = defaultdict(set)
reads: dict[str, asyncio.Task[str]] = {}


async def read(board: str) -> str:
    """Return the board's board.sync."""
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], row_factory=dict_row) as connection:
        query = "select * from public.tasks where board_id = %s order by created_at"
        tasks = await (await connection.execute(query, [board])).fetchall()
    return json.dumps({"type": "board.sync", "data": {"boardId": board, "tasks": tasks}}, default=str)


def forget(board: str, _: object) -> None:
    """Have clients that come later read the board again."""
    del reads[board]


async def client(connection: ServerConnection) -> None:
    """Serve one client until it leaves."""
    async for text in connection:
        board = json.loads(text)["boardId"]
        if board not in reads:
            reads[board] = asyncio.create_task(read(board))
            reads[board].add_done_callback(functools.partial(forget, board))
        sync = await reads[board]
        boards[board].add(connection)
        await connection.send(sync)
    for connections in boards.values():
        connections.discard(connection)


async def main() -> None:
    """Serve until killed."""
    listener = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)
    await listener.execute("listen changes")
    async with serve(client, "127.0.0.1", int(os.environ["PORT"]), compression=None):
        print("listening", flush=True)
        async for notify in listener.notifies():
            change = json.loads(notify.payload)
            broadcast(boards[change["board"]], json.dumps(change["message"]))


asyncio.run(main())
