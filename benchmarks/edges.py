"""What the way through NATS costs: a relay on Postgres, and edges behind a publisher and NATS, with the same commits.

    python -m benchmarks.edges                   # about six minutes, where nothing else runs
    python -m benchmarks.edges --edges 1 2 --seconds 1 --rounds 1 --clients 10
    python -m benchmarks.edges --json edges.json

All run beside each other on one embedded Postgres and one nats-server, as daemons, each a process without limits. The
loads come in turns, up and down, as many times as there are rounds:

- alone: a commit now and then
- one board, and a hundred: commits at a pace at which each sends a notification
- writers: eight at full speed, on ten boards and on ten thousand
- bulk: one statement that changes all tasks of ten boards

One edge has no client, one has one, and one has several: so it shows what reading costs, what following a board does,
and what a delivery does. Then there are one, two and more edges, each with clients; and one edge dies, and all its
clients come to another.

Where there is more than one round, Postgres and NATS have one core, and everything else another. The processor time
is what to compare: it counts each process by itself. Times suffer where the second core is full. A stretch with
writers ends when the last client has all that was written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.relays import (
    BOARDS,
    PACE,
    PROBES,
    SETTINGS,
    WRITE,
    WRITERS,
    Fleet,
    Probe,
    Relay,
    at_rate,
    client_of,
    cpu_us,
    keep_apart,
    named,
    prepare,
    queries,
    subscribe,
)
from relay import config
from relay.commands.bench import run as bench
from relay.commands.bench.lab import ROWS
from relay.commands.bench.subscribers import BOARD, stamped
from relay.config import Settings
from relay.nats.boards import ASKED_AT_ONCE
from relay.nats.jetstream import Stream
from relay.nats.stream import State, decode
from relay.postgres.embedded import HOST, EmbeddedPostgres, free_port
from tests.nats import NatsServer

SEVERAL: Final = 20
"""Clients of the edge that has several."""

CROWDS: Final = {"edge, no client": 0, "edge, 1 client": 1, f"edge, {SEVERAL} clients": SEVERAL}
"""The edges of the first part, each with clients of the board that the probe writes."""

DIRECT: Final = "relay on Postgres"
PUBLISHER: Final = "publisher"
NATS: Final = "NATS server"
OF_PUBLISHER: Final = "Postgres, for the publisher"
OF_RELAY: Final = "Postgres, for the relay"
OF_WRITERS: Final = "Postgres, for the writers"

SHORT: Final = {
    OF_PUBLISHER: "its Postgres",
    PUBLISHER: "publisher",
    NATS: "NATS",
    **{name: f"edge, {clients}" for name, clients in CROWDS.items()},
    OF_RELAY: "its Postgres",
    DIRECT: "relay",
}
"""Heads of columns."""

TIMED: Final = ("alone", "one board", "100 boards")
"""Loads at which the second core is not full."""

REST_SECONDS: Final = 2.2
"""Time after which a relay that was polling is notified again."""

COUNTS: Final = (1, 2, 4, 8)
COMING_BACK: Final = (50, 400)
ALONE: Final = 4
"""Commits a second that come alone."""

HUNDRED: Final = 100
SMALL_BOARDS: Final = 100
"""Of a task each, so many are asked for each second of a stretch."""

POLLS_US: Final = 66_000
"""Processor time a second of the polls of a publisher, which are those of a relay."""

MESSAGE_BYTES: Final = len(
    f'{{"type":"task.updated","data":{{"id":"{BOARD}","changes":{{"title":"{stamped(1000)}"}}}}}}'
)
"""Of the message that a change of the probe becomes."""

PATIENCE_SECONDS: Final = 60.0

WIDE: Final = f"""
    insert into public.relay (id, board_id, title, lane)
    select 'wide-' || i, 'wide-' || i, 'A title', 'todo' from generate_series(1, {ROWS}) i
