"""What each further relay costs the database: 0 to 8 relays beside each other on one embedded Postgres, in turns.

    python benchmarks/relays.py                  # about four minutes, where nothing else runs
    python benchmarks/relays.py --relays 0 1 --seconds 1 --rounds 1
    python benchmarks/relays.py --json relays.json

The relays are daemons, each a process with a few clients, without limits. The number of them goes up and down, as
many times as there are rounds, and at each number it is measured: while nothing is written but their canaries; with
commits at a pace at which the doorbell rings for each; and with writers at full speed, when the relays look by
themselves. Then one of four is killed, and all its clients come to the others.

Postgres has one core and everything else another: what the relays themselves take does not slow the writers down.
It is printed beside, and where it nears a whole core, the relays look at the journal less often than elsewhere.
Commits do not wait for the disk, unless told to: else they are as many as the disk allows, whatever relays do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from psycopg.conninfo import make_conninfo
from websockets.asyncio.client import ClientConnection, connect

from relay.commands.bench import lab as tables
from relay.commands.bench import run as bench
from relay.commands.bench.subscribers import BOARD, stamped
from relay.postgres import install
from relay.postgres.embedded import HOST, EmbeddedPostgres, free_port
from relay.postgres.schedule import BUSY_TRANSACTIONS
from relay.websocket.listener import ARRIVALS

COUNTS: Final = (0, 1, 2, 4, 8)
WRITERS: Final = 8
PACE: Final = 100
"""Commits a second, those of the probe among them. Up to 250, a relay waits for the doorbell."""

PROBES: Final = 40
"""Commits a second whose latency is measured."""

CLIENTS: Final = 3
"""Of each relay, all of the board that the probe writes."""

IDLE_SECONDS: Final = 5.0
"""As long as from one prune of a relay to the next, which is the longest of what it often does."""

SETTLE_SECONDS: Final = 2.2
"""After that long, a relay that was awake is rung again."""

COMING_BACK: Final = (50, 400)
"""Clients of the relay that is killed."""

ARRIVING: Final = ARRIVALS.start // 2
"""Maximum number of handshakes under way with one relay: a relay ends the oldest ones of an address with too many."""

BOARDS: Final = 10
"""Boards that these clients follow; `lab` makes as many."""

WRITE: Final = f"""
    create procedure public.write(seconds double precision, inout commits bigint) language plpgsql as $$
    declare
        until constant timestamptz := clock_timestamp() + make_interval(secs => seconds);
        task text;
    begin
        while clock_timestamp() < until loop
            task := 'task-' || 1 + floor(random() * {tables.ROWS})::integer;
            update public.relay set estimated_hours = commits where id = task;
            commits := commits + 1;
            commit;
        end loop;
    end $$
