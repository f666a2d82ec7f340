"""The demo: a throwaway Postgres, a few writers, the relay, and a subscriber that shows what it receives.

Its place is beside the daemon, above all else but the command line.

Rules:
- Nothing is pretended. The writers use plain SQL and know no relay; the subscriber is a client like any other, on
  a real WebSocket, and what it shows it knows from messages alone. So does the board page; demo_tasks.py writes for
  it.
- Signals only ask it to stop. So Ctrl-C at any moment takes the same way out, and leaves nothing behind.
- Nobody but this machine can connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import click
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow, dict_row
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from relay.commands.demo import demo_tasks
from relay.config import Settings
from relay.daemon import serve as daemon
from relay.postgres import install
from relay.postgres.embedded import HOST, EmbeddedPostgres, free_port
from relay.text import error_line

WRITERS: Final = 3
PAUSE_SECONDS: Final = (1.0, 8.0)
"""How long each writer rests between two changes: together they make one every second or two."""

FEWEST_TASKS: Final = 10
MOST_TASKS: Final = 16
"""The writers turn back here, so that the board fits a screen."""

MESSAGES_BETWEEN_BOARDS: Final = 25
"""After so many messages the board is shown again, for by then it has left the screen."""

TASKS_SHOWN_PER_LANE: Final = 8
TITLE_CHARACTERS: Final = 26
"""The width of the column of titles; a longer one pushes what follows to the right."""

VALUE_CHARACTERS: Final = 40
"""A longer value is cut."""

SUBSCRIBE: Final = '{"type":"subscribe","boardId":"default"}'

GUEST_TASK: Final = "task-101"
"""The task that the newcomer is invited to change. No writer touches it, so it is there when they do."""

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
    "Mend the flaky build": "on arm64",
    "Import last year's orders": "from CSV",
    "Tidy the onboarding mail": "and its links",
    "Measure sign-up drop-off": "by country",
    "Sketch the mobile board": "for tablets",
    "Archive finished projects": "of 2024",
    "Interview two designers": "on Thursday",
}
"""What tasks are called, and what a writer adds to the title when more is known."""

LANES: Final[Mapping[str, tuple[str, ...]]] = {
    "backlog": ("todo",),
    "todo": ("in_progress", "in_progress", "backlog"),
    "in_progress": ("done", "done", "done", "recovery"),
    "recovery": ("in_progress",),
    "done": ("todo",),
}
"""Where tasks go from each lane; what stands there twice happens twice as often."""

PRIORITIES: Final = ("low", "medium", "high")
HOURS: Final = (1, 2, 3, 4, 5, 6, 8)
STATUSES: Final = ("working", "in review", "waiting", "blocked")

_TYPE_COLOURS: Final = {
    "board.sync": "magenta",
    "task.created": "green",
    "task.updated": "yellow",
    "task.moved": "bright_blue",
    "task.deleted": "red",
}
_LANE_COLOURS: Final = {
    "backlog": "bright_blue",
    "todo": "cyan",
    "in_progress": "yellow",
    "done": "green",
    "recovery": "red",
}

_random: Final = random.Random()  # noqa: S311  # chance, not a secret

Task = dict[str, Any]
Writer = AsyncConnection[DictRow]
T = TypeVar("T")


class DemoError(Exception):
    """Why the demo cannot start or go on, in one line."""


async def run(settings: Settings, postgres_port: int | None) -> None:
    """Show the demo until SIGINT or SIGTERM.

    Of the settings, the ports count. Raises DemoError, StartError, InstallError or EmbeddedPostgresError.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    _forget_other_databases()
    _require_free_ports(settings, postgres_port)
    postgres = EmbeddedPostgres(port=postgres_port)
    settings = settings.model_copy(
        update={
            "DATABASE_URL": postgres.dsn,
            "WS_HOST": HOST,
            "WS_PORT": settings.WS_PORT or free_port(),
            "HEALTH_PORT": settings.HEALTH_PORT or free_port(),
            # Every connection is from this machine: a page that is loaded again and again is no flood.
            "WS_RATE_LIMIT_PER_CLIENT": 0,
            "WS_RATE_LIMIT_TOTAL": 0,
        }
    )
    click.secho("Starting Postgres in a temporary folder …", dim=True)
    # This keeps the loop waiting for a second or two, on purpose: a signal is then acted on when there is a
    # Postgres to stop, and not in the middle of making one.
    with postgres:
        await _prepare(postgres.dsn)
        desk = demo_tasks.Writer(postgres.dsn)
        async with (
            contextlib.aclosing(desk),
            daemon.running(settings, demo_tasks.PATH, desk.routes()) as (feed_task, _),
        ):
            invitation = _invitation(postgres)
            _show_header(invitation, settings)
            writers = [_write(postgres.dsn) for _ in range(WRITERS)]
            await _until_one_ends(feed_task, stop.wait(), _subscribe(settings.WS_PORT, invitation), *writers)
        click.secho("\nStopping …", dim=True)
    click.echo("Stopped: Postgres and its folder are gone.")


