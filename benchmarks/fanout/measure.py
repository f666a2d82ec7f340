"""The measurements: each starts a contender, connects subscribers, writes, and returns numbers by name.

Rules:
- Every change is a commit of its own, unless a transaction is what is measured. Its title has its number and the time
  just before the statement was sent; so latency is from commit to client, the commit included.
- Throughput is closed: a round of commits, and the next when every subscriber has all of it. So a backlog never
  makes it seem better than what is sustained.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.fanout.contenders import BUILD, LOAD_CORE, SUBSCRIBE, Contender, Relay, Running, cpu_of, wires
from relay.postgres import install

Numbers = dict[str, float]

KB, MB = 1024, 1024 * 1024
DRAIN_SECONDS = 15
"""How long a contender that fell behind may take to catch up before its run ends."""


@dataclass(frozen=True)
class Size:
    """How much is measured: as published, or just enough to see that all of it works."""

    subscribers: int = 1000
    seconds: float = 6
    changes: int = 400
    """At least so many at each rate, for percentiles that mean something."""

    burst: int = 1000
    crowd: int = 10_000
    many: int = 5000
    rows: int = 100_000
    minute: float = 60
    settle: float = 1.0
    """Seconds of rest between connecting and measuring."""

    rates: tuple[int, ...] = (20, 50, 100, 200, 1000)
    windows: tuple[int, ...] = (1, 4, 16, 64)
    tls: tuple[bool, ...] = (False, True)


QUICK = Size(
    subscribers=5,
    seconds=0.3,
    changes=6,
    burst=20,
    crowd=30,
    many=20,
    rows=500,
    minute=0.5,
    settle=0.0,
    rates=(20, 50),
    windows=(1, 4),
    tls=(True,),
)


class Load:
    """The subscribers: a process of load.c."""

    def __init__(self, running: Running, count: int, board: str = "board") -> None:
        path = f"/sub/{board}" if running.by_path else "/"
        first, text = ("0", "") if running.by_path else ("1", SUBSCRIBE % board)
        command = ["taskset", "-c", LOAD_CORE, str(BUILD / "load"), str(running.port), str(count), first, path, text]
        command += ["tls"] if running.tls else []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the subscribers ended early; see above why")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, text: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self.answer()

    def wait(self, deliveries: int, seconds: float = 60) -> bool:
        """Wait for so many deliveries since the last reset; tell whether they came."""
        return bool(self.ask(f"wait {deliveries} {int(seconds * 1000)}")["reached"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Writer:
    """One connection that changes tasks."""

    connection: psycopg.Connection
    sequence: int = 0
    padding: str = "some words of a title"

    def fill(self, tasks: int, board: str = "board", size: int = 0) -> None:
        """Put tasks on a board, each with a description of `size` characters."""
        self.connection.execute(
            "insert into public.tasks (id, board_id, title, description)"
            " select %(board)s || '-' || i, %(board)s, 'T', repeat('x', %(size)s)"
            " from generate_series(1, %(tasks)s) i",
            {"board": board, "size": size, "tasks": tasks},
        )

    def change(self, task: str = "board-1") -> None:
        """Commit one change."""
        title = f"@{self.sequence}:{time.monotonic_ns()}@ {self.padding}"
        self.sequence += 1
        self.connection.execute("update public.tasks set title = %s where id = %s", [title, task])

    def round(self, count: int) -> None:
        """Commit so many changes in a row, without waiting for the answer to each."""
        with self.connection.pipeline() as pipeline:
            for _ in range(count):
                self.change()
                pipeline.sync()

    def rate(self, per_second: int, seconds: float, task: str = "board-1") -> int:
        """Commit changes at a rate; return how many."""
        begun, count = time.perf_counter(), int(per_second * seconds)
        for number in range(count):
            if (early := begun + number / per_second - time.perf_counter()) > 0:
                time.sleep(early)
            self.change(task)
        return count

    def burst(self, count: int) -> int:
        """Change so many tasks in one transaction; return the time just before its commit, in ns."""
        with self.connection.transaction():
            self.connection.execute(
                "update public.tasks set title = '@' || n || ':' || %s::bigint || '@ some words of a title'"
                " from (select id, row_number() over () n from public.tasks where board_id = 'board' limit %s) as t"
                " where t.id = tasks.id",
                [time.monotonic_ns(), count],
            )
            return time.monotonic_ns()


@dataclass
class Bench:
    """A Postgres, with one database per contender."""

    dsn: str
    size: Size = field(default_factory=Size)

    def database(self, name: str) -> str:
        """Return the connection string of an empty database."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in ("drop database if exists {} with (force)", "create database {}"):
                connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
        return self.dsn.rsplit("/", 1)[0] + "/" + name

    @contextlib.contextmanager
    def writer(self, contender: Contender, tasks: int = 1, size: int = 0) -> Iterator[tuple[Writer, str]]:
        """Set up the contender's database, with tasks on one board."""
        dsn = self.database("bench_" + contender.name)
        install.run(dsn, "tasks")
        with psycopg.connect(dsn, autocommit=True) as connection:
            writer = Writer(connection)
            writer.fill(tasks, size=size)
            contender.prepare(dsn)
            connection.execute("vacuum analyze public.tasks")
            yield writer, dsn

    @contextlib.contextmanager
    def subscribed(
        self, contender: Contender, count: int, tasks: int = 1, size: int = 0
    ) -> Iterator[tuple[Writer, Running, Load]]:
        """Run the contender with so many subscribers of one board, warmed up."""
        with (
            self.writer(contender, tasks, size) as (writer, dsn),
            contender.run(dsn) as running,
            contextlib.closing(Load(running, count)) as load,
        ):
            load.answer()
            for number in range(1, 11):
                writer.change()
                load.wait(number * count)
            load.ask("reset")
            yield writer, running, load


