"""The calculation behind docs/scaling.md: what it says follows from what was measured."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.scaling import (
    AUDIENCE,
    CORES,
    FILE,
    RATES,
    RUNS,
    SIZES,
    TEAMS,
    Case,
    Constants,
    against,
    database_us,
    edge_reading,
    edge_us,
    edges_for,
    load,
    load_of,
    most_relays,
    nats_us,
    needs,
    plan,
    publishing_us,
    reading,
    relays_for,
    tables,
    through,
)

DOCUMENT: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text())
K = load(DOCUMENT)

CASES = st.builds(
    Case,
    subscribers=st.integers(1, 10_000_000),
    boards=st.floats(1, 50),
    per_board=st.floats(1, 100_000),
    rate=st.floats(0, 10),
    bytes=st.floats(50, 10_000),
)


def test_every_constant_says_what_it_is_and_where_it_comes_from() -> None:
    """What was measured has its source; what is assumed has none to name."""
    groups = {group: set(names) for group, names in DOCUMENT.items()}
    every = [name for names in groups.values() for name in names]

    assert sorted(every) == sorted(field.name for field in fields(Constants))
    for group, entries in DOCUMENT.items():
        for entry in entries.values():
            assert entry["what"]
            assert ("source" in entry) == (group != "assumed")


def test_what_edges_cost_is_what_was_measured() -> None:
    """Each constant is that of docs/edges.json which its source names, rounded."""
    measured = json.loads(RUNS.read_text())["constants"]

    for entry in DOCUMENT["edges"].values():
        _, name = entry["source"].split(": ")
        assert entry["value"] == pytest.approx(measured[name], rel=0.05, abs=0.1), name


@given(CASES)
def test_each_change_is_delivered_to_each_subscriber_of_its_board(case: Case) -> None:
    assert case.deliveries == pytest.approx(case.changes * case.per_board)


@given(CASES)
def test_relays_are_as_few_as_their_cores_allow(case: Case) -> None:
    """One less would be too busy, or have more clients than were ever measured; all together are not."""
    relays = relays_for(case, K)
    assume(relays is not None)
    assert relays is not None

    assert load_of(relays, case, K) <= K.core_share
    assert case.subscribers <= relays * K.connections
    if relays > 1:
        fewer = relays - 1
        assert load_of(fewer, case, K) > K.core_share or case.subscribers > fewer * K.connections


def test_no_number_of_relays_helps_when_reading_takes_all_of_each() -> None:
    """Each relay reads every change: more of them do not make that less."""
    case = replace(TEAMS, subscribers=10_000_000, rate=10 * K.core_share / K.entry_us)
    assert reading(case, K) > K.core_share

    found = plan(case, K)
    assert (found.relays, found.machines, found.memory_gb, found.month) == (None, None, None, None)
    assert found.limits["each relay reads every change"] > 1


def test_a_single_relay_follows_every_board_and_of_many_each_follows_few() -> None:
    """So a change of a small board is encoded by a few relays, and one of a large board by all."""
    k = replace(K, delivery_us=0, connection_us=0)
    teams, audience = (replace(kind, subscribers=100_000) for kind in (TEAMS, AUDIENCE))

    def encoding(case: Case, relays: int) -> float:
        return (load_of(relays, case, k) - reading(case, k)) / case.changes * 1e6

    assert encoding(teams, 1) == pytest.approx(k.change_us - k.entry_us)
    assert encoding(teams, 1000) == pytest.approx((k.change_us - k.entry_us) * teams.per_board / 1000, rel=0.02)
    assert encoding(audience, 100) == pytest.approx(k.change_us - k.entry_us)


@given(st.integers(1, 10_000), st.floats(0, 100_000))
def test_each_further_relay_costs_the_database_more_than_the_last(relays: int, changes: float) -> None:
    """For those that are there hear its canaries, too."""
    one, two, three = (database_us(relays + more, changes, K) for more in range(3))

    assert three - two > two - one > 0


@given(st.floats(0, 100_000), st.sampled_from(CORES))
def test_as_many_relays_as_fit(changes: float, cores: int) -> None:
    """They stay within both limits, and one more would not."""

    def fits(relays: int) -> bool:
        return (
            database_us(relays, changes, K) <= cores * K.relays_share * 1e6 * (1 + 1e-9)
            and relays * K.connections_per_relay <= K.database_connections
        )

    most = most_relays(changes, cores, K)
    assert fits(most)
    assert not fits(most + 1)


def test_a_change_costs_a_look_until_relays_are_awake() -> None:
    """Then they look at their own pace, and more changes cost only their reading."""
    k = replace(K, idle_us=0, pair_us=0, read_us=0)

    assert database_us(3, k.busy, k) == pytest.approx(3 * k.busy * k.look_us)
    assert database_us(3, k.busy + 1, k) == database_us(3, 100 * k.busy, k) == 3 * k.awake_us


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [TEAMS, AUDIENCE], ids=["teams", "audience"])
def test_a_plan_adds_up(kind: Case, size: int) -> None:
    """Memory, network, time and money are those of the parts."""
    case = replace(kind, subscribers=size)
    found = plan(case, K)
    assert found.relays is not None

    assert found.memory_gb == pytest.approx((found.relays * K.process_mb + size * K.connection_kb / 1024) / 1024)
    assert found.egress_gbit == pytest.approx(case.deliveries * (case.bytes + K.overhead_bytes) * 8e-9)
    assert found.reconnect_seconds == pytest.approx(size / found.relays / K.connects_a_second)
    gigabytes = found.egress_gbit / 8 * 3600
    assert found.month == pytest.approx(730 * (found.relays * K.core_hour + gigabytes * K.egress_gb))
    assert found.limits[found.first] == max(found.limits.values())


def test_prices_and_limits_are_inputs() -> None:
    """Who has others puts them in."""
    case = replace(AUDIENCE, subscribers=1_000_000)
    cheap, dear = plan(case, replace(K, core_hour=0, egress_gb=0)), plan(case, replace(K, core_hour=1, egress_gb=0))
    assert cheap.month == 0
    assert dear.month == pytest.approx(730 * (dear.relays or 0))

    assert plan(case, replace(K, database_connections=1)).first == "the database's connections"
    assert plan(case, replace(K, rung_us=1e9)).first == "the database's processor, for commits"
    assert plan(case, replace(K, pair_us=1e6)).first == "the database's processor, for relays"


@given(CASES)
def test_edges_are_as_few_as_their_cores_allow(case: Case) -> None:
    """One less would be too busy, or have more clients than were ever measured; all together are not."""
    edges = edges_for(case, K)
    assume(edges is not None)
    assert edges is not None

    assert edge_us(edges, case, K) <= K.core_share * 1e6
    assert case.subscribers <= edges * K.connections
    if edges > 1:
        fewer = edges - 1
        assert edge_us(fewer, case, K) > K.core_share * 1e6 or case.subscribers > fewer * K.connections


@given(CASES, st.integers(1, 1_000))
def test_each_further_edge_costs_nats_and_not_the_database(case: Case, edges: int) -> None:
    """All are sent the whole stream, and one publisher reads the journal for all."""
    one, two, three = (nats_us(case.changes, edges + more, K) for more in range(3))
    assert three - two == pytest.approx(two - one)
    assert two > one

    assert through(case, K).database_cores == database_us(1, case.changes, K) / 1e6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [TEAMS, AUDIENCE], ids=["teams", "audience"])
def test_a_plan_through_nats_adds_up(kind: Case, size: int) -> None:
    """Network, questions, time and money are those of the parts."""
    case = replace(kind, subscribers=size)
    found = through(case, K)
    assert found.edges
    assert found.nats_gbit
    assert found.questions
    assert found.resume_seconds

    assert found.nats_gbit == pytest.approx(case.changes * found.edges * (case.bytes + K.entry_bytes) * 8e-9)
    assert found.reaches_back <= K.keep_seconds
    assert found.reaches_back * case.changes * (case.bytes + K.entry_bytes) <= K.keep_bytes * (1 + 1e-9)
    assert case.all_boards <= found.questions * (1 + 1e-9) <= found.edges * case.all_boards * (1 + 1e-9)
    assert found.anew_seconds == max(found.resume_seconds, found.questions / K.boards_a_second)
    egress = case.deliveries * (case.bytes + K.overhead_bytes) / 1e9 * 3600
    month = (found.edges + 2 + K.nats_cores) * K.core_hour + egress * K.egress_gb
    assert found.month == pytest.approx(730 * (month + found.nats_gbit / 8 * 3600 * K.nats_gb))


def test_one_stream_has_an_end() -> None:
    """Where changes are too many for a publisher, for an edge or for NATS, the calculation says which it is."""
    many = replace(TEAMS, subscribers=1_000_000, rate=10 * K.core_share / K.edge_entry_us)
    assert through(many, K).edges is None
    assert through(many, replace(K, publisher_entry_us=0)).first == "each edge reads every change"

    case = replace(TEAMS, subscribers=1_000_000)
    assert through(case, replace(K, publisher_entry_us=1e4)).first == "the publisher's core"
    assert through(case, replace(K, nats_edge_us=1e4)).first == "the processor of NATS"
    assert through(case, replace(K, machine_gbit=1e-3)).first == "the network of NATS"
    assert through(case, replace(K, read_us=1e5)).first == "the database's processor"


def test_what_was_measured_is_set_against_what_is_calculated() -> None:
    """Idle, followed and beside writers; within a factor that the document owns up to."""
    run = {"load": "one board", "edges": 2, "changes": 100, "clients": 3, "p50": None}
    measured = dict.fromkeys(("publisher", "nats", "edge", "database"), 7_000)

    _, _, row = against([run | measured], K)
    edge = edge_reading(100, K) + 100 * (K.edge_change_us + 3 * K.delivery_us)
    assert f"| {publishing_us(100, K) / 1e3:,.0f} / 7 | {nats_us(100, 2, K) / 1e3:,.0f} / 7 |" in row
    assert f"| {edge / 1e3:,.0f} / 7 | {database_us(1, 100, K) / 1e3:,.0f} / 7 |" in row


def test_tables_have_a_column_for_each_size_and_a_row_for_each_rate() -> None:
    """Their lines are all as long as their heads."""
    limits, *kinds = tables(K)
    runs = kinds.pop(2)

    assert {line.count("|") for line in runs} == {runs[0].count("|")}
    assert [line.split(" | ")[0] for line in limits[2:]] == [f"| {rate:,}" for rate in RATES]
    for table in (limits, *kinds, list(needs([replace(TEAMS, subscribers=7)], K))):
        assert {line.count("|") for line in table} == {table[0].count("|")}
    assert all(table[0].count("|") == len(SIZES) + 2 for table in kinds)