"""
"""As many tasks again, each on a board of its own."""

WRITE_WIDE: Final = WRITE.replace("public.write(", "public.write_wide(").replace("'task-'", "'wide-'")


@dataclass(frozen=True)
class Window:
    """What was measured in one stretch of time."""

    seconds: float
    """From the first statement until everybody had all."""

    changes: int
    entries: int
    """Of the stream."""

    stream_bytes: int
    nats_bytes: int
    """That NATS wrote, to its connections and to its files."""

    cpu: Mapping[str, float]
    """Processor time in µs, by whose."""

    p50: Mapping[str, float]
    p99: Mapping[str, float]
    """Milliseconds from just before the commit to clients, by the relay or edge that they are of."""

    def per_change(self, whose: str, idle: Mapping[str, float]) -> float:
        """Return µs of a change, beyond what is taken while nothing is written."""
        return (self.cpu.get(whose, 0) - idle.get(whose, 0) * self.seconds) / self.changes


@dataclass(frozen=True)
class Return:
    """What it cost that all clients of an edge came to another."""

    clients: int
    resuming: bool
    questions: int
    """That edges asked the publisher."""

    queries: int
    """Statements of the publisher, beyond what it asks while idle."""

    seconds: float
    syncs: int


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--edges", type=int, nargs="*", default=list(COUNTS), help="how many there are, in turns")
    options.add_argument("--clients", type=int, default=10, help="of each of these edges")
    options.add_argument("--seconds", type=float, default=3, help="length of each stretch of writing")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--moving", type=int, nargs="*", default=list(COMING_BACK), help="who move to another edge")
    options.add_argument("--json", type=Path, help="file to write what was found to")
    given = options.parse_args()
    with lab(min(given.seconds, REST_SECONDS), apart=given.rounds > 1) as site:
        machine = {**bench.machine(site.watcher), "system": platform.platform()}
        print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
        with beside(site) as everybody:
            found = hops(site, everybody, given.rounds, given.seconds)
            memory = site.memory(everybody)
        print_hops(found)
        print_memory(memory)
        rows = growth(site, sorted(given.edges), given.clients, given.rounds, given.seconds)
        print_growth(rows)
        figures = constants(found, rows) | {
            "boards that the publisher reads a second": boards_a_second(site, round(given.seconds * SMALL_BOARDS)),
            "memory of the publisher, MB": memory[PUBLISHER],
            "memory of the NATS server, MB": memory[NATS],
            "memory of an edge, MB": memory["edge, no client"],
        }
        print_constants(figures)
        with Fleet(lambda: site.edge(0)) as fleet:
            ways = [(size, resuming) for size in given.moving for resuming in (True, False)]
            returns = [moved(site, fleet, size, resuming=resuming) for size, resuming in ways]
        if returns:
            print_returns(returns)
    if given.json:
        document = {
            "machine": machine,
            "loads": {load: [asdict(it) for it in its] for load, its in found.items()},
            "memory": memory,
            "edges": [asdict(it) for it in rows],
            "constants": figures,
            "returns": [asdict(it) for it in returns],
        }
        given.json.write_text(json.dumps(document, indent=1) + "\n")


# The world


@dataclass
class Site:
    """Postgres, NATS and a publisher, and what is measured with."""

    dsn: str
    watcher: psycopg.Connection
    nats: NatsServer
    monitor: int
    """The port on which NATS tells how it is."""

    publisher: int
    writers: Sequence[psycopg.Connection]
    probe: Probe
    rest: float
    """Seconds between stretches."""

    def edge(self, clients: int) -> contextlib.AbstractContextManager[Relay]:
        """Start an edge."""
        return Relay.on("", clients, SERVE_FROM=self.nats.url)

    def readings(self, relays: Mapping[str, Relay]) -> dict[str, float]:
        """Return all counters: what stands in a window is the difference of two."""
        found: defaultdict[str, float] = defaultdict(float)
        backends = self.watcher.execute(
            "select pid, case backend_type when 'client backend' then application_name else 'rest' end"
            " from pg_stat_activity where pid <> pg_backend_pid()"
        )
        for pid, kind in backends.fetchall():
            with contextlib.suppress(OSError):  # an autovacuum worker may have ended
                found[f"Postgres, for the {kind}"] += cpu_us(pid)
        found |= {name: cpu_us(relay.pid) for name, relay in relays.items()}
        found |= {PUBLISHER: cpu_us(self.publisher), NATS: cpu_us(self.nats.pid), "at": time.perf_counter()}
        stream = self.ask_nats("jsz?streams=true")["account_details"][0]["stream_detail"][0]["state"]
        written = Path(f"/proc/{self.nats.pid}/io").read_text().split()[3]
        return found | {"entries": stream["last_seq"], "bytes": stream["bytes"], "written": int(written)}

    def ask_nats(self, what: str) -> Any:
        """Ask NATS how it is."""
        with urllib.request.urlopen(f"http://{HOST}:{self.monitor}/{what}", timeout=10) as response:
            return json.load(response)

    def window(self, relays: Mapping[str, Relay], write: Callable[[], tuple[int, int]]) -> Window:
        """Measure while something is written; it returns how many changes that was, and how many of the probe."""
        watched = {name: relay for name, relay in relays.items() if relay.clients}
        for relay in watched.values():
            relay.answer("report")
        before = self.readings(relays)
        changes, probes = write()
        for name, relay in watched.items():
            if not relay.answer(f"wait {probes * relay.clients} {PATIENCE_SECONDS}")["reached"]:
                raise RuntimeError(f"the clients of {name} have not got all after {PATIENCE_SECONDS:.0f} seconds")
        after = self.readings(relays)
        reports = {name: relay.answer("report") for name, relay in watched.items()}
        used = {name: value - before.get(name, 0) for name, value in after.items()}
        return Window(
            seconds=used.pop("at"),
            changes=changes,
            entries=int(used.pop("entries")),
            stream_bytes=int(used.pop("bytes")),
            nats_bytes=int(used.pop("written")),
            cpu=used,
            p50={name: report["p50"] for name, report in reports.items() if report["p50"] is not None},
            p99={name: report["p99"] for name, report in reports.items() if report["p99"] is not None},
        )

    def memory(self, everybody: Mapping[str, Relay]) -> dict[str, float]:
        """Return how many MB each takes now."""
        pids = {PUBLISHER: self.publisher, NATS: self.nats.pid}
        pids |= {name: relay.pid for name, relay in everybody.items()}
        return {name: resident_mb(pid) for name, pid in pids.items()}


@contextlib.contextmanager
def lab(rest: float, *, apart: bool) -> Iterator[Site]:
    """Start Postgres, NATS and a publisher, and prepare what is written."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(settings=SETTINGS))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        monitor = free_port()
        nats = NatsServer(Path(folder), f"http: {HOST}:{monitor}").start()
        stack.callback(nats.stop)
        if apart:
            keep_apart(server.pid)
            for task in Path(f"/proc/{nats.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), os.sched_getaffinity(server.pid))
        prepare(server.dsn)
        watcher = stack.enter_context(psycopg.connect(named(server.dsn, "watcher"), autocommit=True))
        for statement in (WIDE, WRITE_WIDE, "vacuum analyze"):
            watcher.execute(statement.encode())
        publisher = stack.enter_context(publishing(server.dsn, nats))
        *writers, probe = (
            stack.enter_context(psycopg.connect(named(server.dsn, "writers"), autocommit=True))
            for _ in range(WRITERS + 1)
        )
        yield Site(server.dsn, watcher, nats, monitor, publisher, writers, Probe(probe), rest)


@contextlib.contextmanager
def publishing(dsn: str, nats: NatsServer) -> Iterator[int]:
    """Run a publisher; yield its process id once it has written to the stream."""
    defaults = {name: str(field.default) for name, field in Settings.model_fields.items()}
    ours = {"WS_HOST": HOST, "HEALTH_PORT": "0", "PUBLISH_TO": nats.url}
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "publish"],
        env={**os.environ, **defaults, **ours, "DATABASE_URL": named(dsn, "publisher", user="relay_daemon")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr
        events = (json.loads(line)["event"] for line in process.stderr)
        if not any(event == "feed.running" for event in events):
            raise RuntimeError("relay publish ended before it published")
        threading.Thread(target=all, args=[events], daemon=True).start()  # so that it never waits for us
        yield process.pid
    finally:
        process.terminate()
        process.wait()  # the thread reads to the end


@contextlib.contextmanager
def beside(site: Site) -> Iterator[dict[str, Relay]]:
    """Start a relay on Postgres, and an edge of each kind."""
    dsn = named(site.dsn, "relay", user="relay_daemon")
    starts = {DIRECT: Relay.on(dsn, 1)} | {name: site.edge(clients) for name, clients in CROWDS.items()}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(starts)) as pool:
        yield dict(zip(starts, pool.map(stack.enter_context, starts.values()), strict=True))