@contextlib.contextmanager
def _used(running: Running, load: Load, found: Numbers) -> Iterator[None]:
    """Add the share of its core that each side used."""
    begun, server, clients = time.perf_counter(), running.cpu(), cpu_of(load.pid)
    yield
    seconds = time.perf_counter() - begun
    found["server_cpu_s"] = running.cpu() - server
    found["server_core"] = found["server_cpu_s"] / seconds
    found["load_core"] = (cpu_of(load.pid) - clients) / seconds


def _offered(bench: Bench, contender: Contender, rate: int, seconds: float, stalled: int = 0) -> Numbers:
    found: Numbers = {}
    with bench.subscribed(contender, bench.size.subscribers) as (writer, running, load):
        running.forget_peak()
        memory = running.memory()
        if stalled:
            load.ask(f"stall {stalled}")
        with _used(running, load, found):
            count = writer.rate(rate, seconds)
            ended = time.perf_counter()
            reached = load.wait(count * (bench.size.subscribers - stalled), DRAIN_SECONDS)
        report = load.ask("report")
        found |= {name: report[name] for name in ("p50", "p90", "p99", "max", "last_p50", "last_p99")}
        found["behind_s"] = time.perf_counter() - ended
        found["kept_up"] = reached
        found["cpu_us_per_delivery"] = found["server_cpu_s"] / max(report["deliveries"], 1) * 1e6
        found["growth_mb"] = (running.memory("VmHWM") - memory) / MB
        found["dropped"] = sum(report["closes"].values())
    return found


def sustained(bench: Bench, contender: Contender, window: int, padding: int = 0) -> Numbers:
    """Deliveries a second with so many changes in flight."""
    found: Numbers = {}
    subscribers = bench.size.subscribers
    with bench.subscribed(contender, subscribers) as (writer, running, load):
        writer.padding = "x" * padding or writer.padding
        with _used(running, load, found):
            begun, sent = time.perf_counter(), 0
            while time.perf_counter() - begun < bench.size.seconds / 2:
                writer.round(window)
                sent += window
                if not load.wait(sent * subscribers):
                    raise RuntimeError(f"{contender.name} lost a delivery")
            found["deliveries_per_s"] = sent * subscribers / (time.perf_counter() - begun)
        found["cpu_us_per_delivery"] = found["server_cpu_s"] / (sent * subscribers) * 1e6
    return found


