"""A NATS server with JetStream, that tests start, stop, kill and take the streams of."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from nats.aio.client import Client
from nats.errors import Error
from nats.js import JetStreamContext

from relay.embedded import HOST, free_port
from tests.servers import NoServerError

NATS_SERVER: Final = shutil.which("nats-server", path="/usr/sbin:/usr/local/bin:/usr/bin")

_START_SECONDS: Final = 10.0


class NatsServer:
    """A server on one port and one folder, whatever happens to it. Raises NoServerError if there is none to start."""

    def __init__(self, folder: Path, config: str = "") -> None:
        if NATS_SERVER is None:
            raise NoServerError("there is no nats-server: on Debian and Ubuntu, apt install nats-server")
        self.port = free_port()
        self.folder = folder
        self._command: Sequence[str | Path] = [NATS_SERVER, "--config", folder / "nats.conf"]
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
        """Start it, and return once it takes connections."""
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

    @contextlib.asynccontextmanager
    async def jetstream(self, **options: Any) -> AsyncIterator[JetStreamContext]:
        """Connect as who may do everything."""
        client = Client()
        await client.connect(self.url, allow_reconnect=False, max_reconnect_attempts=1, **options)
        try:
            yield JetStreamContext(client)
        finally:
            with contextlib.suppress(Error):
                await client.close()