def resident_mb(pid: int) -> float:
    """Return the memory of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


# Loads: each returns how many changes it made, and how many of these are the probe's


def idle(seconds: float) -> tuple[int, int]:
    """Write nothing."""
    time.sleep(seconds)
    return 0, 0


def paced(site: Site, seconds: float) -> tuple[int, int]:
    """Commit at a pace, on a hundred boards and on the probe's."""

    def write() -> int:
        count = round(seconds * (PACE - PROBES))
        for number in at_rate(PACE - PROBES, count):
            update = "update public.relay set estimated_hours = coalesce(estimated_hours, 0) + 1 where id = %s"
            site.writers[number % WRITERS].execute(update, [f"wide-{number % HUNDRED + 1}"])
        return count

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(write)
        probes = site.probe.run(seconds)
        return probes + other.result(), probes


def full(site: Site, seconds: float, procedure: str) -> tuple[int, int]:
    """Commit as fast as the server can, in loops within it."""

    def write(connection: psycopg.Connection) -> int:
        row = connection.execute(f"call public.{procedure}(%s, 0)".encode(), [seconds]).fetchone()
        assert row
        return int(row[0])

    with ThreadPoolExecutor(WRITERS) as pool:
        commits = pool.map(write, site.writers)
        probes = site.probe.run(seconds)
        return probes + sum(commits), probes


