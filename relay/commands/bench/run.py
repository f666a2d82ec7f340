"""`relay bench`: measures the user's own server and machine, from commit to client, and checks every change.

Rules:
- The user's data is never touched: everything happens in a scratch database, created for the run.
- That database and all processes are removed afterwards, also after an error, Ctrl-C or SIGTERM. A second signal is
  ignored, because the first is being handled.
- It measures the product: `relay serve` as an operator starts it, in its own process, with subscribers in another
  one. A figure counts only if every subscriber got every change once and in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any, Final, LiteralString, Self

import psycopg
from psycopg import sql

from relay import __version__
from relay.commands import terminal
from relay.commands.bench import processor
from relay.commands.bench.subscribers import BOARD, Report, stamped
from relay.config import Settings
from relay.postgres import install
from relay.postgres.connection import complete
from relay.text import error_line

RATE: Final = 20
"""Commits per second when changes are made one at a time."""

IN_FLIGHT: Final = 16
"""Number of commits after which the writer waits for all subscribers."""

BURST: Final = 1000
"""Number of changes in the one transaction of the burst."""

PATIENCE_SECONDS: Final = 60.0
"""Timeout for deliveries, after which the run is aborted."""

NO_LIMITS: Final = dict.fromkeys(("WS_RATE_LIMIT_PER_CLIENT", "WS_RATE_LIMIT_TOTAL", "WS_MESSAGE_RATE"), "0")
"""Settings with which a relay takes any load of a benchmark."""

STOP_SECONDS: Final = 10.0
"""Timeout for the daemon to stop, after which it is killed."""

SPARE_FILES: Final = 64
"""Number of files that a process needs in addition to its connections."""

_UPDATE: Final = f"update public.tasks set title = %s where id = '{BOARD}'"  # a constant of ours
_INSERT: Final = f"insert into public.tasks (board_id, title) values ('{BOARD}', %s)"


class BenchError(Exception):
    """There are no figures. The text says why, in one line."""


@dataclass(frozen=True)
class Phase:
    """The results of one phase."""

    name: str
    changes: int
    seconds: float
    """From the first statement to the last delivery."""

    deliveries_per_second: float
    relay_cpu_us_per_delivery: float | None
    """Processor time of the relay; None if the system does not report it."""

    subscribers: Report


@dataclass(frozen=True)
class Result:
    """The results of a run."""

    machine: Mapping[str, str]
    phases: list[Phase]


def run(database_url: str, subscribers: int, seconds: float, tell: Callable[[str], None]) -> Result:
    """Measure, each phase for about `seconds`, and report its name.

    Raises BenchError, InstallError, and KeyboardInterrupt at a signal.
    """
    _allow_files(subscribers + SPARE_FILES)
    with terminal.interrupted_once(), scratch(database_url) as dsn:
        install.run(dsn, "tasks")
        install.run(dsn, "install")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("select relay.watch('public.tasks')")
            connection.execute("insert into public.tasks (id, board_id, title) values (%s, %s, 'T')", [BOARD, BOARD])
            with running_relay(dsn, subscribers) as (pid, port), Subscribers(port, subscribers) as crew:
                bench = _Bench(connection, crew, pid, subscribers, tell)
                phases = [
                    bench.phase("one at a time", lambda: bench.one_at_a_time(seconds)),
                    bench.phase(f"{IN_FLIGHT} in flight", lambda: bench.in_flight(seconds)),
                    bench.phase("one transaction", bench.burst),
                ]
                return Result(machine(connection), phases)


def table(result: Result) -> str:
    """Return the result as text for people."""
    lines = [f"{name:24}{value}" for name, value in result.machine.items()]
    head = (
        "",
        "changes",
        "deliveries/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "last p50",
        "last p99",
        "CPU µs each",
        "syncs",
    )
    lines += ["", ("{:16}" + "{:>13}" * 9).format(*head)]
    for phase in result.phases:
        found = phase.subscribers
        times = (found.p50, found.p99, found.max, found.last_p50, found.last_p99, phase.relay_cpu_us_per_delivery)
        cells = [f"{phase.changes:,}", f"{phase.deliveries_per_second:,.0f}"]
        cells += ["-" if value is None else f"{value:,.1f}" for value in times]
        lines.append(f"{phase.name:16}" + "".join(f"{cell:>13}" for cell in [*cells, f"{found.syncs:,}"]))
    return "\n".join([*lines, "", "Every subscriber got every change, once and in order."])


def as_json(result: Result) -> str:
    """Return the result as JSON for programs."""
    return json.dumps(asdict(result))


class _Bench:
    """The writer, and the measurement of its phases."""

    def __init__(
        self,
        connection: psycopg.Connection,
        crew: Subscribers,
        relay: int,
        subscribers: int,
        tell: Callable[[str], None],
    ) -> None:
        self._connection, self._crew, self._relay = connection, crew, relay
        self._subscribers, self._tell = subscribers, tell
        self._sequence = 0

    def phase(self, name: str, write: Callable[[], None]) -> Phase:
        """Run one phase, and wait until every subscriber has all its changes. Raises BenchError."""
        self._tell(f"{name}, {self._subscribers:,} subscribers ...")
        before, cpu, begun = self._sequence, processor.seconds(self._relay), time.monotonic_ns()
        write()
        self._wait(before)
        changes = self._sequence - before
        used = processor.seconds(self._relay)
        report = self._crew.report()
        seconds = (report.last_at - begun) / 1e9
        return Phase(
            name=name,
            changes=changes,
            seconds=seconds,
            deliveries_per_second=report.deliveries / seconds,
            relay_cpu_us_per_delivery=None if used is None or cpu is None else (used - cpu) / report.deliveries * 1e6,
            subscribers=report,
        )

    def one_at_a_time(self, seconds: float) -> None:
        """Commit single changes at RATE."""
        begun = time.monotonic()
        for number in range(max(int(RATE * seconds), 1)):
            time.sleep(max(begun + number / RATE - time.monotonic(), 0))
            self._change()

    def in_flight(self, seconds: float) -> None:
        """Repeatedly commit IN_FLIGHT changes and wait for all subscribers."""
        before, until = self._sequence, time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(IN_FLIGHT):
                self._change()
            self._wait(before)

    def burst(self) -> None:
        """Insert many rows in one transaction; updates of one row would count as one change."""
        with self._connection.transaction(), self._connection.pipeline():
            for _ in range(BURST):
                self._change(_INSERT)

    def _change(self, statement: LiteralString = _UPDATE) -> None:
        self._connection.execute(statement, [stamped(self._sequence)])
        self._sequence += 1

    def _wait(self, since: int) -> None:
        """Wait until every subscriber has all changes since. Raises BenchError."""
        self._crew.wait((self._sequence - since) * self._subscribers)


class Subscribers:
    """The process of the subscribers, all to one board."""

    def __init__(self, port: int, count: int) -> None:
        command = [sys.executable, "-m", "relay.commands.bench.subscribers", str(port), str(count)]
        self._process = subprocess.Popen(  # noqa: S603  # a program of ours
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Self:
        try:
            self._raise_faults(self._answer()["faults"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self, deliveries: int) -> None:
        """Wait for this number of deliveries since the last report. Raises BenchError."""
        if not self._ask(f"wait {deliveries} {PATIENCE_SECONDS}")["reached"]:
            report = self.report()
            raise BenchError(
                f"subscribers got {report.deliveries:,} of {deliveries:,} deliveries in {PATIENCE_SECONDS:.0f}"
                " seconds: expected all; run it again with less to do (--subscribers, --rows)"
            )

    def report(self) -> Report:
        """Return what was counted since the last report. Raises BenchError."""
        report = Report(**self._ask("report"))
        self._raise_faults(report.faults)
        return report

    @staticmethod
    def _raise_faults(faults: list[str]) -> None:
        if faults:
            raise BenchError(f"{len(faults)} subscribers received something wrong, or nothing: {faults[0]}")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise BenchError("the subscribers' process ended early: expected it to live; see above why")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _allow_files(count: int) -> None:
    """Allow this process and its children to open `count` files. Raises BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(
            f"a process may open {hard:,} files here, and this number of subscribers needs {count:,}:"
            " expected fewer --subscribers, or a higher limit (ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@contextlib.contextmanager
def scratch(database_url: str) -> Iterator[str]:
    """Create a database for this run, and drop it afterwards."""
    name = f"relay_bench_{secrets.token_hex(6)}"
    _on_server(database_url, "create database {} template template0", name)
    try:
        yield psycopg.conninfo.make_conninfo(database_url, dbname=name)
    except psycopg.Error as ex:
        raise BenchError(f"{error_line(ex)}: Postgres failed while it was measured; see its log") from ex
    finally:
        terminal.ignore_signals()
        _on_server(database_url, "drop database {} with (force)", name)


def _on_server(database_url: str, statement: str, name: str) -> None:
    try:
        with psycopg.connect(complete(database_url), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as ex:
        raise BenchError(
            f"{error_line(ex)}: expected a role with createdb, for relay bench works in a scratch database;"
            " alter role … createdb, or measure on another server"
        ) from ex
    except psycopg.Error as ex:
        raise BenchError(f"{error_line(ex)}: expected a Postgres server; check DATABASE_URL") from ex


@contextlib.contextmanager
def running_relay(dsn: str, subscribers: int, **settings: str) -> Iterator[tuple[int, int]]:
    """Run the daemon with defaults except for ports, limits and these settings; yield its process id and port.

    Raises BenchError if it does not serve.
    """
    defaults = {name: str(field.default) for name, field in Settings.model_fields.items()}
    ours = {"WS_HOST": "127.0.0.1", "WS_PORT": "0", "HEALTH_PORT": "0", "WS_MAX_CONNECTIONS": str(subscribers)}
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "serve"],
        env={**os.environ, **defaults, **NO_LIMITS, **ours, **settings, "DATABASE_URL": dsn},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a terminal's Ctrl-C reaches only this process
    )
    try:
        assert process.stderr
        port = _listening(process.stderr)
        threading.Thread(target=_forget, args=[process.stderr], daemon=True).start()
        yield process.pid, port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


def _listening(log: IO[str]) -> int:
    """Read the daemon's log until it serves; return its port."""
    port, line = None, ""
    for line in log:  # the last line says why it ended
        if line.startswith("{"):
            event = json.loads(line)
            port = event["port"] if event["event"] == "websocket.listening" else port
            if event["event"] == "feed.problem":
                raise BenchError(event["problem"])
            if event["event"] == "feed.running" and port:
                return int(port)
    raise BenchError(f"relay serve ended before it served: {line.strip() or 'it said nothing'}")


def _forget(log: IO[str]) -> None:
    """Read the daemon's log, so that the pipe does not fill."""
    for _ in log:
        pass


def machine(connection: psycopg.Connection) -> dict[str, str]:
    """Describe the machine, and whether commits wait for its disk, which would be most of their time."""
    names = ("server_version", "fsync", "synchronous_commit")
    rows = [connection.execute("select current_setting(%s)", [name]).fetchone() for name in names]
    return {
        "relay": __version__,
        "cores": str(os.cpu_count()),
        **{name: str(row[0]) for name, row in zip(names, rows, strict=True) if row},
    }
