"""The demo's writers: applications that change tasks by plain SQL, at a human pace."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, TypeVar

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow, dict_row

from relay.postgres import install
from relay.text import error_line

WRITERS: Final = 3
PAUSE_SECONDS: Final = (1.0, 8.0)
"""Pause of each writer between two changes: together they make one every second or two."""

FEWEST_TASKS: Final = 10
MOST_TASKS: Final = 16
"""Maximum number of tasks that the writers make, so that the board fits a screen."""

TITLES: Final[Mapping[str, str]] = {
    "Fix the login redirect": "on iOS",
    "Write the release notes": "for 2.4",
    "Rotate the API keys": "of staging",
    "Speed up the search page": "below 200 ms",
    "Add dark mode": "to settings",
    "Upgrade Postgres": "to 18",
    "Clean up old feature flags": "of spring",
    "Call back the pilot users": "in Porto",
    "Draft the pricing page": "with sales",
    "Test the backup restore": "end to end",
    "Translate the invoices": "to Polish",
    "Review the access log": "of October",
    "Trace the slow checkout": "on Mondays",
    "Order badges for the fair": "and lanyards",
    "Replace the old cron job": "with a queue",
    "Plan the offsite": "in June",
    "Answer the security audit": "part two",
    "Repair the flaky build": "on arm64",
    "Import last year's orders": "from CSV",
    "Tidy the onboarding mail": "and its links",
    "Measure sign-up drop-off": "by country",
    "Sketch the mobile board": "for tablets",
    "Archive finished projects": "of 2024",
    "Interview two designers": "on Thursday",
}
"""Titles of tasks, and what a writer adds to each when more is known."""

LANES: Final[Mapping[str, tuple[str, ...]]] = {
    "backlog": ("todo",),
    "todo": ("in_progress", "in_progress", "backlog"),
    "in_progress": ("done", "done", "done", "recovery"),
    "recovery": ("in_progress",),
    "done": ("todo",),
}
"""The possible next lanes of each lane; one that is listed twice is chosen twice as often."""

PRIORITIES: Final = ("low", "medium", "high")
HOURS: Final = (1, 2, 3, 4, 5, 6, 8)
STATUSES: Final = ("working", "in review", "waiting", "blocked")

_random: Final = random.Random()  # noqa: S311  # chance, not a secret

Writer = AsyncConnection[DictRow]
T = TypeVar("T")


class DemoError(Exception):
    """The demo cannot start or continue. The text says why, in one line."""


async def prepare(dsn: str) -> None:
    """Set up the database as an operator does, with a few tasks to begin with."""
    for name in ("tasks", "install"):
        install.run(dsn, name)
    install.watch(dsn, "public.tasks")
    async with _writer(dsn) as writer:
        # Short ids, because people type them here.
        await writer.execute("create sequence task_numbers start 101")
        await writer.execute("alter table tasks alter id set default 'task-' || nextval('task_numbers')")
        await writer.execute("insert into tasks (title, lane) values ('Say hello with psql', 'todo')")
        for lane, count in {"backlog": 4, "todo": 2, "in_progress": 3, "done": 2, "recovery": 1}.items():
            await _create(writer, await _own_tasks(writer), lane, count)


@contextlib.asynccontextmanager
async def _writer(dsn: str) -> AsyncIterator[Writer]:
    """Connect as any application does. Raises DemoError for errors of the database within the block."""
    try:
        async with await AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row) as writer:
            # If the newcomer holds a lock on the row, the writer does something else instead.
            await writer.execute("set lock_timeout = '1s'")
            yield writer
    except psycopg.Error as ex:
        raise DemoError(f"a writer could not go on: {error_line(ex)}") from ex


async def write(dsn: str) -> None:
    """Change tasks forever, at a human pace."""
    async with _writer(dsn) as writer:
        while True:
            await asyncio.sleep(_random.uniform(*PAUSE_SECONDS))
            with contextlib.suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                await _make_change(writer)


async def _make_change(writer: Writer) -> None:
    tasks = await _own_tasks(writer)
    if len(tasks) < FEWEST_TASKS:
        await _create(writer, tasks, "backlog", _random.choice((1, 1, 2)))
    elif len(tasks) > MOST_TASKS:
        await _delete(writer, tasks, _random.choice((1, 1, 2)))
    else:
        await _make_any_change(writer, tasks)


async def _make_any_change(writer: Writer, tasks: list[DictRow]) -> None:
    match _random.choices(("create", "move", "edit", "plan", "delete"), (3, 8, 5, 1, 1))[0]:
        case "create":
            await _create(writer, tasks, "backlog", 1)
        case "move":
            await _move(writer, _random.choice([task for task in tasks if task["lane"] != "done"] or tasks))
        case "edit":
            await _edit(writer, _random.choice(tasks))
        case "plan":
            await _plan(writer, tasks)
        case "delete":
            await _delete(writer, tasks, 1)


async def _own_tasks(writer: Writer) -> list[DictRow]:
    """Return the writers' own tasks, recognized by title, so that those of the newcomer are left alone."""
    cursor = await writer.execute("select * from tasks where board_id = 'default' order by created_at")
    return [task async for task in cursor if task["title"].startswith(tuple(TITLES))]