def bulk(site: Site) -> tuple[int, int]:
    """Change all tasks of ten boards in one statement, and then the probe's."""
    update = "update public.relay set estimated_hours = coalesce(estimated_hours, 0) + 1 where id like 'task-%'"
    changes = site.writers[0].execute(update).rowcount
    return changes + site.probe.run(1, 1), 1


def probed(site: Site, seconds: float, rate: float) -> tuple[int, int]:
    """Commit on one board alone."""
    probes = site.probe.run(seconds, rate)
    return probes, probes


# What is measured


Found = dict[str, list[Window]]
"""Windows of all rounds, by load."""


def hops(site: Site, everybody: Mapping[str, Relay], rounds: int, seconds: float) -> Found:
    """Measure each load in each round."""
    loads: dict[str, Callable[[], tuple[int, int]]] = {
        "idle": lambda: idle(seconds),
        "alone": lambda: probed(site, seconds, ALONE),
        "one board": lambda: probed(site, seconds, PACE),
        "100 boards": lambda: paced(site, seconds),
        "writers": lambda: full(site, seconds, "write"),
        "writers, wide": lambda: full(site, seconds, "write_wide"),
        "bulk": lambda: bulk(site),
    }
    site.window(everybody, loads["writers"])  # so that caches are warm
    found: Found = {load: [] for load in loads}
    for turn in range(rounds):
        for name in loads if turn % 2 == 0 else reversed(loads):
            time.sleep(site.rest)  # until relays are notified again
            found[name].append(site.window(everybody, loads[name]))
    return found


@dataclass(frozen=True)
class Row:
    """What a number of edges took, each with as many clients of one board; medians, processor time in µs a second."""

    load: str
    edges: int
    clients: int
    changes: float
    """A second."""

    database: float
    """That is not the writers'."""

    publisher: float
    nats: float
    edge: float
    """Of each."""

    sent: float
    """Bytes a second that NATS wrote, to edges and to its files."""

    p50: float | None
    p99: float | None


def growth(site: Site, counts: Sequence[int], clients: int, rounds: int, seconds: float) -> list[Row]:
    """Measure numbers of edges, each with clients of one board: idle, with commits at a pace, and with writers."""
    loads: dict[str, Callable[[], tuple[int, int]]] = {
        "idle": lambda: idle(seconds),
        "one board": lambda: probed(site, seconds, PACE),
        "writers, wide": lambda: full(site, seconds, "write_wide"),
    }
    found: dict[tuple[str, int], list[Window]] = defaultdict(list)
    with Fleet(lambda: site.edge(clients)) as fleet:
        for turn in range(rounds):
            for count in counts if turn % 2 == 0 else reversed(counts):
                fleet.resize(count)
                edges = {edge_name(number): relay for number, relay in enumerate(fleet.relays)}
                for load, write in loads.items():
                    time.sleep(site.rest)
                    found[load, count].append(site.window(edges, write))
    return [row(load, count, clients, found[load, count]) for load in loads for count in counts]


