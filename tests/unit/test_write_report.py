"""What `relay bench writers` says of figures that are known."""

from __future__ import annotations

import json
from dataclasses import replace

from relay.commands.bench.costs import TABLES, Cost, Latency, Processor, Runs, Tax
from relay.commands.bench.write_report import as_json, table, targets


def runs(micros: float, wal: int = 0) -> Runs:
    """A hundred changes of each table; plain adds 10 µs to none's time and CPU, relay 15, notify 30."""

    def cost(added: float, drift: float) -> Cost:
        time = (micros + added + drift) / 1e6 * 100
        its_wal = (100 + (wal if added == 15 else 0)) * 100
        return Cost(100, time, its_wal, Processor(time, 0.0002 if added == 15 else 0, 0.0001, 0.003))

    added = dict(zip(TABLES, (0, 10, 15, 30), strict=True))
    # A machine that is twice as slow at times: what was measured in one round is compared.
    return {name: [cost(its, drift) for drift in (0, 500, 0)] for name, its in added.items()}


TAX = Tax(
    machine={"cores": "2"},
    single={8: runs(20, wal=200)},
    in_one=runs(10),
    copy=runs(5, wal=300),
    update=runs(10),
    journal_bytes=250,
    prune=Cost(1000, 0.01, 7000, Processor(0.001, 0.0005, 0, 0)),
    idle=Latency(2.0, 5.0, 9.0),
    busy={8: Latency(5.0, 120.0, 130.0)},
)


def found(tax: Tax) -> dict[str, tuple[float | None, bool | None]]:
    return {
        target.name: (None if target.found is None else round(target.found, 3), target.is_met)
        for target in targets(tax)
    }


def lines(tax: Tax) -> list[str]:
    """The table's lines, without what aligns them."""
    return [" ".join(line.split()) for line in table(tax).splitlines()]


def test_each_target_compares_what_was_found() -> None:
    """Added costs are compared with plain's, whole ones with none's, and each says whether it is met."""
    assert found(TAX) == {
        "8 writers: Postgres's added CPU, of plain's": (1.7, False),
        "8 writers: relay's own CPU, µs a commit": (30, False),
        "8 writers: commits, of plain's": (0.857, True),
        "8 writers: WAL, bytes a change above none": (200, True),
        "in one transaction: added time, of plain's": (1.5, False),
        "in one transaction: writers' added CPU, of plain's": (1.5, False),
        "COPY: time, of none's": (4, False),
        "COPY: writer's CPU, of none's": (4, False),
        "COPY: WAL, bytes a row above none": (300, False),
        "UPDATE: time, of none's": (2.5, True),
        "UPDATE: writer's CPU, of none's": (2.5, True),
        "UPDATE: WAL, bytes a row above none": (0, True),
        "commit to client, idle: p50, ms": (2, True),
        "commit to client, 8 writers: p99, ms": (120, False),
    }


def test_each_load_has_a_block() -> None:
    """Its head names the load and the tables, and each figure has a line."""
    blocks = [block.splitlines() for block in table(TAX).split("\n\n")]
    found = {block[0].split("  ")[0]: block[1:] for block in blocks if block[0].split()[-4:] == list(TABLES)}

    assert list(found) == [
        "8 writers, a row each",
        "one by one in one transaction",
        "COPY of 100 rows",
        "UPDATE of 100 rows",
    ]
    assert {len(figures) for figures in found.values()} == {8}
    assert found["one by one in one transaction"][0].split() == [
        *("µs", "a", "row"),
        *("10.0", "(10.0-510.0)", "20.0", "(20.0-520.0)", "25.0", "(25.0-525.0)", "40.0", "(40.0-540.0)"),
    ]


def test_the_table_marks_what_is_missed() -> None:
    """A line for each target, with its limit."""
    assert "commit to client, 8 writers: p99, ms 120.00 <= 100 missed" in lines(TAX)
    assert "8 writers: commits, of plain's 0.86 >= 0.75" in lines(TAX)


def test_what_pruning_takes_is_reported() -> None:
    """It comes later than the change, so that no other figure has it."""
    assert "Each entry takes another 1.5 µs of CPU and 7 bytes of WAL when it is pruned." in lines(TAX)


def test_json_has_the_targets_and_every_run() -> None:
    """Programs get all that there is."""
    report = json.loads(as_json(TAX))

    assert [target["name"] for target in report["targets"]] == [target.name for target in targets(TAX)]
    assert report["single"]["8"]["relay"][0]["processor"]["relay"] == 0.003


def elsewhere(its: Runs) -> Runs:
    return {name: [replace(cost, processor=None) for cost in costs] for name, costs in its.items()}


def test_a_server_elsewhere_has_no_processor_time() -> None:
    """What cannot be known is left out, and it is said why."""
    tax = replace(
        TAX,
        single={8: elsewhere(TAX.single[8])},
        in_one=elsewhere(TAX.in_one),
        copy=elsewhere(TAX.copy),
        update=elsewhere(TAX.update),
        prune=replace(TAX.prune, processor=None),
    )

    assert not [name for name in found(tax) if "CPU" in name]
    assert "CPU is left out: Postgres does not run where its processes can be seen from here." in table(tax)
    assert "backends" not in table(tax)


def test_a_latency_that_was_not_measured_has_no_figure() -> None:
    """A client that was sent its whole board each time says nothing of single changes."""
    tax = replace(TAX, idle=Latency(None, None, None))

    assert found(tax)["commit to client, idle: p50, ms"] == (None, None)
    assert "commit to client, idle: p50, ms - <= 2.5" in lines(tax)