async def _create(writer: Writer, tasks: Sequence[DictRow], lane: str, count: int) -> None:
    """Add tasks with unused titles, in one statement."""
    unused = [title for title in TITLES if not any(task["title"].startswith(title) for task in tasks)]
    titles = _random.sample(unused, min(count, len(unused)))
    await writer.execute(
        "insert into tasks (title, lane, priority, estimated_hours) "
        "select title, %s, priority, hours "
        "from unnest(%s::text[], %s::text[], %s::numeric[]) fresh (title, priority, hours)",
        (lane, titles, _random.choices(PRIORITIES, k=len(titles)), _random.choices(HOURS, k=len(titles))),
    )


async def _move(writer: Writer, task: DictRow) -> None:
    lane = _random.choice(LANES.get(task["lane"], ("todo",)))
    await writer.execute("update tasks set lane = %s where id = %s", (lane, task["id"]))


async def _edit(writer: Writer, task: DictRow) -> None:
    match _random.choice(("title", "priority", "hours", "status")):
        case "title":
            known = next(title for title in TITLES if task["title"].startswith(title))
            await _set(writer, task, "title", f"{known} {TITLES[known]}")
        case "priority":
            await _set(writer, task, "priority", _another(PRIORITIES, task["priority"]))
        case "hours":
            await _set(writer, task, "estimated_hours", _another(HOURS, task["estimated_hours"]))
        case "status":
            await _set(writer, task, "status", _another(STATUSES, task["status"]))


async def _set(writer: Writer, task: DictRow, column: str, value: object) -> None:
    query = sql.SQL("update tasks set {} = %s where id = %s").format(sql.Identifier(column))
    await writer.execute(query, (value, task["id"]))


def _another(choices: Sequence[T], but: T | None) -> T:
    return _random.choice([choice for choice in choices if choice != but])


async def _plan(writer: Writer, tasks: list[DictRow]) -> None:
    """Change all tasks of a lane in one statement."""
    lane, priority = _random.choice(("backlog", "todo", "in_progress")), _random.choice(PRIORITIES)
    ids = [task["id"] for task in tasks if task["lane"] == lane]
    await writer.execute("update tasks set priority = %s where id = any (%s)", (priority, ids))


async def _delete(writer: Writer, tasks: list[DictRow], count: int) -> None:
    """Delete the oldest tasks, preferring those that are done."""
    by_use = sorted(tasks, key=lambda task: task["lane"] != "done")
    await writer.execute("delete from tasks where id = any (%s)", ([task["id"] for task in by_use[:count]],))
