"""How much hardware some number of subscribers needs, and what gives out first: a calculation, no measurement.

    python benchmarks/scaling.py                                          # the tables of docs/scaling.md
    python benchmarks/scaling.py --subscribers 50000 --boards 3 --per-board 12 --rate 0.5 --bytes 400

All that it knows of the relay was measured before, and stands with its source in docs/scaling.json; what it takes for
granted, prices above all, stands there as assumed. Change what does not fit you.

Rules:
- Each relay reads the whole journal, and encodes the changes of boards that its own clients follow. Clients come to
  relays at random. So with more relays a delivery costs no less, and a change costs more.
- A relay is one process on one core, which is used to `core_share` at most.
- A delivery is taken to be by itself, which is what costs most: under load several share one write, and cost less.
- Through NATS, one publisher reads the journal, and each edge the whole stream. Each change is taken to be an entry
  of its own: so it is where there are many boards. Where one stream does not suffice, no number of edges does.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).parent.parent / "docs" / "scaling.json"

RUNS: Final = Path(__file__).parent.parent / "docs" / "edges.json"
"""What benchmarks/edges.py found, with numbers of edges."""

RUN_NAMES: Final = {"idle": "idle", "one board": "100 commits a second", "writers, wide": "8 writers"}
PROBES: Final = 40
"""Changes a second of the board that is followed, beside what the writers do."""

HOURS_A_MONTH: Final = 730
MOST_RELAYS: Final = 1 << 20
"""If so many do not suffice, none do."""


@dataclass(frozen=True)
class Constants:
    """What docs/scaling.json says; names and units are explained there."""

    # Measured of a relay
    delivery_us: float
    change_us: float
    own_look_us: float
    own_awake_us: float
    entry_us: float
    connection_us: float
    connection_kb: float
    process_mb: float
    connects_a_second: float
    connections: float
    # Measured of Postgres
    idle_us: float
    pair_us: float
    look_us: float
    awake_us: float
    read_us: float
    busy: float
    commit_us: float
    rung_us: float
    connections_per_relay: float
    # Measured of the way through NATS
    publisher_idle_us: float
    publisher_look_us: float
    publisher_entry_us: float
    publisher_mb: float
    boards_a_second: float
    nats_idle_us: float
    nats_edge_idle_us: float
    nats_alone_us: float
    nats_us: float
    nats_edge_us: float
    nats_mb: float
    entry_bytes: float
    edge_idle_us: float
    edge_alone_us: float
    edge_awake_us: float
    edge_entry_us: float
    edge_change_us: float
    edge_mb: float
    # Assumed
    core_share: float
    cores_per_machine: float
    machine_gbit: float
    overhead_bytes: float
    database_cores: float
    database_connections: float
    relays_share: float
    core_hour: float
    egress_gb: float
    nats_cores: float
    nats_gb: float
    keep_bytes: float
    keep_seconds: float


def load(document: Mapping[str, Any]) -> Constants:
    """Take the constants out of docs/scaling.json."""
    every = {**document["relay"], **document["postgres"], **document["edges"], **document["assumed"]}
    return Constants(**{name: entry["value"] for name, entry in every.items()})


@dataclass(frozen=True)
class Case:
    """What is asked of the system."""

    subscribers: int
    boards: float
    """That one subscriber follows."""

    per_board: float
    """Subscribers of one board."""

    rate: float
    """Changes a second of one board."""

    bytes: float
    """Of one message."""

    sync_bytes: float = 20_000
    """Of one board.sync."""

    @property
    def all_boards(self) -> float:
        return self.subscribers * self.boards / self.per_board

    @property
    def changes(self) -> float:
        """A second, of all boards."""
        return self.all_boards * self.rate

    @property
    def deliveries(self) -> float:
        """A second, to all subscribers."""
        return self.subscribers * self.boards * self.rate


@dataclass(frozen=True)
class Plan:
    """What it takes; None where no number of relays suffices."""

    relays: int | None
    machines: int | None
    memory_gb: float | None
    egress_gbit: float
    commits_cores: float
    """Of the database, for the writers."""

    relays_cores: float | None
    """Of the database, for all relays."""

    reconnect_seconds: float | None
    """Until everybody is back after all were cut off at once, each with one board."""

    month: float | None
    """What relays and egress cost."""

    limits: Mapping[str, float]
    """How much of each thing is used, 1 being all there is, or infinite: what is used most gives out first."""

    @property
    def first(self) -> str:
        """Name what gives out first."""
        return max(self.limits, key=lambda name: self.limits[name])


def plan(case: Case, k: Constants) -> Plan:
    """Say what a case takes, with every relay on the database."""
    relays = relays_for(case, k)
    egress = case.deliveries * (case.bytes + k.overhead_bytes) * 8 / 1e9
    commits = case.changes * (k.rung_us if case.changes <= k.busy else k.commit_us) / 1e6
    limits = {
        "each relay reads every change": reading(case, k) / k.core_share,
        "the database's processor, for commits": commits / (k.database_cores * (1 - k.relays_share)),
    }
    if relays is None:
        return Plan(None, None, None, egress, commits, None, None, None, limits)
    machines = max(math.ceil(relays / k.cores_per_machine), math.ceil(egress / k.machine_gbit))
    taken = database_us(relays, case.changes, k) / 1e6
    limits |= {
        "the database's processor, for relays": taken / (k.database_cores * k.relays_share),
        "the database's connections": relays * k.connections_per_relay / k.database_connections,
    }
    return Plan(
        relays=relays,
        machines=machines,
        memory_gb=(relays * k.process_mb + case.subscribers * k.connection_kb / 1024) / 1024,
        egress_gbit=egress,
        commits_cores=commits,
        relays_cores=taken,
        reconnect_seconds=case.subscribers / (relays * k.connects_a_second),
        month=HOURS_A_MONTH * (relays * k.core_hour + egress / 8 * 3600 * k.egress_gb),
        limits=limits,
    )


def relays_for(case: Case, k: Constants) -> int | None:
    """Return the least number of relays that are not too busy, and have no more clients than was ever tried."""
    return least(lambda relays: load_of(relays, case, k), case, k)


def least(load: Callable[[int], float], case: Case, k: Constants) -> int | None:
    """Return the least number of which none uses too much of its core."""
    few, many = 0, max(1, math.ceil(case.subscribers / k.connections))
    while load(many) > k.core_share:
        few, many = many, 2 * many
        if many > MOST_RELAYS:
            return None
    while few and many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if load(middle) <= k.core_share else (middle, many)
    return many


def followed(relays: int, case: Case) -> float:
    """Return how likely it is that at least one of a board's subscribers is of one of so many relays."""
    return -math.expm1(case.per_board * math.log1p(-1 / relays)) if relays > 1 else 1.0


