"""Workers that do not start, or not again: what their operator learns, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from relay import config
from relay.daemon import pool, process
from relay.daemon.errors import StartError
from relay.daemon.pool import Pool
from relay.model.status import Status

_SECONDS = 15.0
_NOBODY = "postgresql://relay@127.0.0.1:1/relay"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the system as the workers' parent sees it, to change it."""
    system = SimpleNamespace(platform="linux", executable=sys.executable)
    for module in (pool, process):
        monkeypatch.setattr(module, "sys", system)
    return system


@pytest.fixture
async def relay() -> AsyncIterator[Pool]:
    """Yield two workers on a free port, with no Postgres; they are not started."""
    given = {"WS_PORT": "0", "WS_HOST": "127.0.0.1", "WS_WORKERS": "2", "WS_DRAIN": "0", "DATABASE_URL": _NOBODY}
    relay = Pool(config.load(given))
    yield relay
    await relay.close()


@contextlib.asynccontextmanager
async def started(relay: Pool) -> AsyncIterator[None]:
    """Run the workers and keep them running."""
    await relay.open()
    keeping = await relay.start()
    try:
        yield
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def status_with(relay: Pool, condition: Callable[[Status], bool]) -> Status:
    """Ask until a status is as expected."""
    async with asyncio.timeout(_SECONDS):
        while not condition(status := await relay.status()):  # noqa: ASYNC110 - it tells who asks
            await asyncio.sleep(0.01)
    return status


async def test_workers_are_refused_where_no_kernel_deals_out_connections(
    relay: Pool, system: SimpleNamespace
) -> None:
    """Elsewhere than on Linux one line says so."""
    system.platform = "darwin"
    with pytest.raises(StartError, match=r"^WS_WORKERS: 2 works on Linux only: expected 1 here$"):
        await relay.open()


async def test_worker_that_ends_at_the_start_ends_the_start(relay: Pool, system: SimpleNamespace) -> None:
    """A worker that cannot run is not tried again and again."""
    system.executable = "/bin/false"
    await relay.open()
    with pytest.raises(StartError, match=r"^worker 1 ended with exit status 1 before it listened: see the log$"):
        await relay.start()


async def test_worker_that_cannot_listen_says_why(relay: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    """A port that is lost before the workers have it ends the start; the log says what it was."""
    await relay.open()
    with (
        socket.create_server(("127.0.0.1", relay.port)),
        pytest.raises(StartError, match=r"^worker 1 ended with exit status 1 before it listened: see the log$"),
    ):
        await relay.start()
    await relay.close()
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lines = [line for line in said if line["worker"] == 1]  # another may find the port free again
    assert {line["event"] for line in lines} == {"worker.failed"}
    assert f"127.0.0.1:{relay.port}: Address already in use" in lines[0]["problem"]


async def test_program_that_is_missing_ends_the_start(relay: Pool, system: SimpleNamespace) -> None:
    """A Python that is gone is one line too."""
    system.executable = "/nowhere/python"
    await relay.open()
    with pytest.raises(StartError, match=r"^cannot start a worker: /nowhere/python: No such file or directory$"):
        await relay.start()


async def test_worker_that_hangs_at_the_start_ends_the_start(
    relay: Pool, system: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A worker that says nothing is waited for a while only, and killed."""
    silent = tmp_path_factory.mktemp("silent") / "python"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o700)
    system.executable = str(silent)
    monkeypatch.setattr(process, "START_SECONDS", 0.2)
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.2)
    await relay.open()
    with pytest.raises(StartError, match=r"^worker 1 does not listen after 0 seconds$"):
        await relay.start()
    with capture_logs() as lines:
        await relay.close()
    assert {line["event"] for line in lines} == {"worker.killed"}


async def test_worker_that_cannot_be_started_again_is_tried_until_it_can(
    relay: Pool, system: SimpleNamespace
) -> None:
    """While its program is gone health says so, and the other worker goes on."""
    with capture_logs() as lines:
        async with started(relay):
            pids = {line["worker"]: line["pid"] for line in lines if line["event"] == "worker.running"}
            system.executable = "/nowhere/python"
            os.kill(pids[2], signal.SIGKILL)
            status = await status_with(relay, lambda status: "cannot" in (status.problem or ""))
            assert "worker 2 cannot be started again: No such file or directory" in (status.problem or "")
            assert (status.running, status.workers, status.workers_configured, status.feed_up) == (True, 1, 2, False)
            system.executable = sys.executable
            await status_with(relay, lambda status: status.workers == 2)
    assert [line["worker"] for line in lines if line["event"] == "worker.died"] == [2]


TAKER = """
import sys
from relay.daemon.shared import SharedPlaces
file, own = int(sys.argv[1]), int(sys.argv[2])
places = SharedPlaces(1, file, 2, own)
most = 0
print(flush=True)
sys.stdin.readline()
for _ in range(30_000):
    if places.take():
        most = max(most, places.taken)
        places.give_back()
print(most)
"""


def test_last_place_is_given_once() -> None:
    """Of two workers that want it at the same time, over and over, never both have it."""
    file = os.memfd_create("places")
    os.ftruncate(file, 16)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, file)
        takers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TAKER, str(file), str(own)],
                    pass_fds=(file,),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for own in (0, 1)
        ]
        for taker in takers:
            assert taker.stdout
            taker.stdout.readline()
        for taker in takers:
            assert taker.stdin
            taker.stdin.write("go\n")
            taker.stdin.flush()
        assert [taker.communicate()[0].strip() for taker in takers] == ["1", "1"]