def burst(bench: Bench, contender: Contender) -> Numbers:
    """Seconds from the commit of many changes in one transaction to the last delivery."""
    count, subscribers = bench.size.burst, bench.size.subscribers
    with bench.subscribed(contender, subscribers, tasks=count) as (writer, _, load):
        at = writer.burst(count)
        load.wait(count * subscribers, 120)
        return {"seconds": (load.ask("report")["last_at"] - at) / 1e9}


def commits(bench: Bench, contender: Contender) -> Numbers:
    """The same changes as separate commits: the writer's own seconds, and those until the last delivery."""
    count, subscribers = bench.size.burst, bench.size.subscribers
    with bench.subscribed(contender, subscribers) as (writer, _, load):
        begun = time.monotonic_ns()
        for _ in range(count):
            writer.change()
        own = (time.monotonic_ns() - begun) / 1e9
        load.wait(count * subscribers, 120)
        seconds = (load.ask("report")["last_at"] - begun) / 1e9
        return {"writer_s": own, "seconds": seconds, "ratio": seconds / own}


def memory(bench: Bench, contender: Contender) -> Numbers:
    """Kilobytes of resident memory per idle connection, and the share of a core that idling takes."""
    count = bench.size.many
    with bench.writer(contender) as (_, dsn), contender.run(dsn) as running:
        before = running.memory()
        with contextlib.closing(Load(running, count)) as load:
            load.answer()
            time.sleep(bench.size.settle)
            found = {"kb": (running.memory() - before) / count / KB}
            begun = running.cpu()
            time.sleep(bench.size.seconds)
            return found | {"idle_core": (running.cpu() - begun) / bench.size.seconds}


def arrive(bench: Bench, contender: Contender) -> Numbers:
    """Connections a second, what each costs to make, in ms of processor, and to keep, in KB of memory."""
    count = bench.size.many
    with bench.writer(contender) as (_, dsn), contender.run(dsn) as running:
        memory, cpu = running.memory(), running.cpu()
        with contextlib.closing(Load(running, count)) as load:
            seconds = load.answer()["seconds"]
            own = (running.cpu() - cpu) / count * 1e3
            time.sleep(bench.size.settle)
            return {
                "connections_per_s": count / seconds,
                "cpu_ms_per_connection": own,
                "load_core": cpu_of(load.pid) / seconds,
                "kb": (running.memory() - memory) / count / KB,
            }


def stampede(bench: Bench, contender: Contender) -> Numbers:
    """Seconds in which many connect at once, subscribe, and receive a board of 50 KB each."""
    count = bench.size.many
    with (
        bench.writer(contender, tasks=150, size=120) as (_, dsn),
        contender.run(dsn) as running,
        contextlib.closing(Load(running, count)) as load,
    ):
        return {"seconds": load.answer()["seconds"], "kb": load.ask("report")["bytes"] / count / KB}


def crowd(bench: Bench, contender: Contender, subscribers: int, boards: int, rate: int) -> Numbers:
    """Microseconds of processor per change of a board, when as many subscribers share it, or have one each."""
    with bench.writer(contender) as (writer, dsn):
        writer.connection.execute(
            "insert into public.tasks (id, board_id, title)"
            " select 'x' || i, 'x' || i, 'T' from generate_series(0, %s) i",
            [boards],
        )
        with (
            contender.run(dsn) as running,
            contextlib.closing(Load(running, subscribers, "x%d" if boards > 1 else "x0")) as load,
        ):
            load.answer()
            time.sleep(bench.size.settle)
            load.ask("reset")
            begun = running.cpu()
            changes = writer.rate(rate, bench.size.seconds, "x0")
            load.wait(changes * (1 if boards > 1 else subscribers))
            report = load.ask("report")
            cpu = (running.cpu() - begun) / changes * 1e6
            return {"cpu_us_per_change": cpu, "p50": report["p50"], "p99": report["p99"]}


