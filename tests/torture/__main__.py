"""`python -m tests.torture`: writers, clients and faults at random, and a verdict."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

import click

from tests.nats import NATS_SERVER, NO_SERVER
from tests.torture.edges import ClusterWorld, EdgesWorld
from tests.torture.mutants import JAVASCRIPT, MUTANTS
from tests.torture.run import torture
from tests.torture.shapes import torture as torture_shapes
from tests.torture.world import World


@click.command()
@click.option("--minutes", type=float, default=1.0, show_default=True, help="how long to torture")
@click.option("--seed", default=None, help="what chance starts from  [default: a new one]")
@click.option(
    "--mutant", type=click.Choice(sorted([*MUTANTS, *JAVASCRIPT])), help="torture a broken relay or client instead"
)
@click.option(
    "--nats/--no-nats", default=None, help="with publishers and edges  [default: if there is a nats-server]"
)
@click.option("--shapes", is_flag=True, help="other boards: lanes that are rows, a filter, an order, extras")
@click.option("--cluster", is_flag=True, help="NATS is a cluster of three servers")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    default=Path("torture"),
    show_default=True,
    help="the folder in which a failure leaves what it takes to understand it",
)
def main(
    minutes: float, seed: str | None, mutant: str | None, nats: bool | None, cluster: bool, shapes: bool, keep: Path
) -> None:
    """Torture the relay, and say whether any client was sent anything but the truth."""
    seed = seed or secrets.token_hex(4)
    if shapes:
        verdict = asyncio.run(torture_shapes(seed, minutes * 60, keep, sys.stdout))
        sys.exit(1 if verdict.violations else 0)
    if nats is None and not NATS_SERVER:
        click.echo(f"without NATS: {NO_SERVER}")
    world = World
    if nats or (nats is None and NATS_SERVER):
        world = ClusterWorld if cluster else EdgesWorld
    verdict = asyncio.run(torture(seed, minutes * 60, keep, mutant, sys.stdout, world))
    sys.exit(1 if verdict.violations else 0)


main()
