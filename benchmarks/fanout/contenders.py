"""What is compared: each contender, how it is set up in a database, started, watched and stopped.

Rules:
- Each has a database of its own, and runs on the first core alone; Postgres, writer and subscribers have the other.
- Processor time is the kernel's, in nanoseconds, over all threads of all its processes.
- nchan needs a bridge from Postgres. It runs on the other core and is not counted, in nchan's favour.
"""

from __future__ import annotations

import abc
import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import IO

import psycopg

from relay.commands.bench.run import NO_LIMITS
from relay.postgres import install
from relay.postgres.embedded import free_port
from tests.certificates import certificate

HERE = Path(__file__).parent
BUILD = HERE / "build"
SERVER_CORE, LOAD_CORE = "0", "1"
SUBSCRIBE = '{"type":"subscribe","boardId":"%s"}'

NAIVE = """
create or replace function public.notify_change() returns trigger language plpgsql as $$
begin
    perform pg_notify('changes', json_build_object('board', new.board_id, 'message', json_build_object(
        'type', 'task.updated',
        'data', json_build_object('id', new.id, 'changes', json_build_object('title', new.title))))::text);
    return null;
end $$;
create or replace trigger notify_change after update on public.tasks
    for each row execute function public.notify_change();
"""


@dataclass
class Running:
    """A started contender."""

    port: int
    pids: list[int]
    by_path: bool = False
    """Whether a subscriber names its board in the address, not in a message."""
    tls: bool = False

    def cpu(self) -> float:
        """Return the processor time used so far, in seconds."""
        return sum(cpu_of(pid) for pid in self.pids)

    def memory(self, name: str = "VmRSS") -> int:
        """Return resident memory, now or at its peak (VmHWM), in bytes."""
        return sum(_status(pid, name) for pid in self.pids)

    def forget_peak(self) -> None:
        """Reset VmHWM."""
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_of(pid: int) -> float:
    """Return the processor time of a process and its threads, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


class Contender(abc.ABC):
    """A program that brings changes to subscribers."""

    name: str
    title: str

    @abc.abstractmethod
    def version(self) -> str:
        """Say which it is."""

    def prepare(self, dsn: str) -> None:
        """Set up its database, in which the tasks table is empty."""
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(NAIVE)

    @abc.abstractmethod
    def run(self, dsn: str) -> contextlib.AbstractContextManager[Running]:
        """Run it until the block ends."""


class Relay(Contender):
    """This project."""

    name, title = "relay", "relay"

    def __init__(self, workers: int = 1, core: str = SERVER_CORE, *, tls: bool = False, loop: str = "") -> None:
        self._workers, self._core, self._tls, self._loop = workers, core, tls, loop
        if tls or loop:
            wire, loop = "wss" if tls else "ws", loop or "asyncio"
            self.name, self.title = f"{wire}-{loop}", f"relay, {wire}://, {loop}"

    def version(self) -> str:
        return _first_line(self._program(), "--version").replace("relay, version ", "relay ")

    def prepare(self, dsn: str) -> None:
        install.run(dsn, "install")
        install.watch(dsn, "public.tasks")

    @contextlib.contextmanager
    def run(self, dsn: str) -> Iterator[Running]:
        settings = {"WS_PORT": "0", "HEALTH_PORT": "0", "WS_HOST": "127.0.0.1", "WS_MAX_CONNECTIONS": "19000"}
        settings |= NO_LIMITS | {"WS_WORKERS": str(self._workers), "DATABASE_URL": dsn}
        program = [sys.executable, str(HERE / "loops.py"), self._loop] if self._loop else [self._program()]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            if self._tls:
                cert, key = certificate(Path(folder), "relay")
                settings |= {"WS_TLS_CERT": str(cert), "WS_TLS_KEY": str(key)}
            process = stack.enter_context(_process([*program, "serve"], self._core, settings))
            port = 0
            for line in _lines(process.stderr):
                event = json.loads(line)
                port = event.get("port", port) if event["event"] == "websocket.listening" else port
                if event["event"] == "feed.running" and port:
                    break
            threading.Thread(target=_forget, args=[process.stderr], daemon=True).start()
            yield Running(port, [process.pid, *_children(process.pid)], tls=self._tls)

    @staticmethod
    def _program() -> str:
        return str(Path(sys.executable).with_name("relay"))


class Node(Contender):
    """Baseline A: Node, ws, and a loop over clients."""

    name, title = "node", "Node ws, send() in a loop"

    def version(self) -> str:
        ws = json.loads((HERE / "node_modules/ws/package.json").read_text())["version"]
        return f"Node {_first_line('node', '--version')}, ws {ws}"

    @contextlib.contextmanager
    def run(self, dsn: str) -> Iterator[Running]:
        with _announced(["node", str(HERE / "node.mjs")], SERVER_CORE, dsn, port := free_port()) as process:
            yield Running(port, [process.pid])


class Broadcast(Contender):
    """Baseline B: Python, notifies() and websockets.broadcast."""

    name, title = "broadcast", "Python websockets.broadcast"

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}, websockets {importlib.metadata.version('websockets')}"

    @contextlib.contextmanager
    def run(self, dsn: str) -> Iterator[Running]:
        command = [sys.executable, str(HERE / "broadcast.py")]
        with _announced(command, SERVER_CORE, dsn, port := free_port()) as process:
            yield Running(port, [process.pid])


class Nchan(Contender):
    """nginx's nchan, written in C for this."""

    name, title = "nchan", "nginx nchan"
    modules = Path("/usr/lib/nginx/modules")

    def installed(self) -> bool:
        return (self.modules / "ngx_nchan_module.so").exists()

    def version(self) -> str:
        found = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        return found.strip().replace("nginx version: nginx/", "nginx ") + " with nchan"

    @contextlib.contextmanager
    def run(self, dsn: str) -> Iterator[Running]:
        port = free_port()
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            text = Template((HERE / "nchan.conf").read_text())
            conf = Path(folder) / "nginx.conf"
            conf.write_text(text.substitute(folder=folder, port=port, modules=self.modules))
            nginx = stack.enter_context(_process(["nginx", "-c", str(conf), "-p", folder], SERVER_CORE, {}))
            wait_for_port(port)
            command = [sys.executable, str(HERE / "bridge.py")]
            stack.enter_context(_announced(command, LOAD_CORE, dsn, port))
            yield Running(port, _children(nginx.pid), by_path=True)