"""
"""What a writer at full speed does: no round trip of a client hides what a commit costs."""

SETTINGS: Final = {"synchronous_commit": "on", "shared_preload_libraries": "pg_stat_statements"}


@dataclass(frozen=True)
class Window:
    """What was measured in one stretch of time; processor time in µs a second."""

    seconds: float
    relays: float
    """Of the Postgres backends of all relays."""

    writers: float
    """Of the backends of all writers, the probe too."""

    rest: float
    """Of the WAL writer, the checkpointer and the like."""

    daemons: float
    """Of the relays themselves, on their own core."""

    queries: float
    """Statements a second of all relays, `begin` and `commit` among them."""

    heard: float
    """Notifications a second that all relays heard together."""

    commits: float = 0.0
    p50: float | None = None
    p99: float | None = None
    """Milliseconds from just before the commit to a client of the first relay."""


@dataclass(frozen=True)
class Return:
    """What it cost that all clients of a relay came to the others."""

    clients: int
    resuming: bool
    queries: int
    """Statements of the others, beyond what they ask while idle."""

    seconds: float
    syncs: int


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--relays", type=int, nargs="+", default=list(COUNTS), help="how many there are, in turns")
    options.add_argument("--seconds", type=float, default=3, help="length of each stretch of writing")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--clients", type=int, nargs="*", default=list(COMING_BACK), help="who come back at once")
    options.add_argument("--others", type=int, default=3, help="relays that these come to")
    options.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="wait before each number of relays")
    options.add_argument(
        "--fsync", default="off", choices=["on", "off"], help="whether commits wait for the disk, too"
    )
    options.add_argument("--json", type=Path, help="file to write what was found to")
    given = options.parse_args()
    with EmbeddedPostgres(settings={**SETTINGS, "fsync": given.fsync}) as server:
        keep_apart(server.pid)
        prepare(server.dsn)
        dsn = named(server.dsn, "relays", user="relay_daemon")
        with (
            psycopg.connect(named(server.dsn, "watcher"), autocommit=True) as watcher,
            Fleet(lambda: Relay.on(dsn)) as fleet,
        ):
            machine = {**bench.machine(watcher), "system": platform.platform()}
            print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
            lab = Lab(server.dsn, watcher, fleet, given.settle)
            found = sweep(lab, sorted(given.relays), given.rounds, given.seconds)
            print_windows(found)
            print_rule(found)
            returns = list(come_back(lab, given.clients, given.others))
            print_returns(returns, given.others)
    if given.json:
        windows = {load: {n: [asdict(it) for it in its] for n, its in rows.items()} for load, rows in found.items()}
        told = {"machine": machine, "windows": windows, "rule": rule(found), "returns": list(map(asdict, returns))}
        given.json.write_text(json.dumps(told, indent=1) + "\n")


# The world


def keep_apart(postgres: int) -> None:
    """Give Postgres one core and everything else another, if there are two."""
    if (os.cpu_count() or 1) > 1:
        children = Path(f"/proc/{postgres}/task/{postgres}/children").read_text().split()
        for pid in (postgres, *map(int, children)):
            os.sched_setaffinity(pid, {0})
        os.sched_setaffinity(0, {1})


def named(dsn: str, name: str, **others: str) -> str:
    """Name the connections of a connection string."""
    return make_conninfo(dsn, application_name=name, **others)


def prepare(dsn: str) -> None:
    """Make a watched table, the role of the relays, and what counts their queries."""
    install.run(dsn, "install")
    install.run(dsn, "roles")
    tables.prepare(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create extension pg_stat_statements")
        connection.execute(
            "insert into public.relay (id, board_id, title, lane) values (%s, %s, 'T', 'todo')", [BOARD, BOARD]
        )
        connection.execute(WRITE)


class Fleet:
    """The relays that run, each with its clients."""

    def __init__(self, start: Callable[[], contextlib.AbstractContextManager[Relay]]) -> None:
        self._start = start
        self._running: list[tuple[contextlib.ExitStack, Relay]] = []

    @property
    def relays(self) -> list[Relay]:
        return [relay for _, relay in self._running]

    def resize(self, count: int) -> None:
        """Start or end some, the last ones first."""
        while len(self._running) > count:
            self._running.pop()[0].close()
        while len(self._running) < count:
            with contextlib.ExitStack() as stack:
                relay = stack.enter_context(self._start())
                self._running.append((stack.pop_all(), relay))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resize(0)


class Relay:
    """A relay that runs, with a few clients in a process of their own, which check all that they are sent."""

    def __init__(self, pid: int, port: int, health: int, clients: int) -> None:
        self.pid, self.port, self.clients = pid, port, clients
        self._health = health
        self._crew: subprocess.Popen[str] | None = None

    @classmethod
    @contextlib.contextmanager
    def on(cls, dsn: str, clients: int = CLIENTS, **others: str) -> Iterator[Self]:
        """Start one, with these other settings."""
        health = free_port()
        settings = {"HEALTH_PORT": str(health), "WS_DRAIN": "0", **others}
        with bench.running_relay(dsn, 10_000, **settings) as (pid, port):
            relay = cls(pid, port, health, clients)
            with relay.crew() if clients else contextlib.nullcontext():
                yield relay

    @contextlib.contextmanager
    def crew(self) -> Iterator[None]:
        """Run its clients."""
        command = [sys.executable, "-m", "relay.commands.bench.subscribers", str(self.port), str(self.clients)]
        self._crew = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.answer()
            yield
        finally:
            self._crew.kill()
            self._crew.communicate()

    def answer(self, question: str | None = None) -> dict[str, Any]:
        """Let the clients' process answer."""
        assert self._crew
        assert self._crew.stdin
        assert self._crew.stdout
        if question:
            self._crew.stdin.write(question + "\n")
            self._crew.stdin.flush()
        answer: dict[str, Any] = json.loads(self._crew.stdout.readline())
        if answer.get("faults"):
            raise RuntimeError(f"clients were told wrong: {answer['faults'][0]}")
        return answer

    def heard(self) -> float:
        """Return how many notifications it has heard."""
        with urllib.request.urlopen(f"http://{HOST}:{self._health}/metrics", timeout=10) as response:
            found = re.search(
                rb'^relay_notifications_total\{state="received"\} (\S+)$', response.read(), re.MULTILINE
            )
        assert found
        return float(found[1])