def row(load: str, count: int, clients: int, its: Sequence[Window]) -> Row:
    """Take the medians."""
    names = [edge_name(number) for number in range(count)]
    rate = rates(its)
    timed = [times(its, name) for name in names] if clients and its[0].p50 else []
    return Row(
        load,
        count,
        clients,
        changes=of(its, lambda it: it.changes / it.seconds),
        database=of(its, lambda it: (it.cpu[OF_PUBLISHER] + it.cpu["Postgres, for the rest"]) / it.seconds),
        publisher=rate[PUBLISHER],
        nats=rate[NATS],
        edge=statistics.fmean(rate[name] for name in names),
        sent=of(its, lambda it: it.nats_bytes / it.seconds),
        p50=statistics.fmean(p50 for p50, _ in timed) if timed else None,
        p99=statistics.fmean(p99 for _, p99 in timed) if timed else None,
    )


def edge_name(number: int) -> str:
    """Name one of several edges."""
    return f"edge {number + 1}"


def moved(site: Site, fleet: Fleet, size: int, *, resuming: bool) -> Return:
    """Start two edges, and kill the one that clients are of, while changes are committed that they miss."""
    fleet.resize(1)  # that one forgets a board with its last client
    fleet.resize(2)
    time.sleep(site.rest)
    other, victim = fleet.relays
    return asyncio.run(one_dies(site, other, victim, size, resuming=resuming))