def load_of(relays: int, case: Case, k: Constants) -> float:
    """Return how much of its core one of so many relays uses."""
    encoding = case.changes * followed(relays, case) * (k.change_us - k.entry_us) / 1e6
    clients = (case.deliveries * k.delivery_us + case.subscribers * k.connection_us) / relays / 1e6
    return reading(case, k) + encoding + clients


def reading(case: Case, k: Constants) -> float:
    """Return how much of its core any relay uses to read what is written, whoever follows it."""
    looks = case.changes * k.own_look_us if case.changes <= k.busy else k.own_awake_us
    return (looks + case.changes * k.entry_us) / 1e6


def database_us(relays: int, changes: float, k: Constants) -> float:
    """Return the processor time that so many relays take of Postgres, µs a second.

    Each looks once for each change, until there are so many that all look by themselves.
    """
    looks = changes * k.look_us if changes <= k.busy else k.awake_us
    return relays * (k.idle_us + relays * k.pair_us + looks + changes * k.read_us)


# Through NATS


@dataclass(frozen=True)
class Through:
    """What it takes through NATS, with one stream; None where no number of edges suffices."""

    edges: int | None
    machines: int | None
    memory_gb: float | None
    """Of edges, two publishers and the NATS server."""

    publisher_core: float
    """How busy the publisher's is."""

    nats_cores: float | None
    nats_gbit: float | None
    """From NATS to all edges."""

    reaches_back: float
    """Seconds for which the stream has what clients missed."""

    database_cores: float
    """For the publisher."""

    resume_seconds: float | None
    """Until everybody is back after all were cut off at once, with their cursors."""

    questions: float | None
    """Boards that edges ask for, if nobody has a cursor."""

    anew_seconds: float | None
    month: float | None
    limits: Mapping[str, float]

    @property
    def first(self) -> str:
        """Name what gives out first."""
        return max(self.limits, key=lambda name: self.limits[name])


