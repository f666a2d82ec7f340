"""The picture of the comparison: deliveries a second by changes in flight, and latency by changes a second."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"relay": "#2463eb", "node": "#3c873a", "broadcast": "#d97706", "nchan": "#7c3aed"}
Results = Mapping[str, Mapping[str, list[dict[str, float]]]]


def draw(results: Results, titles: Mapping[str, str], path: Path) -> None:
    """Draw it as SVG, the same bytes for the same results."""
    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.hashsalt": "fanout", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, title in titles.items():
        _curve(left, results, name, title, "sustained-", "deliveries_per_s")
        _curve(right, results, name, title, "rate-", "p99")
    _label(left, "Sustained throughput, 1,000 subscribers", "changes in flight", "deliveries a second")
    _ticks(left, results, "sustained-")
    _label(right, "p99 from commit to client, 1,000 subscribers", "changes a second", "milliseconds")
    _ticks(right, results, "rate-")
    left.legend(frameon=False, loc="upper left")
    figure.savefig(path, metadata={"Date": None})


def _curve(axes: Axes, results: Results, name: str, title: str, prefix: str, figure: str) -> None:
    points = {
        int(scenario.removeprefix(prefix)): [it[figure] for it in measured[name]]
        for scenario, measured in results.items()
        if scenario.startswith(prefix) and name in measured
    }
    xs = sorted(points)
    ys = [statistics.median(points[x]) for x in xs]
    axes.plot(xs, ys, marker="o", label=title, color=COLOURS[name])
    axes.fill_between(xs, [min(points[x]) for x in xs], [max(points[x]) for x in xs], color=COLOURS[name], alpha=0.15)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.grid(alpha=0.25, which="major")


def _ticks(axes: Axes, results: Results, prefix: str) -> None:
    """Mark what was measured."""
    values = [scenario.removeprefix(prefix) for scenario in results if scenario.startswith(prefix)]
    axes.set_xticks([int(value) for value in values], values)
