"""What filters, expressions, lanes and extras cost writers and readers: processor time of Postgres, on Linux.

    python benchmarks/shapes.py             # ten seconds
    python benchmarks/shapes.py --rounds 1 --writes 200

For each shape a database of its own, with the same tables; they take turns. One session writes row by row in one
transaction, and then reads a board of 200 tasks. Figures are medians of the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Final

import click
import psycopg
from psycopg.conninfo import make_conninfo

from relay.commands.bench import processor
from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.install import run

BOARDS: Final = 10
TASKS: Final = 200
"""Number of tasks on each board."""

_TABLES: Final = f"""
    create table lists (id integer primary key, board_id integer not null, name text not null, position integer not null);
    create table items (
        id integer primary key, board_id integer not null, list_id integer not null references lists, lane text not null,
        title text not null, state text not null default 'open', deleted_at timestamptz);
    create index on items (board_id);
    create index on items ((board_id + 0));
    create index on items (list_id);
    create table comments (
        id integer generated always as identity primary key, item_id integer not null references items, body text not null,
        hidden boolean not null default false);
    create index on comments (item_id);
    create table labels (id integer primary key, name text not null, archived boolean not null default false);
    create table item_labels (item_id integer references items, label_id integer references labels, removed boolean not null default false,
        primary key (item_id, label_id));
    create index on item_labels (label_id);
    insert into lists select n, n / 5, 'List ' || n, n from generate_series(0, {BOARDS * 5 - 1}) n;
    insert into items select n, n / {TASKS}, n / {TASKS} * 5 + n % 5, 'todo', 'Title of task ' || n
    from generate_series(0, {BOARDS * TASKS - 1}) n;
    insert into comments (item_id, body) select n % {BOARDS * TASKS}, 'A comment' from generate_series(1, {BOARDS * TASKS * 3}) n;
    insert into labels select n, 'Label ' || n from generate_series(1, 50) n;
    insert into item_labels select n, 1 + (n * k) % 50 from generate_series(0, {BOARDS * TASKS - 1}) n, generate_series(1, 3) k
    on conflict do nothing;
"""  # noqa: E501

_WATCH: Final = "select relay.watch('items', lane_column => 'lane'{})"
_COUNT: Final = _WATCH.format("") + "; select relay.extra('items', 'comments', 'comments'{})"
_LABELS: Final = (
    _WATCH.format("")
    + "; select relay.extra('items', 'labels', 'labels', '{name}', through => 'item_labels', order_by => '{name}')"
)
_LANES: Final = (
    "select relay.lanes('lists', name_column => 'name', order_by => '{position}');"
    "select relay.watch('items', lane_column => 'list_id', lanes => 'lists')"
)
_UPDATE: Final = "update items set title = 'Title ' || {n} where id = {n} % 2000"
_HIDE: Final = "update items set deleted_at = now()"
_COMMENT: Final = "insert into comments (item_id, body, hidden) values ({n} % 2000, 'A comment', false)"

SHAPES: Final[Mapping[str, tuple[str, str, bool]]] = {
    "not watched": ("select", _UPDATE, False),
    "only columns": (_WATCH.format(""), _UPDATE, True),
    "a filter, and the row matches": (_WATCH.format(", filter => 'deleted_at is null'"), _UPDATE, True),
    "a filter, and the row does not match": (
        _WATCH.format(", filter => 'deleted_at is null'") + f"; {_HIDE}",
        _UPDATE,
        False,
    ),
    "an expression for the board": (_WATCH.format(", board_as => 'board_id + 0'"), _UPDATE, True),
    "lanes that are rows": (_LANES, _UPDATE, True),
    "its lane, renamed": (_LANES, "update lists set name = 'List ' || {n} where id = {n} % 50", False),
    "an insert into another table": ("select", _COMMENT, False),
    "the same, counted by an extra": (_COUNT.format(""), _COMMENT, True),
    "counted with a filter that the row matches": (_COUNT.format(", filter => 'not hidden'"), _COMMENT, True),
    "counted with a filter that it does not match": (
        _COUNT.format(", filter => 'not hidden'"),
        _COMMENT.replace("false", "true"),
        False,
    ),
    "an extra that lists, through a link": (_LABELS, _UPDATE, True),
}
"""For each shape: how it is made, what is written, and whether a board is read."""


class Session:
    """A session of a database with one shape."""

    def __init__(self, dsn: str, stack: ExitStack) -> None:
        self.connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        self._pid = self.connection.info.backend_pid

    def cost(self, work: Callable[[], object]) -> float:
        """Return the processor time that Postgres takes for it, in seconds."""
        begun = processor.seconds(self._pid)
        work()
        ended = processor.seconds(self._pid)
        if begun is None or ended is None:
            raise click.ClickException("this system does not tell the processor time of a process: run it on Linux")
        return ended - begun

    def write(self, statement: str, writes: int) -> float:
        """Return the cost of a write, in microseconds."""
        loop = f"do $$ begin for i in 1..{writes} loop {statement.format(n='i')}; end loop; end $$".encode()
        return self.cost(lambda: self.connection.execute(loop)) / writes * 1e6

    def read(self) -> float:
        """Return the cost of reading a board, in milliseconds."""
        rows = self.connection.execute("select * from relay.board('3')").fetchall()
        assert sum(watch is not None for watch, _ in rows) == TASKS
        return self.cost(lambda: self.connection.execute("select * from relay.board('3')").fetchall()) * 1e3


def _sessions(server: EmbeddedPostgres, stack: ExitStack) -> Iterator[Session]:
    """Yield sessions of equal databases."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("create database tables")
        run(tables := make_conninfo(server.dsn, dbname="tables"), "install")
        with psycopg.connect(tables, autocommit=True) as connection:
            connection.execute(_TABLES.encode())
        for number in range(len(SHAPES)):
            admin.execute(f"create database shape_{number} template tables".encode())
            yield Session(make_conninfo(server.dsn, dbname=f"shape_{number}"), stack)


@click.command()
@click.option("--rounds", default=7, show_default=True, help="how often each shape takes its turn")
@click.option("--writes", default=3000, show_default=True, help="writes of each turn")
def main(rounds: int, writes: int) -> None:
    """Print what each shape costs."""
    with EmbeddedPostgres() as server, ExitStack() as stack:
        sessions = dict(zip(SHAPES, _sessions(server, stack), strict=True))
        for name, (made, _, _) in SHAPES.items():
            sessions[name].connection.execute(made.encode())
            sessions[name].connection.execute("vacuum analyze")
        writing: dict[str, list[float]] = {name: [] for name in SHAPES}
        reading: dict[str, list[float]] = {name: [] for name in SHAPES}
        for _ in range(rounds):
            for name, (_, statement, is_read) in SHAPES.items():
                writing[name].append(sessions[name].write(statement, writes))
                if is_read:
                    reading[name].append(sessions[name].read())
    print(f"{'':<42} {'a write, µs':>12} {'the board, ms':>14}")
    for name in SHAPES:
        board = f"{statistics.median(reading[name]):14.1f}" if reading[name] else ""
        print(f"{name:<42} {statistics.median(writing[name]):12.1f} {board}")


if __name__ == "__main__":
    main()