def contenders() -> list[Contender]:
    """Return all that are installed here."""
    found: list[Contender] = [Relay(), Broadcast()]
    if shutil.which("node") and (HERE / "node_modules/ws").exists():
        found.insert(1, Node())
    if Nchan().installed():
        found.append(Nchan())
    return found


def wires(with_tls: Iterable[bool]) -> tuple[Contender, ...]:
    """Return the relay without TLS, or with it, or both, on each event loop that it is compared on."""
    return tuple(Relay(tls=tls, loop=loop) for tls in with_tls for loop in ("", "uvloop", "aiofastnet"))


def wait_for_port(port: int) -> None:
    """Return once somebody listens there."""
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


@contextlib.contextmanager
def _process(command: list[str], core: str, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    pinned = ["taskset", "-c", core, *command]
    process = subprocess.Popen(
        pinned, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()


@contextlib.contextmanager
def _announced(command: list[str], core: str, dsn: str, port: int) -> Iterator[subprocess.Popen[str]]:
    with _process(command, core, {"DATABASE_URL": dsn, "PORT": str(port)}) as process:
        next(_lines(process.stdout))
        yield process


def _lines(stream: IO[str] | None) -> Iterator[str]:
    assert stream
    for line in stream:  # noqa: UP028  # `yield from` would close it
        yield line
    raise RuntimeError("a contender ended before it listened; run it by hand to see why")


def _forget(stream: IO[str]) -> None:
    """Read what a process logs, lest it wait for us."""
    for _ in stream:
        pass


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