def cpu_us(pid: int) -> float:
    """Return the processor time of a process so far, in µs."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e3


# While relays run


@dataclass(frozen=True)
class Lab:
    """What is measured with."""

    dsn: str
    watcher: psycopg.Connection
    fleet: Fleet
    settle: float
    """Seconds to wait before each number of relays."""

    def readings(self) -> dict[str, float]:
        """Return all counters: what stands in a window is the difference of two."""
        found: defaultdict[str, float] = defaultdict(float)
        backends = self.watcher.execute(
            "select pid, case backend_type when 'client backend' then application_name else 'rest' end"
            " from pg_stat_activity where pid <> pg_backend_pid()"
        )
        for pid, kind in backends.fetchall():
            with contextlib.suppress(OSError):  # an autovacuum worker may have ended
                found[kind] += cpu_us(pid)
        found["daemons"] = sum(cpu_us(relay.pid) for relay in self.fleet.relays)
        found["heard"] = sum(relay.heard() for relay in self.fleet.relays)
        found["queries"] = queries(self.watcher)
        found["at"] = time.perf_counter()
        return found

    def window(self, write: Callable[[], float]) -> Window:
        """Measure while something is written; it returns how many commits that was."""
        for relay in self.fleet.relays:
            relay.answer("report")
        before = self.readings()
        commits = write()
        after = self.readings()
        reports = [relay.answer("report") for relay in self.fleet.relays]
        seconds = after["at"] - before["at"]
        rates = {name: (value - before.get(name, 0)) / seconds for name, value in after.items()}
        kinds = {kind: rates.get(kind, 0.0) for kind in ("relays", "writers", "rest", "daemons", "queries", "heard")}
        first = reports[0] if reports else {}
        return Window(seconds, **kinds, commits=commits / seconds, p50=first.get("p50"), p99=first.get("p99"))


def queries(watcher: psycopg.Connection) -> int:
    """Return how many statements the relays have sent."""
    row = watcher.execute(
        "select coalesce(sum(calls), 0)::bigint from pg_stat_statements where userid = 'relay_daemon'::regrole"
    ).fetchone()
    assert row
    return int(row[0])


Found = dict[str, dict[int, list[Window]]]
"""Windows of all rounds, by load and number of relays."""


def sweep(lab: Lab, counts: Sequence[int], rounds: int, seconds: float) -> Found:
    """Measure each number of relays in each round: up, down, and up again."""
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(psycopg.connect(named(lab.dsn, "writers"), autocommit=True)) for _ in range(WRITERS)
        ]
        probe = Probe(stack.enter_context(psycopg.connect(named(lab.dsn, "writers"), autocommit=True)))
        loads = {
            "idle": lambda: idle(max(IDLE_SECONDS, seconds) if rounds > 1 else seconds),
            "paced": lambda: paced(writers, probe, seconds),
            "full": lambda: full(writers, probe, seconds),
        }
        full(writers, probe, seconds)  # so that caches are warm
        found: Found = {load: {count: [] for count in counts} for load in loads}
        for turn in range(rounds):
            for count in counts if turn % 2 == 0 else reversed(counts):
                lab.fleet.resize(count)
                time.sleep(lab.settle)
                for load, write in loads.items():
                    found[load][count].append(lab.window(write))
        return found


class Probe:
    """Changes the task whose changes are timed."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self._sequence = 0

    def run(self, seconds: float, rate: float = PROBES) -> int:
        """Commit changes at a rate; return how many."""
        count = max(round(seconds * rate), 1)
        for _ in at_rate(rate, count):
            update = "update public.relay set title = %s where id = %s"
            self._connection.execute(update, [stamped(self._sequence), BOARD])
            self._sequence += 1
        return count


def at_rate(rate: float, count: int) -> Iterator[int]:
    """Count, so many a second."""
    began = time.perf_counter()
    for number in range(count):
        time.sleep(max(began + number / rate - time.perf_counter(), 0))
        yield number


def idle(seconds: float) -> int:
    """Write nothing."""
    time.sleep(seconds)
    return 0