async def one_dies(site: Site, other: Relay, victim: Relay, size: int, *, resuming: bool) -> Return:
    """Have all clients of one edge come to the other."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(victim)) for _ in range(size)]
        firsts = [await subscribe(client, number, None) for number, client in enumerate(clients)]
        asked = await stack.enter_async_context(questions(site.nats))
        idle_rate = await asking(site)
        before, began = queries(site.watcher), time.perf_counter()
        os.kill(victim.pid, signal.SIGKILL)
        await asyncio.gather(*(client.wait_closed() for client in clients))
        site.watcher.execute("update public.relay set title = title || '+' where id ~ '^task-[0-9]$'")

        async def returned(number: int, cursor: str | None) -> bool:
            """Come back, and say whether that took a whole board."""
            client = await stack.enter_async_context(client_of(other))
            return bool((await subscribe(client, number, cursor))["type"] == "board.sync")

        cursors = [first["cursor"] if resuming else None for first in firsts]
        syncs = await asyncio.gather(*(returned(number, cursor) for number, cursor in enumerate(cursors)))
        seconds = time.perf_counter() - began
        sent = queries(site.watcher) - before - idle_rate * seconds
        return Return(size, resuming, len(asked), round(sent), seconds, sum(syncs))


def boards_a_second(site: Site, count: int) -> float:
    """Return how many small boards the publisher reads a second, when an edge asks for one after the other."""

    async def ask() -> float:
        settings = config.load({"SERVE_FROM": site.nats.url})
        async with Stream.open(settings, settings.SERVE_FROM, "benchmark") as stream:
            found = await stream.last_state()
            state = found and decode(found[1])
            assert isinstance(state, State)
            began = time.perf_counter()
            for number in range(count // ASKED_AT_ONCE):
                names = (f"wide-{number * ASKED_AT_ONCE + one + 1}" for one in range(ASKED_AT_ONCE))
                await asyncio.gather(
                    *(stream.questions.ask(state.asked_at, "board", name.encode()) for name in names)
                )
            return count // ASKED_AT_ONCE * ASKED_AT_ONCE / (time.perf_counter() - began)

    return asyncio.run(ask())


@contextlib.asynccontextmanager
async def questions(nats: NatsServer) -> AsyncIterator[list[str]]:
    """Listen to what edges ask the publisher."""
    asked: list[str] = []

    async def take(message: Msg) -> None:
        asked.append(message.subject)

    client = Client()
    await client.connect(nats.url)
    try:
        await client.subscribe("relay.ask.>", cb=take)
        await client.flush()
        yield asked
    finally:
        await client.close()


async def asking(site: Site) -> float:
    """Return how many statements a second the publisher sends while idle."""
    before, began = queries(site.watcher), time.perf_counter()
    await asyncio.sleep(site.rest)
    return (queries(site.watcher) - before) / (time.perf_counter() - began)


# What it says


def of(windows: Sequence[Window], value: Callable[[Window], float]) -> float:
    """Return the median of a figure."""
    return statistics.median(map(value, windows))


def rates(windows: Sequence[Window]) -> dict[str, float]:
    """Return the processor time of a second, by whose."""
    return {name: of(windows, lambda it: it.cpu[name] / it.seconds) for name in windows[0].cpu}  # noqa: B023


def times(windows: Sequence[Window], name: str) -> tuple[float, float]:
    """Return medians of what half and of what 99 of 100 deliveries took at most."""
    return of(windows, lambda it: it.p50[name]), of(windows, lambda it: it.p99[name])


def print_hops(found: Found) -> None:
    """Print a row for each load: how long, how much, and each hop's share."""
    whose = (OF_PUBLISHER, PUBLISHER, NATS, *CROWDS, OF_RELAY, DIRECT)
    print("\ncommit to client, p50 and p99 in ms (medians)")
    head = f"{'':16}{DIRECT:>24}{'edge, 1 client':>24}{'NATS adds':>24}"
    print(head)
    for load, its in found.items():
        if load in TIMED:
            direct, through = times(its, DIRECT), times(its, "edge, 1 client")
            added = (through[0] - direct[0], through[1] - direct[1])
            print(f"{load:16}" + "".join(f"{p50:14.1f}{p99:10.1f}" for p50, p99 in (direct, through, added)))
    idle_rates = rates(found["idle"])
    print("\nprocessor in µs a change, beyond idle; idle: µs a second (medians)")
    print(
        f"{'':16}{'changes/s':>12}{'entries/s':>12}{'bytes each':>12}" + "".join(f"{SHORT[it]:>14}" for it in whose)
    )
    print(f"{'idle':16}{'':36}" + "".join(f"{idle_rates[it]:14,.0f}" for it in whose))
    for load, its in found.items():
        if load != "idle":
            figures = f"{of(its, lambda it: it.changes / it.seconds):12,.0f}"
            figures += f"{of(its, lambda it: it.entries / it.seconds):12,.0f}"
            figures += f"{of(its, lambda it: it.stream_bytes / it.changes):12,.0f}"
            figures += "".join(f"{of(its, lambda it: it.per_change(name, idle_rates)):14,.1f}" for name in whose)  # noqa: B023
            print(f"{load:16}{figures}")
    print("\nchanges a second that a core of each would bear, by that")
    for load in ("writers", "writers, wide", "bulk"):
        cells = ""
        for name in (PUBLISHER, NATS, whose[3]):
            each = of(found[load], lambda it: it.per_change(name, idle_rates))  # noqa: B023  # called at once
            cells += f"{SHORT[name]:>14}{bearable(each):>10}"
        print(f"{load:16}{cells}")
    sys.stdout.flush()


def bearable(each: float) -> str:
    """Write how often something that takes so many µs can be done in a second, to two digits."""
    return f"{float(f'{1e6 / each:.1e}'):,.0f}" if each > 0 else "-"


