"""`relay status` as an operator and a script use it: against a real daemon."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from relay.postgres.embedded import free_port
from tests.acceptance.support import RELAY, Client, Program, Relays, run_relay, until
from tests.servers import Database


async def test_status_tells_how_a_relay_is(
    database: Database, empty_database: Database, relay: Relays, tmp_path: Path
) -> None:
    """A healthy one, for people and for programs; one that is not; and none at all. The exit code says which."""
    well = await relay(database.dsn, WS_MAX_CONNECTIONS="7")
    ill = await relay(empty_database.dsn, healthy=False)
    await ill.logged("feed.problem")
    async with Client.to(well) as client:
        await client.subscribe()
        shown = run_relay("status", cwd=tmp_path, RELAY_HEALTH_URL=f"http://127.0.0.1:{well.health_port}")
        watched = Program(
            [RELAY, "status", "--json", "--watch", "0.1", "--url", f"http://127.0.0.1:{well.health_port}/"],
            tmp_path,
            {},
        )
        try:
            database.execute("insert into tasks (id, title) values ('a', 'A')")
            figures = await until(lambda: [json.loads(line) for line in watched.output.splitlines()][1:], "a rate")
            await until(lambda: '"task.created": 1' in watched.output, "the change")
            watched.signal(signal.SIGINT)
            await until(lambda: watched.exit_code is not None, "the end")
        finally:
            watched.end()

    assert (shown.returncode, shown.stderr) == (0, "")
    assert "connections 1 of 7, subscriptions 1" in shown.stdout
    assert "board.sync               1\n" in shown.stdout
    assert watched.exit_code == 0
    assert figures[0]["problem"] is None
    assert figures[0]["maxConnections"] == 7
    assert figures[0]["rates"]["messages"]["board.sync"] == 0
    assert figures[0]["rates"]["bytes"] >= 0

    unwell = run_relay("status", "--url", f"http://127.0.0.1:{ill.health_port}", cwd=tmp_path)
    assert unwell.returncode == 1
    assert "run relay sql install" in unwell.stdout
    port = free_port()
    nobody = run_relay("status", "--url", f"http://127.0.0.1:{port}", cwd=tmp_path)
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert nobody.stderr == (
        f"Error: no answer from http://127.0.0.1:{port}: Connection refused: "
        "is the daemon running, with this HEALTH_PORT?\n"
    )
