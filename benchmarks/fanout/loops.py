"""Run the relay's command line on another event loop, to measure it: python loops.py uvloop serve."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiofastnet
import uvloop

from relay.commands.cli import main


async def accept(loop: asyncio.AbstractEventLoop, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Do what `loop.connect_accepted_socket` does, which aiofastnet's own policy leaves as it is."""
    transport, protocol = await aiofastnet.connect_accepted_socket(loop, *args, **options)
    if not type(transport).__module__.startswith("aiofastnet."):
        raise RuntimeError(f"found {type(transport)}: expected one of aiofastnet, or asyncio would be measured")
    return transport, protocol


if sys.argv.pop(1) == "uvloop":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
else:
    aiofastnet.install_policy()
    asyncio.BaseEventLoop.connect_accepted_socket = accept  # type: ignore[method-assign,assignment]
main()