def through(case: Case, k: Constants) -> Through:
    """Say what a case takes with publishers, NATS and edges."""
    edges = edges_for(case, k)
    publisher = publishing_us(case.changes, k) / 1e6
    entry = case.bytes + k.entry_bytes
    back = min(k.keep_seconds, k.keep_bytes / (case.changes * entry)) if case.changes else k.keep_seconds
    database = database_us(1, case.changes, k) / 1e6
    limits = {
        "the publisher's core": publisher / k.core_share,
        "each edge reads every change": edge_reading(case.changes, k) / 1e6 / k.core_share,
        "the database's processor": database / (k.database_cores * k.relays_share),
    }
    if edges is None:
        return Through(None, None, None, publisher, None, None, back, database, None, None, None, None, limits)
    cores = nats_us(case.changes, edges, k) / 1e6
    gbit = case.changes * entry * edges * 8 / 1e9
    egress = case.deliveries * (case.bytes + k.overhead_bytes) * 8 / 1e9
    asked = edges * case.all_boards * followed(edges, case)
    resume = case.subscribers / (edges * k.connects_a_second)
    limits |= {
        "the processor of NATS": cores / (k.nats_cores * k.core_share),
        "the network of NATS": gbit / k.machine_gbit,
    }
    return Through(
        edges=edges,
        machines=max(math.ceil(edges / k.cores_per_machine), math.ceil(egress / k.machine_gbit)),
        memory_gb=(edges * k.edge_mb + case.subscribers * k.connection_kb / 1024 + 2 * k.publisher_mb + k.nats_mb)
        / 1024,
        publisher_core=publisher,
        nats_cores=cores,
        nats_gbit=gbit,
        reaches_back=back,
        database_cores=database,
        resume_seconds=resume,
        questions=asked,
        anew_seconds=max(resume, asked / k.boards_a_second),
        month=HOURS_A_MONTH
        * ((edges + 2 + k.nats_cores) * k.core_hour + egress / 8 * 3600 * k.egress_gb + gbit / 8 * 3600 * k.nats_gb),
        limits=limits,
    )


def edges_for(case: Case, k: Constants) -> int | None:
    """Return the least number of edges that are not too busy, and have no more clients than was ever tried."""
    return least(lambda edges: edge_us(edges, case, k) / 1e6, case, k)


def edge_us(edges: int, case: Case, k: Constants) -> float:
    """Return the processor time that one of so many edges takes, µs a second."""
    encoding = case.changes * followed(edges, case) * k.edge_change_us
    clients = (case.deliveries * k.delivery_us + case.subscribers * k.connection_us) / edges
    return edge_reading(case.changes, k) + encoding + clients


def edge_reading(changes: float, k: Constants) -> float:
    """Return the processor time that any edge takes to read the stream, whoever follows it, µs a second."""
    read = changes * k.edge_alone_us if changes <= k.busy else k.edge_awake_us + changes * k.edge_entry_us
    return k.edge_idle_us + read


def publishing_us(changes: float, k: Constants) -> float:
    """Return the processor time that the publisher takes, µs a second."""
    each = k.publisher_look_us if changes <= k.busy else k.publisher_entry_us
    awake = 0 if changes <= k.busy else k.own_awake_us
    return k.publisher_idle_us + awake + changes * each


def nats_us(changes: float, edges: int, k: Constants) -> float:
    """Return the processor time that the NATS server takes, µs a second."""
    stored = k.nats_alone_us if changes <= k.busy else k.nats_us
    return k.nats_idle_us + edges * k.nats_edge_idle_us + changes * (stored + edges * k.nats_edge_us)


def most_relays(changes: float, cores: float, k: Constants) -> int:
    """Return how many relays a database bears, by the relays' share of its cores and by connections."""
    budget = cores * k.relays_share * 1e6
    each = database_us(1, changes, k) - k.pair_us
    # relays * each + relays² * pair = budget
    affordable = (math.sqrt(each * each + 4 * k.pair_us * budget) - each) / (2 * k.pair_us)
    return math.floor(min(affordable, k.database_connections / k.connections_per_relay))


# The tables


SIZES: Final = (10_000, 100_000, 1_000_000, 10_000_000)
TEAMS: Final = Case(subscribers=0, boards=2, per_board=20, rate=0.01, bytes=250)
AUDIENCE: Final = Case(subscribers=0, boards=1, per_board=10_000, rate=1, bytes=250)
RATES: Final = (0, 10, 100, 250, 1_000, 5_000)
CORES: Final = (2, 8, 32)


def main() -> None:
    """Print."""
    options = argparse.ArgumentParser()
    options.add_argument("--subscribers", type=int, help="without it, the tables of docs/scaling.md are printed")
    options.add_argument("--boards", type=float, default=TEAMS.boards, help="that one subscriber follows")
    options.add_argument("--per-board", type=float, default=TEAMS.per_board, help="subscribers of one board")
    options.add_argument("--rate", type=float, default=TEAMS.rate, help="changes a second of one board")
    options.add_argument("--bytes", type=float, default=TEAMS.bytes, help="of one message")
    given = options.parse_args()
    k = load(json.loads(FILE.read_text()))
    if given.subscribers:
        case = Case(given.subscribers, given.boards, given.per_board, given.rate, given.bytes)
        print("\n".join(needs([case], k)), "\n".join(needs_through([case], k)), sep="\n\n")
    else:
        print("\n\n".join("\n".join(table) for table in tables(k)))


def tables(k: Constants) -> Iterator[list[str]]:
    """Return the tables of docs/scaling.md."""
    yield list(counts(k))
    for kind in (TEAMS, AUDIENCE):
        yield list(needs([replace(kind, subscribers=size) for size in SIZES], k))
    yield list(against(json.loads(RUNS.read_text())["edges"], k))
    for kind in (TEAMS, AUDIENCE):
        yield list(needs_through([replace(kind, subscribers=size) for size in SIZES], k))


