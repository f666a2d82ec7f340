"""The results of `relay bench writers`, compared with targets, as text and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from relay.commands.bench.costs import TABLES, Cost, Latency, Processor, Runs, Tax

_BARE: Final = TABLES[0]


@dataclass(frozen=True)
class Target:
    """A target, and the measured figure; None if it was not measured."""

    name: str
    found: float | None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the figure meets the target; None if it was not measured."""
        if self.found is None:
            return None
        return (self.at_most is None or self.found <= self.at_most) and (
            self.at_least is None or self.found >= self.at_least
        )


# Figures of one run


def _rate(cost: Cost) -> float:
    return cost.changes / cost.seconds


def _micros(cost: Cost) -> float:
    return cost.seconds / cost.changes * 1e6


def _seconds(cost: Cost) -> float:
    return cost.seconds


def _wal(cost: Cost) -> float:
    return cost.wal / cost.changes


def _cpu(part: Callable[[Processor], float]) -> Callable[[Cost], float]:
    """Return a figure for a part of the processor time, in µs per change."""

    def figure(cost: Cost) -> float:
        assert cost.processor
        return part(cost.processor) / cost.changes * 1e6

    return figure


_WRITERS: Final = _cpu(lambda its: its.writers)
_SESSIONS: Final = _cpu(lambda its: its.sessions)
_BACKENDS: Final = _cpu(lambda its: its.writers + its.sessions)
_BACKGROUND: Final = _cpu(lambda its: its.background)
_RELAY: Final = _cpu(lambda its: its.relay)
_CPU: Final = {
    "writers' backends": _WRITERS,
    "relay's sessions": _SESSIONS,
    "background": _BACKGROUND,
    "relay itself": _RELAY,
}

Figure = Callable[[Cost], float]


def _median(figure: Figure, costs: Sequence[Cost]) -> float:
    return statistics.median(map(figure, costs))


def _multiple(figure: Figure, runs: Runs, table: str, of: str = _BARE) -> float:
    """Return the ratio of a table's median to another's."""
    return _median(figure, runs[table]) / _median(figure, runs[of])


def _added(figure: Figure, runs: Runs, table: str) -> float:
    """Return the median difference between a table's run and the bare table's in the same round."""
    pairs = zip(runs[table], runs[_BARE], strict=True)
    return statistics.median(figure(cost) - figure(bare) for cost, bare in pairs)


def _has_cpu(runs: Runs) -> bool:
    return all(cost.processor for costs in runs.values() for cost in costs)


# Targets


def targets(tax: Tax) -> list[Target]:
    """Return all targets, with the measured figures."""
    return [*_in_one_targets(tax.in_one), *_single_targets(tax.single), *_bulk_targets(tax), *_latency_targets(tax)]


def _in_one_targets(runs: Runs) -> Iterator[Target]:
    def ratio(figure: Figure) -> float:
        return _added(figure, runs, "relay") / _added(figure, runs, "plain")

    yield Target("in one transaction: added time, of plain's", ratio(_micros), at_most=1.25)
    if _has_cpu(runs):
        yield Target("in one transaction: writers' added CPU, of plain's", ratio(_WRITERS), at_most=1.25)


def _single_targets(single: Mapping[int, Runs]) -> Iterator[Target]:
    for writers, runs in single.items():
        head = _counted(writers)
        if _has_cpu(runs):
            added = _added(_BACKENDS, runs, "relay") / _added(_BACKENDS, runs, "plain")
            yield Target(f"{head}: Postgres's added CPU, of plain's", added, at_most=1.5)
            if writers >= 8:
                its = _median(_RELAY, runs["relay"])
                yield Target(f"{head}: relay's own CPU, µs a commit", its, at_most=20)
        yield Target(f"{head}: commits, of plain's", _multiple(_rate, runs, "relay", "plain"), at_least=0.75)
        yield Target(f"{head}: WAL, bytes a change above none", _added(_wal, runs, "relay"), at_most=250)


def _bulk_targets(tax: Tax) -> Iterator[Target]:
    for name, runs, limit in (("COPY", tax.copy, 3.0), ("UPDATE", tax.update, 3.5)):
        yield Target(f"{name}: time, of none's", _multiple(_seconds, runs, "relay"), at_most=limit)
        if _has_cpu(runs):
            yield Target(f"{name}: writer's CPU, of none's", _multiple(_WRITERS, runs, "relay"), at_most=limit)
        yield Target(f"{name}: WAL, bytes a row above none", _added(_wal, runs, "relay"), at_most=250)