def _forget_other_databases() -> None:
    """Drop libpq's variables: they are about a database of the user's own, and would lead us there."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _require_free_ports(settings: Settings, postgres_port: int | None) -> None:
    """Find out before Postgres is started, which takes a second. Raises DemoError."""
    wanted = {
        "--ws-port": settings.WS_PORT,
        "--health-port": settings.HEALTH_PORT,
        "--postgres-port": postgres_port or 0,
    }
    with contextlib.ExitStack() as held:
        for option, port in wanted.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as those do who will listen
            try:
                probe.bind((HOST, port))
                probe.listen()  # or else two options could have the same port
            except OSError as ex:
                raise DemoError(f"cannot use port {port}: {ex.strerror}: choose another with {option}") from ex


async def _until_one_ends(feed_task: asyncio.Task[None], *parts: Coroutine[Any, Any, object]) -> None:
    """Run the parts until one of them or the feed ends, stop the others, and raise what ended it."""
    tasks = [asyncio.create_task(part) for part in parts]
    done, _ = await asyncio.wait({feed_task, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


# What the newcomer reads first ------------------------------------------------------------------------------


def _invitation(postgres: EmbeddedPostgres) -> str:
    """Give a command that changes a task, to be pasted into another terminal."""
    psql = "psql" if shutil.which("psql") else shlex.quote(str(postgres.bin / "psql"))
    update = f"update tasks set title = 'Hello' where id = '{GUEST_TASK}'"  # a constant
    return f'{psql} "{postgres.dsn}" -c "{update}"'


def _show_header(invitation: str, settings: Settings) -> None:
    url = f"ws://localhost:{settings.WS_PORT}"
    click.echo(f"\n{click.style('relay demo', bold=True)}: a few writers, a Postgres, the relay, a subscriber.")
    click.echo("What it receives is shown below. Ctrl-C ends it all and leaves nothing behind.\n")
    _show_advice(
        "Open the board in two windows, drag a card in one, and see it move in the other:",
        f"http://localhost:{settings.HEALTH_PORT}/",
    )
    _show_advice("Change a task yourself, in another terminal, and see it arrive here:", invitation)
    _show_advice(
        "Subscribe yourself: connect with one of the first two, then send the third:",
        f"wscat -c {url}",
        f"{shlex.quote(sys.executable)} -m websockets {url}",
        SUBSCRIBE,
    )
    _show_advice("Ask the relay how it is:", f"curl http://localhost:{settings.HEALTH_PORT}/health")


def _show_advice(why: str, *lines: str) -> None:
    click.echo(why)
    for line in lines:
        click.secho(f"  {line}", fg="cyan")
    click.echo()


# The subscriber ---------------------------------------------------------------------------------------------


async def _subscribe(port: int, invitation: str) -> None:
    """Follow the board as any client does, and show each message. A lost connection is made anew."""
    board = Board()
    while True:
        # The relay sends pings, and whatever proxy there may be leads away from this machine.
        async with connect(f"ws://{HOST}:{port}", proxy=None, ping_interval=None, max_size=None) as connection:
            await connection.send(SUBSCRIBE)
            with contextlib.suppress(ConnectionClosed):
                async for text in connection:
                    _show_message(board, json.loads(text), invitation)


def _show_message(board: Board, message: dict[str, Any], invitation: str) -> None:
    kind = message["type"]
    said = board.take(message)
    click.echo(f"{_dim(time.strftime('%H:%M:%S'))}  {click.style(f'{kind:12}', fg=_TYPE_COLOURS.get(kind))}  {said}")
    if kind == "board.sync":
        _show_board(board)
    elif board.messages_since_shown >= MESSAGES_BETWEEN_BOARDS and kind != "task.moved":  # its update comes next
        click.echo(f"\nThe board now, as those messages made it. {click.style('Yours to change:', bold=True)}")
        click.secho(f"  {invitation}", fg="cyan")
        _show_board(board)


def _show_board(board: Board) -> None:
    click.echo("\n" + "\n".join(board.lines()) + "\n")
    board.messages_since_shown = 0


class Board:
    """The board as a subscriber holds it: `board.sync` begins it, each message after that changes it."""

    def __init__(self) -> None:
        self._lanes: dict[str, None] = {}
        self._tasks: dict[str, Task] = {}
        self.messages_since_shown = 0

    def take(self, message: dict[str, Any]) -> str:
        """Act on a message, and say in words what it says."""
        self.messages_since_shown += 1
        match message:
            case {"type": "board.sync", "data": {"lanes": lanes}}:
                return self._begin(lanes)
            case {"type": "task.created", "data": task}:
                return self._create(task)
            case {"type": "task.updated", "data": {"id": task_id, "changes": changes}}:
                return self._update(self._tasks[task_id], changes)
            case {"type": "task.moved", "data": {"id": task_id, "fromLane": old, "toLane": new}}:
                return self._move(self._tasks[task_id], old, new)
            case {"type": "task.deleted", "data": {"id": task_id}}:
                return self._delete(self._tasks.pop(task_id))
            case _:
                return json.dumps(message.get("data"))

    def lines(self) -> Iterator[str]:
        """Draw the board: each lane, how many tasks it has, and which."""
        for lane in self._lanes:
            tasks = [task for task in self._tasks.values() if task["lane"] == lane]
            names = [f"{_dim(_text(task['id']))}  {_title(task)}  {_details(task)}" for task in tasks]
            if len(names) > TASKS_SHOWN_PER_LANE:
                names[TASKS_SHOWN_PER_LANE:] = [_dim(f"and {len(names) - TASKS_SHOWN_PER_LANE} more")]
            heading = f"  {_lane(lane, 12)}{len(tasks):>3}"
            for name in names or [""]:
                yield f"{heading}   {name}".rstrip()
                heading = " " * 17

    def _begin(self, lanes: dict[str, list[Task]]) -> str:
        self._lanes = dict.fromkeys(lanes)
        self._tasks = {task["id"]: task for tasks in lanes.values() for task in tasks}
        return f"the whole board, {len(self._tasks)} task{'' if len(self._tasks) == 1 else 's'}"

    def _create(self, task: Task) -> str:
        self._tasks[task["id"]] = task
        self._lanes[task["lane"]] = None
        return f"{_title(task)}  in {_lane(task['lane'])}  {_details(task)}"

    def _update(self, task: Task, changes: Task) -> str:
        said = f"{_title(task)}  {_described(task, changes)}"
        task.update(changes)
        return said

    def _move(self, task: Task, old: str, new: str) -> str:
        task["lane"] = new
        self._lanes[new] = None
        return f"{_title(task)}  {_lane(old)} → {_lane(new)}"

    def _delete(self, task: Task) -> str:
        return f"{_title(task)}  {_dim('was in')} {_lane(task['lane'])}"


def _described(task: Task, changes: Task) -> str:
    """Say what changed; or else, when `task.moved` has said it before, only which columns did."""
    told = []
    for name, value in changes.items():
        old = task.get(name)
        if name == "title":  # the line begins with the old one
            told.append(f"title → {click.style(_text(value), bold=True)}")
        elif name != "updatedAt" and value != old:
            told.append(f"{name} → {_text(value)}" if old is None else f"{name} {_text(old)} → {_text(value)}")
    return "  ".join(told) or _dim(", ".join(changes))


def _title(task: Task) -> str:
    return click.style(f"{_text(task.get('title', task['id'])):{TITLE_CHARACTERS}}", bold=True)


def _details(task: Task) -> str:
    hours = task.get("estimatedHours")
    found = [task.get("priority"), hours if hours is None else f"{hours} h", task.get("status")]
    return _dim(" · ".join(_text(value) for value in found if value is not None))


def _lane(lane: Any, width: int = 0) -> str:
    return click.style(f"{_text(lane):{width}}", fg=_LANE_COLOURS.get(lane, "magenta"))


def _dim(text: str) -> str:
    return click.style(text, dim=True)


def _text(value: object) -> str:
    """Write a value on part of a line, whatever the newcomer put into it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"