def counts(k: Constants) -> Iterator[str]:
    """Say how many relays a database bears."""
    yield from table(
        ["changes a second", *(f"database of {cores} cores" for cores in CORES), "of a core, each"],
        [
            [
                f"{rate:,}",
                *(f"{most_relays(rate, cores, k):,}" for cores in CORES),
                f"{database_us(1, rate, k) / 1e4:.1f} %",
            ]
            for rate in RATES
        ],
    )


def needs(cases: Sequence[Case], k: Constants) -> Iterator[str]:
    """Say what cases take, one a column."""
    found = [(case, plan(case, k)) for case in cases]
    rows = {
        "boards": [f"{case.all_boards:,.0f}" for case, _ in found],
        "changes a second": [f"{case.changes:,.0f}" for case, _ in found],
        "deliveries a second": [f"{case.deliveries:,.0f}" for case, _ in found],
        "relays, a core each": [shown(it.relays) for _, it in found],
        "machines": [shown(it.machines) for _, it in found],
        "memory, GB": [shown(it.memory_gb, 1) for _, it in found],
        "egress, Gbit/s": [shown(it.egress_gbit, 2) for _, it in found],
        "cores of the database, for commits": [shown(it.commits_cores, 2) for _, it in found],
        "cores of the database, for relays": [shown(it.relays_cores, 2) for _, it in found],
        "all reconnect in, s": [shown(it.reconnect_seconds, 1) for _, it in found],
        "USD a month": [shown(it.month) for _, it in found],
        "gives out first": [f"{it.first} ({used(it.limits[it.first])})" for _, it in found],
    }
    yield from table(
        ["subscribers", *(f"{case.subscribers:,}" for case in cases)], ([k, *v] for k, v in rows.items())
    )


def needs_through(cases: Sequence[Case], k: Constants) -> Iterator[str]:
    """Say what cases take through NATS, one a column."""
    found = [through(case, k) for case in cases]
    rows = {
        "changes a second": [f"{case.changes:,.0f}" for case in cases],
        "the publisher's core, busy": [f"{it.publisher_core:.0%}" for it in found],
        "edges, a core each": [shown(it.edges) for it in found],
        "machines for edges": [shown(it.machines) for it in found],
        "memory, GB": [shown(it.memory_gb, 1) for it in found],
        "cores of NATS": [shown(it.nats_cores, 2) for it in found],
        "NATS to edges, Gbit/s": [shown(it.nats_gbit, 2) for it in found],
        "the stream reaches back, minutes": [shown(it.reaches_back / 60) for it in found],
        "cores of the database, for the publisher": [shown(it.database_cores, 2) for it in found],
        "all resume in, s": [shown(it.resume_seconds, 1) for it in found],
        "boards asked for, if nobody can resume": [shown(it.questions) for it in found],
        "which takes, s": [shown(it.anew_seconds) for it in found],
        "USD a month": [shown(it.month) for it in found],
        "gives out first": [f"{it.first} ({used(it.limits[it.first])})" for it in found],
    }
    yield from table(
        ["subscribers", *(f"{case.subscribers:,}" for case in cases)], ([k, *v] for k, v in rows.items())
    )


def against(runs: Iterable[Mapping[str, Any]], k: Constants) -> Iterator[str]:
    """Compare what the calculation says with what was measured: processor in ms a second."""
    rows = []
    for run in runs:
        edges, changes = run["edges"], run["changes"]
        its = changes if run["load"] == "one board" else PROBES if changes else 0
        calculated = {
            "publisher": publishing_us(changes, k),
            "nats": nats_us(changes, edges, k),
            "edge": edge_reading(changes, k) + its * (k.edge_change_us + run["clients"] * k.delivery_us),
            "database": database_us(1, changes, k),
        }
        cells = [f"{value / 1e3:,.0f} / {run[name] / 1e3:,.0f}" for name, value in calculated.items()]
        rows.append([RUN_NAMES[run["load"]], str(edges), f"{changes:,.0f}", *cells])
    yield from table(["load", "edges", "changes a second", "publisher", "NATS", "each edge", "database"], rows)


def shown(value: float | None, digits: int = 0) -> str:
    """Write a number, if there is one."""
    return "none" if value is None else f"{value:,.{digits}f}"


def used(share: float) -> str:
    """Write how much of something is used."""
    return f"{share:.0%} used" if share <= 1 else f"{share:,.1f} times what there is"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Write a table of Markdown."""
    yield line(head)
    yield "|" + "---|" * len(head)
    yield from map(line, rows)


def line(cells: Sequence[str]) -> str:
    """Write a line of it."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