def print_growth(found: Sequence[Row]) -> None:
    """Print a row for each load and number of edges."""
    heads = ("changes/s", "Postgres", "publisher", "NATS", "each edge", "sent, kB/s", "p50 ms", "p99 ms")
    print("\nedges with clients each of one board: processor in µs a second (medians); Postgres without the writers")
    print(f"{'':16}{'edges':>8}{'clients':>10}" + "".join(f"{head:>12}" for head in heads))
    for it in found:
        figures = (it.changes, it.database, it.publisher, it.nats, it.edge, it.sent / 1e3)
        cells = [f"{figure:,.0f}" for figure in figures]
        cells += ["-" if time is None else f"{time:,.1f}" for time in (it.p50, it.p99)]
        print(f"{it.load:16}{it.edges:>8}{it.clients:>10}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def print_memory(memory: Mapping[str, float]) -> None:
    """Print what each has in memory."""
    print("\nmemory after all this, MB")
    for name, value in memory.items():
        print(f"  {name:24}{value:8,.0f}", flush=True)


def constants(found: Found, rows: Sequence[Row]) -> dict[str, float]:
    """Return what each hop costs: µs of a processor, but where it says otherwise."""
    none, one, several = CROWDS
    idle_rates = rates(found["idle"])
    busy = rates(found["writers"])

    def each(load: str, name: str) -> float:
        return of(found[load], lambda it: it.per_change(name, idle_rates))

    def among_many(name: str) -> float:
        """Each change on another board, beside what it takes that there are any."""
        wide = found["writers, wide"]
        return of(wide, lambda it: (it.cpu[name] - busy[name] * it.seconds) / it.changes)

    delivery = (each("one board", several) - each("one board", one)) / (SEVERAL - 1)
    follow = each("one board", one) - each("one board", none) - delivery
    figures = {
        "publisher, idle, a second": idle_rates[PUBLISHER],
        "publisher, a change by itself": each("100 boards", PUBLISHER),
        "publisher, a change among many, beside its polls": of(
            found["writers, wide"],
            lambda it: it.per_change(PUBLISHER, idle_rates) - POLLS_US * it.seconds / it.changes,
        ),
        "edge, idle, a second": idle_rates[none],
        "edge, a change by itself that nobody follows": each("100 boards", none),
        "edge, a second of batches": busy[none] - idle_rates[none],
        "edge, a change among many that nobody follows": among_many(none),
        "edge, a change that somebody follows, beside that": follow,
        "edge, a delivery": delivery,
        "bytes of the stream, a change by itself": of(found["one board"], lambda it: it.stream_bytes / it.changes),
        "added by NATS to a lone change, p50 ms": of(found["alone"], lambda it: it.p50[one] - it.p50[DIRECT]),
        "added by NATS at 100 a second, p50 ms": of(found["100 boards"], lambda it: it.p50[one] - it.p50[DIRECT]),
        "added by NATS at 100 a second, p99 ms": of(found["100 boards"], lambda it: it.p99[one] - it.p99[DIRECT]),
    }
    return figures | (of_nats(rows) if len({it.edges for it in rows}) > 1 else {})


def of_nats(rows: Sequence[Row]) -> dict[str, float]:
    """Return what the NATS server takes by itself, and for each edge: the slope over numbers of edges."""

    def line(load: str, value: Callable[[Row], float]) -> tuple[float, float]:
        its = [it for it in rows if it.load == load]
        found = statistics.linear_regression([it.edges for it in its], [value(it) for it in its])
        return found.intercept, found.slope

    idle_alone, idle_each = line("idle", lambda it: it.nats)

    def beyond(it: Row) -> float:
        return (it.nats - idle_alone - idle_each * it.edges) / it.changes

    alone, alone_each = line("one board", beyond)
    many, many_each = line("writers, wide", beyond)
    return {
        "NATS, idle, a second": idle_alone,
        "NATS, idle, a second and edge": idle_each,
        "NATS, a change by itself": alone,
        "NATS, a change by itself and edge": alone_each,
        "NATS, a change among many": many,
        "NATS, a change among many and edge": many_each,
        "NATS, bytes to an edge, a change by itself, beside the message": line(
            "one board", lambda it: it.sent / it.changes - MESSAGE_BYTES * it.edges
        )[1],
    }


def print_constants(figures: Mapping[str, float]) -> None:
    """Print what a hop costs."""
    print("\nwhat a hop costs: µs, but where it says otherwise")
    for name, value in figures.items():
        print(f"  {name:56}{value:10,.1f}", flush=True)


def print_returns(returns: Sequence[Return]) -> None:
    """Print what it cost that clients moved."""
    print(f"\nan edge dies, its clients of {BOARDS} boards come to another")
    for it in returns:
        how = "resume" if it.resuming else "begin again"
        cells = f"{it.questions:8,} questions{it.queries:8,} queries{it.seconds:8.2f} s{it.syncs:8,} boards sent"
        print(f"{it.clients:>8} {how:12}{cells}", flush=True)


if __name__ == "__main__":
    main()
