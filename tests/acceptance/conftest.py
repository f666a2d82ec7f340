"""The daemon as a process, for the acceptance tests."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.acceptance.support import Daemon, Relays
from tests.servers import Database, do_without, sole_use

GUIDE_PORT = 4002
"""The port at which the guide's clients expect the relay."""


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relays]:
    """Yield what starts daemons; they end with the test."""
    async with AsyncExitStack() as stack:
        relays = Relays(tmp_path, stack)
        yield relays
        for daemon in relays.started:
            stack.push_async_callback(daemon.end_and_show, sys.stdout)


@pytest.fixture
async def guide_relay(database: Database, relay: Relays) -> Daemon:
    """Return a daemon on the port that is printed in the guide's clients."""
    relay.afterwards.enter_context(sole_use(f"port-{GUIDE_PORT}"))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon does
        try:
            probe.bind(("0.0.0.0", GUIDE_PORT))
        except OSError as ex:
            do_without(f"the guide's clients need port {GUIDE_PORT}, which another program has: stop it ({ex})")
    return await relay(database.dsn, ws_port=GUIDE_PORT)


@pytest.fixture
def library_that_fakes_time() -> Path:
    """Return the library with which a program sees another clock than the machine's."""
    found = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    if not found:
        do_without("this sets a program's clock with libfaketime: on Debian and Ubuntu, apt install faketime")
    return found[0]