def transaction(bench: Bench, contender: Contender) -> Numbers:
    """One huge transaction to ten subscribers: seconds until all have it, and how far memory grew meanwhile."""
    count = bench.size.rows
    with bench.subscribed(contender, 10) as (writer, running, load):
        writer.fill(count, "board2")
        running.forget_peak()
        before = running.memory()
        with writer.connection.transaction():
            writer.connection.execute(
                "update public.tasks set board_id = 'board', title = '@' || substr(id, 8) || ':1@'"
                " where board_id = 'board2'"
            )
            at = time.monotonic_ns()
        frames = 0
        while frames < 10 * count:
            load.wait(10**12, 0.1)
            report = load.ask("report")
            frames = report["frames"]
            if time.monotonic_ns() - at > 60e9:
                break
        return {"seconds": (time.monotonic_ns() - at) / 1e9, "growth_mb": (running.memory("VmHWM") - before) / MB}


@dataclass(frozen=True)
class Scenario:
    """A measurement, and for whom it is made: all contenders, or the relay alone."""

    name: str
    title: str
    measure: Callable[[Bench, Contender], Numbers]
    relay_only: bool = False
    boards_only: bool = False
    """Whether it is about sending boards, which nchan does not."""

    runs: int | None = None
    contender: Callable[[], Contender] | None = None
    among: tuple[Contender, ...] = ()
    """Those that it is made for, if they are others than in the rest of the comparison."""

    def suits(self, contender: Contender) -> bool:
        """Tell whether it is made for this contender."""
        if self.relay_only:
            return contender.name == "relay"
        return contender.name != "nchan" or not self.boards_only


def scenarios(size: Size) -> list[Scenario]:
    """Return all of them, in the order of the table."""
    found = [
        Scenario(
            f"rate-{rate}",
            f"{rate} changes/s to {size.subscribers:,} subscribers",
            functools.partial(_offered, rate=rate, seconds=max(size.seconds, size.changes / rate)),
        )
        for rate in size.rates
    ]
    found += [
        Scenario(
            f"sustained-{window}",
            f"sustained, {window} in flight, {size.subscribers:,} subscribers",
            functools.partial(sustained, window=window),
        )
        for window in size.windows
    ]
    found += [
        Scenario("burst", f"{size.burst:,} changes in one transaction", burst),
        Scenario("commits", f"{size.burst:,} commits in a row", commits),
        Scenario("memory", f"{size.many:,} idle connections", memory),
        Scenario("stampede", f"{size.many:,} connect at once, a board each", stampede, boards_only=True),
    ]
    top = size.rates[-1]

    def alone(name: str, title: str, measure: Callable[[Bench, Contender], Numbers], **more: Any) -> None:
        found.append(Scenario(name, title, measure, relay_only=True, **more))

    alone(
        "minute",
        f"{top} changes/s for {size.minute:g} s",
        functools.partial(_offered, rate=top, seconds=size.minute),
        runs=1,
    )
    alone(
        "stalled",
        f"{top} changes/s, 1 % read nothing",
        functools.partial(_offered, rate=top, seconds=size.seconds, stalled=max(1, size.subscribers // 100)),
    )
    many = size.crowd
    for name, title, subscribers, boards, rate in (
        ("crowd-alone", "one board, one subscriber, 20 changes/s", 1, 1, 20),
        ("crowd-boards", f"{many:,} boards, a subscriber each, 20 changes/s of one", many, many, 20),
        ("crowd-one", f"one board, {many:,} subscribers, 4 changes/s", many, 1, 4),
    ):
        alone(name, title, functools.partial(crowd, subscribers=subscribers, boards=boards, rate=rate))
    alone("transaction", f"one transaction of {size.rows:,} rows", transaction)
    for padding in (100, 1000, 10_000):
        alone(
            f"title-{padding}",
            f"sustained, 16 in flight, titles of {padding:,} characters",
            functools.partial(sustained, window=16, padding=padding),
        )
    for workers in (1, 2):
        alone(
            f"workers-{workers}",
            f"sustained, 64 in flight, {workers} worker(s), both cores for all",
            functools.partial(sustained, window=64),
            contender=functools.partial(Relay, workers, core="0,1"),
        )
    for name, title, measure in (
        ("wire-1", "ws:// and wss://: sustained, 1 in flight", functools.partial(sustained, window=1)),
        ("wire-16", "ws:// and wss://: sustained, 16 in flight", functools.partial(sustained, window=16)),
        ("wire-arrive", f"ws:// and wss://: {size.many:,} connect at once", arrive),
    ):
        found.append(Scenario(name, title, measure, among=wires(size.tls)))
    return found