def paced(writers: Sequence[psycopg.Connection], probe: Probe, seconds: float) -> int:
    """Commit at a pace, one change at a time; return how many."""

    def write() -> int:
        count = round(seconds * (PACE - PROBES))
        for number in at_rate(PACE - PROBES, count):
            update = "update public.relay set estimated_hours = coalesce(estimated_hours, 0) + 1 where id = %s"
            writers[number % WRITERS].execute(update, [f"task-{number % 1000 + 1}"])
        return count

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(write)
        return probe.run(seconds) + other.result()


def full(writers: Sequence[psycopg.Connection], probe: Probe, seconds: float) -> int:
    """Commit as fast as the server can, in loops within it; return how many."""

    def write(connection: psycopg.Connection) -> int:
        row = connection.execute("call public.write(%s, 0)", [seconds]).fetchone()
        assert row
        return int(row[0])

    with ThreadPoolExecutor(WRITERS) as pool:
        commits = pool.map(write, writers)
        return probe.run(seconds) + sum(commits)


# What it says


def median(windows: Sequence[Window], value: Callable[[Window], float]) -> float:
    """Return the median of a figure."""
    return statistics.median(map(value, windows))


def mean(windows: Sequence[Window], value: Callable[[Window], float]) -> float:
    """Return the mean of a figure: of what is done every few seconds, each window has another part."""
    return statistics.fmean(map(value, windows))


def print_windows(found: Found) -> None:
    """Print a table for each load."""
    print("\nidle, but for the relays' own canaries: a second and relay (mean)")
    print(f"{'relays':>8}{'Postgres, µs':>14}{'queries':>10}{'notified':>10}{'relay, µs':>12}{'rest, µs':>12}")
    for count, its in found["idle"].items():
        per = max(count, 1)
        cells = f"{mean(its, lambda it: it.relays) / per:14,.0f}{mean(its, lambda it: it.queries) / per:10.1f}"
        cells += f"{mean(its, lambda it: it.heard) / per:10.1f}{mean(its, lambda it: it.daemons) / per:12,.0f}"
        print(f"{count:>8}{cells}{mean(its, lambda it: it.rest):12,.0f}")
    for load, title in {"paced": f"{PACE} commits a second", "full": f"{WRITERS} writers at full speed"}.items():
        print(f"\n{title} (median; commits lowest to highest; processor in µs a commit)")
        heads = (
            "commits/s",
            "writers",
            "relays'",
            "rest",
            "queries/s",
            "notified/s",
            "p50 ms",
            "p99 ms",
            "daemons' core",
        )
        print(f"{'relays':>8}{heads[0]:>24}" + "".join(f"{head:>14}" for head in heads[1:]))
        for count, its in found[load].items():
            print(f"{count:>8}" + line_of(its))
    sys.stdout.flush()


def line_of(its: Sequence[Window]) -> str:
    """Return the figures of one number of relays, with writers."""
    commits = [it.commits for it in its]
    cells = [
        f"{median(its, lambda it: it.writers / it.commits):,.1f}",
        f"{median(its, lambda it: it.relays / it.commits):,.1f}",
        f"{median(its, lambda it: it.rest / it.commits):,.1f}",
        f"{median(its, lambda it: it.queries):,.0f}",
        f"{median(its, lambda it: it.heard):,.0f}",
        middle([it.p50 for it in its]),
        middle([it.p99 for it in its]),
        f"{median(its, lambda it: it.daemons) / 1e6:.0%}",
    ]
    spread = f"{statistics.median(commits):,.0f} ({min(commits):,.0f}-{max(commits):,.0f})"
    return f"{spread:>24}" + "".join(f"{cell:>14}" for cell in cells)


def middle(times: Sequence[float | None]) -> str:
    """Write the median of times, if there are any."""
    known = [time for time in times if time is not None]
    return f"{statistics.median(known):.1f}" if known else "-"