def _latency_targets(tax: Tax) -> Iterator[Target]:
    yield Target("commit to client, idle: p50, ms", tax.idle.p50, at_most=2.5)
    for writers, latency in tax.busy.items():
        yield Target(f"commit to client, {_counted(writers)}: p99, ms", latency.p99, at_most=100)


# Text


def table(tax: Tax) -> str:
    """Return the result as text for people."""
    lines = [f"{name:24}{value}" for name, value in tax.machine.items()]
    lines += ["", "median (lowest to highest) of the runs; CPU in µs and WAL in bytes for each change"]
    for writers, runs in tax.single.items():
        lines += _block(f"{_counted(writers)}, a row each", runs, {"commits a second": _rate})
    lines += _block("one by one in one transaction", tax.in_one, {"µs a row": _micros})
    rows = tax.copy[_BARE][0].changes
    lines += _block(f"COPY of {rows:,} rows", tax.copy, {"seconds": _seconds})
    lines += _block(f"UPDATE of {rows:,} rows", tax.update, {"seconds": _seconds})
    lines += ["", f"The journal's entries take {tax.journal_bytes:,.0f} bytes for each row of the UPDATE."]
    if tax.prune.processor:
        pruning = f"{_BACKENDS(tax.prune):,.1f} µs of CPU and {_wal(tax.prune):,.0f} bytes of WAL"
        lines.append(f"Each entry takes another {pruning} when it is pruned.")
    else:
        lines += ["CPU is left out: Postgres does not run where its processes can be seen from here."]
    lines += ["", f"{'from commit to client, ms':32}{'p50':>10}{'p99':>10}{'max':>10}", _latency("idle", tax.idle)]
    lines += [_latency(_counted(writers), latency) for writers, latency in tax.busy.items()]
    lines += ["", f"{'what the relay holds itself to':56}{'found':>10}{'target':>12}", *map(_target, targets(tax))]
    return "\n".join(lines)


def _counted(writers: int) -> str:
    return f"{writers} writer{'s' if writers > 1 else ''}"


def _block(head: str, runs: Runs, figures: Mapping[str, Figure]) -> list[str]:
    """Return the lines of one kind of load."""
    (first,) = figures.values()
    form = "{:,.2f}" if first is _seconds else "{:,.1f}" if first is _micros else "{:,.0f}"
    lines = ["", _line(head, runs)]
    lines += [
        _line(f"  {name}", [_spread(figure, costs, form) for costs in runs.values()])
        for name, figure in figures.items()
    ]
    lines.append(_line("  multiple of none", [f"{_multiple(first, runs, name):.2f}" for name in runs]))
    if _has_cpu(runs):
        for name, figure in _CPU.items():
            lines.append(_line(f"  CPU, {name}", [_spread(figure, costs, "{:,.1f}") for costs in runs.values()]))
        lines.append(_line("  CPU, Postgres, added", [f"{_added(_BACKENDS, runs, name):.1f}" for name in runs]))
    return [*lines, _line("  WAL", [_spread(_wal, costs, "{:,.0f}") for costs in runs.values()])]


def _line(head: str, cells: Sequence[str] | Runs) -> str:
    return f"{head:32}" + "".join(f"{cell:>26}" for cell in cells)


def _spread(figure: Figure, costs: Sequence[Cost], form: str) -> str:
    found = sorted(map(figure, costs))
    return f"{form.format(statistics.median(found))} ({form.format(found[0])}-{form.format(found[-1])})"


def _latency(head: str, latency: Latency) -> str:
    cells = ["-" if value is None else f"{value:.1f}" for value in (latency.p50, latency.p99, latency.max)]
    return f"{'  ' + head:32}" + "".join(f"{cell:>10}" for cell in cells)


def _target(target: Target) -> str:
    limit = f"<= {target.at_most:g}" if target.at_most is not None else f">= {target.at_least:g}"
    found = "-" if target.found is None else f"{target.found:,.2f}"
    return f"  {target.name:54}{found:>10}{limit:>12}{'  missed' if target.is_met is False else ''}"


# JSON


def as_json(tax: Tax) -> str:
    """Return the result as JSON for programs."""
    return json.dumps({**asdict(tax), "targets": [asdict(target) for target in targets(tax)]})
