"""A run of the torture: rounds of writing amid faults, each ended by a pause in which everything is compared.

Rules:
- In a pause no writer writes and no fault lasts; then every client must come to hold the table, in bounded time.
- The first violation ends the run, and leaves what everybody said and did in a folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from tests.torture import javascript, mutants
from tests.torture.clients import Client, PackagedClient
from tests.torture.javascript import JavaScript
from tests.torture.oracle import Audit
from tests.torture.world import BOARDS, World, Writers

ROUND_SECONDS: Final = 10.0
CATCH_UP_SECONDS: Final = 40.0
WRITERS: Final = 5


@dataclass
class Verdict:
    """What a run did, and what was wrong."""

    seed: str
    seconds: float = 0.0
    rounds: int = 0
    changes: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.seconds / 60:.1f} minutes, {self.rounds} rounds",
            f"  changes committed: {self.changes}",
            f"  writers: {_list(self.writes)}",
            f"  clients: {_list(self.messages)}",
            f"  faults ({self.faults.total()}): {_list(self.faults)}",
            f"  violations: {len(self.violations)}",
        ]
        return "\n".join([*lines, *(f"    {violation}" for violation in self.violations[:20])])


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


async def torture(
    seed: str,
    seconds: float,
    keep: Path,
    mutant: str | None,
    output: IO[str],
    kind: type[World] = World,
    round_seconds: float = ROUND_SECONDS,
) -> Verdict:
    """Torture relays for a while; print what happens."""
    print(f"seed {seed}" + (f", mutant {mutant}" if mutant else ""), file=output, flush=True)
    verdict = Verdict(seed)
    with tempfile.TemporaryDirectory() as scratch:
        world = kind(Path(scratch), seed, mutant if mutant in mutants.MUTANTS else None)
        async with world.running():
            clients: list[Client] = [
                Client(
                    f"{kind}-{board}-{i}",
                    board,
                    world.urls,
                    f"{seed}/{kind}/{board}/{i}",
                    resumable=kind == "resumable",
                )
                for kind in ("plain", "resumable")
                for board in BOARDS
                for i in range(3)
            ]
            clients += [
                PackagedClient(f"packaged-{board}", board, world.urls, f"{seed}/packaged/{board}") for board in BOARDS
            ]
            lives = [client.live() for client in clients]
            if lack := javascript.missing():
                print(f"  without the JavaScript client: {lack}", file=output, flush=True)
            else:
                program = mutants.javascript(mutant, javascript.CLIENT, world.folder)
                for name in ("javascript", "javascript-too"):
                    process = JavaScript(name, BOARDS, world.urls, f"{seed}/{name}", program)
                    clients += process.clients
                    lives.append(process.live())
            started = time.monotonic()
            writers = Writers(world.dsn, seed, WRITERS)
            tasks = [asyncio.create_task(life) for life in lives]
            try:
                with writers.running():
                    while not verdict.violations and time.monotonic() - started < seconds:
                        chance = random.Random(f"{seed}/{verdict.rounds}")
                        await _round(world, writers, clients, tasks, verdict, chance, round_seconds)
                        print(f"  round {verdict.rounds}: {verdict.changes} changes so far", file=output, flush=True)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            _sum_up(verdict, world, writers, clients, time.monotonic() - started)
            if verdict.violations:
                audit = await world.audit()
                await asyncio.to_thread(_leave, keep / seed, world, clients, audit, verdict)
    print(verdict, file=output, flush=True)
    return verdict


async def _round(
    world: World,
    writers: Writers,
    clients: list[Client],
    tasks: list[asyncio.Task[None]],
    verdict: Verdict,
    chance: random.Random,
    seconds: float,
) -> None:
    verdict.rounds += 1
    earlier, before = world.faults_lately, world.faults.copy()
    for client in clients:
        client.calm.clear()
    writers.go()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(chance.random() * 2)
        await world.fault()
    await writers.pause()
    for client in clients:
        client.calm.set()
    await _until_equal(world, clients, verdict)
    audit = await world.audit()
    verdict.changes = len(audit.entries)
    # A board may still have been on its way when the round before ended.
    world.faults_lately = world.faults - before
    for client in clients:
        await client.check(audit, earlier + world.faults_lately)
        verdict.violations += client.violations
    verdict.violations += writers.mistakes
    verdict.violations += [f"a client ended: {task.exception()!r}" for task in tasks if task.done()]


async def _until_equal(world: World, clients: list[Client], verdict: Verdict) -> None:
    boards = {board: await world.board(board) for board in BOARDS}
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while different := [client for client in clients if client.tasks != boards[client.board]]:
        if time.monotonic() > deadline:
            for client in different:
                wrong = {
                    key
                    for key in client.tasks.keys() | boards[client.board].keys()
                    if client.tasks.get(key) != boards[client.board].get(key)
                }
                verdict.violations.append(f"{client.name} does not come to hold the table: {sorted(wrong)[:6]}")
            return
        await asyncio.sleep(0.05)


def _sum_up(verdict: Verdict, world: World, writers: Writers, clients: list[Client], seconds: float) -> None:
    verdict.seconds, verdict.faults, verdict.writes = seconds, world.faults, writers.counts
    for client in clients:
        verdict.messages += client.counts


def _leave(folder: Path, world: World, clients: list[Client], audit: Audit, verdict: Verdict) -> None:
    """Leave on disk all that it takes to understand a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.txt").write_text("\n".join(world.story))
    (folder / "verdict.txt").write_text(f"{verdict}\n" + "\n".join(verdict.violations))
    for client in clients:
        with (folder / f"{client.name}.jsonl").open("w") as lines:
            lines.writelines(json.dumps({"at": at, "message": text}) + "\n" for at, text in client.raw)
    with (folder / "audit.csv").open("w", newline="") as table:
        csv.writer(table).writerows(
            (one.number, one.epoch, one.xid, one.task, one.board, one.stamp) for one in audit.entries
        )
    for log in world.folder.glob("output-of-*"):
        with contextlib.suppress(OSError):
            shutil.copy(log, folder / f"relay-{log.name}.log")
    verdict.violations.append(f"what everybody said and did is in {folder}")