def rule(found: Found) -> dict[str, float]:
    """Return what a relay costs: µs of Postgres's processor, all else equal.

    Idle, each relay has work of its own, and is rung by each canary of each other one. With writers, it looks at the
    journal once for each ring; or awake, every few milliseconds, and reads what has gathered.
    """
    counts = [count for count in found["idle"] if count]
    awake = [(count, it) for count in counts for it in found["full"][count] if it.commits > 2 * BUSY_TRANSACTIONS]
    if len(counts) < 2 or not awake:
        return {}
    idle_us = [mean(found["idle"][count], lambda it: it.relays) / count for count in counts]
    asked = [mean(found["idle"][count], lambda it: it.queries) / count for count in counts]
    signals = [median(found["paced"][count], lambda it: it.writers / it.commits) for count in counts]
    look = median(among(found["paced"], counts), lambda it: it.relays / it.queries)
    each, alone = statistics.linear_regression(counts, idle_us)
    asked_each, asked_alone = statistics.linear_regression(counts, asked)
    return {
        "idle µs a second and relay": alone,
        "idle µs a second and pair of relays": each,
        "idle queries a second and relay": asked_alone,
        "idle queries a second and pair of relays": asked_each,
        "µs a look": look,
        "µs a second and relay, awake": statistics.median(it.relays / count for count, it in awake),
        "µs an entry and relay, awake": statistics.median(it.relays / it.commits / count for count, it in awake),
        "looks a second and relay, awake": statistics.median(it.queries / count for count, it in awake),
        "µs of the writer, a ring and relay": statistics.linear_regression(counts, signals).slope,
    }


def among(windows: Mapping[int, list[Window]], counts: Sequence[int]) -> list[Window]:
    """Return the windows of some numbers of relays."""
    return [it for count in counts for it in windows[count]]


def print_rule(found: Found) -> None:
    """Print what a relay costs."""
    print("\nwhat a relay costs")
    for name, value in rule(found).items():
        print(f"  {name:44}{value:10,.1f}", flush=True)


# One dies


def come_back(lab: Lab, sizes: Sequence[int], others: int) -> Iterator[Return]:
    """Kill one relay of some, again and again, and see what its clients cost the others."""
    for size in sizes:
        for resuming in (True, False):
            lab.fleet.resize(others)  # these forget a board with its last client
            lab.fleet.resize(others + 1)
            yield asyncio.run(one_dies(lab, size, resuming=resuming))


async def one_dies(lab: Lab, size: int, *, resuming: bool) -> Return:
    """Kill the last relay, while changes are committed that its clients miss."""
    *others, victim = lab.fleet.relays
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(victim)) for _ in range(size)]
        firsts = [await subscribe(client, number, None) for number, client in enumerate(clients)]
        idle_rate = await asking(lab)
        before, began = queries(lab.watcher), time.perf_counter()
        os.kill(victim.pid, signal.SIGKILL)
        await asyncio.gather(*(client.wait_closed() for client in clients))
        lab.watcher.execute("update public.relay set title = title || '+' where id ~ '^task-[0-9]$'")

        arriving = {other: asyncio.Semaphore(ARRIVING) for other in others}

        async def returned(number: int, cursor: str | None) -> bool:
            """Come back, and say whether that took a whole board."""
            other = others[number % len(others)]
            async with arriving[other]:
                client = await stack.enter_async_context(client_of(other))
            return bool((await subscribe(client, number, cursor))["type"] == "board.sync")

        cursors = [first["cursor"] if resuming else None for first in firsts]
        syncs = await asyncio.gather(*(returned(number, cursor) for number, cursor in enumerate(cursors)))
        seconds = time.perf_counter() - began
        asked = queries(lab.watcher) - before - idle_rate * seconds
        return Return(size, resuming, round(asked), seconds, sum(syncs))


def client_of(relay: Relay) -> connect:
    """Connect to a relay."""
    return connect(f"ws://{HOST}:{relay.port}", proxy=None, max_size=None, open_timeout=30)


async def asking(lab: Lab) -> float:
    """Return how many statements a second the relays send while idle."""
    await asyncio.sleep(lab.settle)
    before, began = queries(lab.watcher), time.perf_counter()
    await asyncio.sleep(max(lab.settle, 0.1))
    return (queries(lab.watcher) - before) / (time.perf_counter() - began)


async def subscribe(client: ClientConnection, number: int, cursor: str | None) -> Mapping[str, Any]:
    """Follow one of the boards; return the first message."""
    await client.send(json.dumps({"type": "subscribe", "boardId": f"board-{number % BOARDS}", "cursor": cursor}))
    first: dict[str, Any] = json.loads(await client.recv())
    return first


def print_returns(returns: Sequence[Return], others: int) -> None:
    """Print what it cost that clients came back."""
    print(f"\na relay dies, its clients of {BOARDS} boards come to {others} others: queries of these beyond idle")
    for it in returns:
        how = "resume" if it.resuming else "begin anew"
        print(f"{it.clients:>8} {how:12}{it.queries:8,} queries{it.seconds:8.2f} s{it.syncs:8,} boards sent")


if __name__ == "__main__":
    main()