# The writers ------------------------------------------------------------------------------------------------


async def _prepare(dsn: str) -> None:
    """Set the database up as an operator does, and give the writers something to begin with."""
    for name in ("tasks", "install"):
        install.run(dsn, name)
    install.watch(dsn, "public.tasks")
    async with _writer(dsn) as writer:
        # Short ids, for people type them here.
        await writer.execute("create sequence task_numbers start 101")
        await writer.execute("alter table tasks alter id set default 'task-' || nextval('task_numbers')")
        await writer.execute("insert into tasks (title, lane) values ('Say hello with psql', 'todo')")
        for lane, count in {"backlog": 4, "todo": 2, "in_progress": 3, "done": 2, "recovery": 1}.items():
            await _create(writer, await _own_tasks(writer), lane, count)


@contextlib.asynccontextmanager
async def _writer(dsn: str) -> AsyncIterator[Writer]:
    """Connect as any application does. Raises DemoError for what the database refuses meanwhile."""
    try:
        async with await AsyncConnection.connect(dsn, autocommit=True, row_factory=dict_row) as writer:
            # The newcomer may hold what a writer wants; that writer then does something else instead.
            await writer.execute("set lock_timeout = '1s'")
            yield writer
    except psycopg.Error as ex:
        raise DemoError(f"a writer could not go on: {error_line(ex)}") from ex


async def _write(dsn: str) -> None:
    """Change tasks for ever, at a human pace."""
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
    """Read the writers' tasks, which their titles tell: what the newcomer makes or renames is left alone."""
    cursor = await writer.execute("select * from tasks where board_id = 'default' order by created_at")
    return [task async for task in cursor if task["title"].startswith(tuple(TITLES))]


async def _create(writer: Writer, tasks: Sequence[DictRow], lane: str, count: int) -> None:
    """Think of tasks that there are not, and add them in one statement."""
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
    """Change several tasks at once, those of one lane."""
    lane, priority = _random.choice(("backlog", "todo", "in_progress")), _random.choice(PRIORITIES)
    ids = [task["id"] for task in tasks if task["lane"] == lane]
    await writer.execute("update tasks set priority = %s where id = any (%s)", (priority, ids))


async def _delete(writer: Writer, tasks: list[DictRow], count: int) -> None:
    """Clear away the oldest tasks that are done, or else the oldest."""
    by_use = sorted(tasks, key=lambda task: task["lane"] != "done")
    await writer.execute("delete from tasks where id = any (%s)", ([task["id"] for task in by_use[:count]],))
