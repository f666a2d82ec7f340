"""`relay check --suggest`: reads the keys and columns of a table, and proposes how to watch it.

Rules:
- It proposes what a person would guess from the names, and leaves out the rest, so that the command reports what is
  missing.
- The output can be pasted, but should be read first.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, LiteralString

import psycopg

from relay.postgres.connection import PINNED_PATH
from relay.postgres.install import InstallError
from relay.text import error_line

_LANE: Final = ("lane", "list", "column", "stack", "status", "state", "bucket", "stage")
_BOARD: Final = ("board", "project", "workspace", "space", "team")
_NAME: Final = ("name", "title", "label")
_COLOR: Final = ("color", "colour")
_PERSON_NAME: Final = ("name", "username", "login")  # not title, which is a person's job
_PERSON: Final = re.compile(
    "(.*_)?(user|member(ship)?|person|people|assignee|assignment|owner|creator|author|reporter|employee|participant"
    "|created_by|assigned_to)(_account|_profile)?"
)
_COUNTED: Final = re.compile("(.*_)?(comment|note|attachment|file|checklist|checklist_item|sub_?task|to_?do|vote)")
_HIDES: Final = re.compile("deleted|removed|archived|draft|closed|hidden|private", re.IGNORECASE)
_HIDDEN_AT: Final = re.compile("(deleted?|removed|archived|closed)_?at", re.IGNORECASE)
_DONE: Final = re.compile("(is_)?(done|completed?|checked|finished)")
_POSITION: Final = ("position", "rank", "pos", "sort", "sort_order", "order", "order_index", "created_at")

_NOT_SHOWN: Final = re.compile(
    r"passw|mail|token|secret|hash|phone|api_?key"  # private
    r"|(first|last|middle|given|family|sur)_?name$",  # half a name
    re.IGNORECASE,
)
_MOMENT: Final = re.compile(r"(created|updated|added|inserted)(_at|_on)?")
_EXTRA_NAME: Final = re.compile("[A-Za-z_][A-Za-z0-9_]{0,62}")
_KEYS: Final = {kind: kind for kind in ("smallint", "integer", "bigint", "uuid", "text")} | {
    "character varying": "text"
}
"""Types that can link the tables of an extra, with the type as which they are compared."""

_TABLE: Final[LiteralString] = """
    select pg_catalog.format('%%I.%%I', n.nspname, c.relname),
           c.relkind = 'r' and not c.relispartition,
           array(select k.attname::text
                 from pg_catalog.pg_index i
                 cross join lateral unnest(i.indkey::smallint[]) with ordinality u (attnum, n)
                 join pg_catalog.pg_attribute k on k.attrelid = i.indrelid and k.attnum = u.attnum
                 where i.indrelid = c.oid and i.indisprimary and u.n <= i.indnkeyatts order by u.n)
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = %s::text::regclass
"""
# For each column: its type, with a nondeterministic collation, if any; whether it is a text that can be shown; and
# the table whose key it references.
_COLUMNS: Final[LiteralString] = """
    select a.attname::text,
           pg_catalog.concat(pg_catalog.format_type(a.atttypid, null),
                             case when not l.collisdeterministic then ' collate ' || l.collname end),
           t.typcategory in ('S', 'E') and a.attgenerated <> 'v',
           (select pg_catalog.format('%%I.%%I', n.nspname, r.relname)
            from pg_catalog.pg_constraint f
            join pg_catalog.pg_class r on r.oid = f.confrelid
            join pg_catalog.pg_namespace n on n.oid = r.relnamespace
            join pg_catalog.pg_index i on i.indrelid = r.oid and i.indisprimary and i.indnkeyatts = 1
            where f.conrelid = a.attrelid and f.contype = 'f' and f.conkey = array[a.attnum]
              and f.confkey = array[i.indkey[0]] and pg_catalog.has_schema_privilege(n.oid, 'usage') limit 1)
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = a.atttypid
    left join pg_catalog.pg_collation l on l.oid = a.attcollation
    where a.attrelid = %s::text::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum
"""
_NEAR: Final[LiteralString] = """
    select distinct pg_catalog.format('%%I.%%I', n.nspname, c.relname)
    from pg_catalog.pg_constraint f
    join pg_catalog.pg_class c on c.oid = f.conrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where f.confrelid = %s::text::regclass and f.contype = 'f' and f.conrelid <> f.confrelid
      and pg_catalog.has_schema_privilege(n.oid, 'usage')
    order by 1
"""


@dataclass(frozen=True)
class Table:
    """A table: its key, the types of its columns, and the tables whose keys columns reference.

    `texts` are the columns with text that can be shown. `ordinary`: neither partitioned nor a partition.
    """

    name: str
    key: Sequence[str]
    types: Mapping[str, str]
    refers: Mapping[str, str] = field(default_factory=dict)
    texts: Collection[str] = ()
    ordinary: bool = True

    @property
    def words(self) -> str:
        """Its name without the schema, as words joined by underscores."""
        return _words(self.name.rpartition(".")[2])

    def first(self, words: Iterable[str], columns: Iterable[str] | None = None) -> str | None:
        """Return the first column whose name matches the earliest possible word."""
        among = list(self.types if columns is None else columns)
        return next((column for word in words for column in among if _is_called(column, word)), None)


def _is_called(column: str, word: str) -> bool:
    return re.fullmatch(rf"(.*_)?{word}(_?id)?", _words(column)) is not None


def _words(name: str) -> str:
    """Write a name as lower-case words joined by underscores."""
    return "_".join(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()))


def suggest(database_url: str, table: str) -> list[str]:
    """Return the commands that would watch a table. Raises InstallError."""
    try:
        with psycopg.connect(database_url) as connection:
            # The name is found by the session's search path; all else by Postgres's own.
            [(oid,)] = connection.execute("select %s::text::regclass::oid", [table]).fetchall()
            connection.execute(PINNED_PATH)
            [(table,)] = connection.execute("select %s::oid::regclass::text", [oid]).fetchall()
            card = _read(connection, table)
            near = [_read(connection, name) for (name,) in connection.execute(_NEAR, [table]).fetchall()]
            names = {name for each in (card, *near) for name in each.refers.values()}
            referred = {name: _read(connection, name) for name in names}
    except psycopg.Error as ex:
        raise InstallError(error_line(ex)) from ex
    return commands(card, referred, near)


def _read(connection: psycopg.Connection, table: str) -> Table:
    [(name, ordinary, key)] = connection.execute(_TABLE, [table]).fetchall()
    rows: list[Any] = connection.execute(_COLUMNS, [table]).fetchall()
    types = {column: its_type for column, its_type, _, _ in rows}
    refers = {column: other for column, _, _, other in rows if other is not None}
    return Table(name, key, types, refers, [column for column, _, is_text, _ in rows if is_text], ordinary)


def commands(card: Table, referred: Mapping[str, Table], near: Iterable[Table]) -> list[str]:
    """Return the commands, given the tables that reference it (`near`), and those that it or they reference. Pure."""
    lane = card.first(_LANE, card.refers)
    lanes = referred[card.refers[lane]] if lane is not None else None
    if lanes is not None and lanes.first(_NAME) is None:
        lane, lanes = None, None
    lane = lane or card.first(_LANE)
    watch = ["relay", "sql", "watch", card.name, *_key(card)]
    found = []
    board = None
    if lanes is not None:
        board = lanes.first(_BOARD)
        found.append(_lanes(lanes, board))
    if board is None:
        watch += _option("--board", card.first(_BOARD))
    watch += _option("--lane", lane)
    watch += ["--lanes", lanes.name] if lanes is not None else []
    watch += _option("--filter", _filter(card)) + _option("--order-by", card.first(_POSITION))
    own = {card.name, lanes.name if lanes is not None else None}
    others = {table.name: table for table in referred.values() if table.ordinary and table.name not in own}
    near = [table for table in near if table.ordinary and table.name not in own]
    return [*found, shlex.join(watch), *_extras(card, near, others)]


def _lanes(lanes: Table, board: str | None) -> str:
    words = ["relay", "sql", "lanes", lanes.name, "--board", board or "", *_option("--name", lanes.first(_NAME))]
    words += _option("--id", lanes.key[0] if lanes.key else None) if lanes.key != ["id"] else []
    return shlex.join(words + _option("--filter", _filter(lanes)) + _option("--order-by", lanes.first(_POSITION)))


def _key(card: Table) -> list[str]:
    if len(card.key) == 1:
        big = ["--as-text"] if card.types[card.key[0]] == "bigint" else []
        return (["--id", card.key[0]] if card.key != ["id"] else []) + big
    return [word for column in card.key for word in ("--key", column)]


def _filter(table: Table) -> str | None:
    """Return a filter for the rows that applications usually show: not deleted, archived or closed, and no drafts."""
    return _all(_shows(column, its_type) for column, its_type in table.types.items())


def _shows(column: str, its_type: str) -> str | None:
    """Return the condition under which a column does not hide a row; None if it never does."""
    if its_type == "boolean" and _HIDES.search(column):
        return f"{_quoted(column)} is not true"
    if _HIDDEN_AT.fullmatch(column):
        return f"{_quoted(column)} = 0" if its_type in {"integer", "bigint"} else f"{_quoted(column)} is null"
    return None


def _all(conditions: Iterable[str | None]) -> str | None:
    return " and ".join(filter(None, conditions)) or None


def _quoted(column: str) -> str:
    return column if re.fullmatch("[a-z_][a-z0-9_]*", column) else '"' + column.replace('"', '""') + '"'


def _option(name: str, value: str | None) -> list[str]:
    return [] if value is None else [name, value]


_Guess = tuple[Sequence[str], Sequence[str]]
"""An extra: possible names, the best first, and options."""


def _extras(card: Table, near: Iterable[Table], far: Mapping[str, Table]) -> Iterator[str]:
    """Return the commands for extras, under names that are free."""
    taken = {_bare(name) for name in (*card.types, "id", "board_id", "lane")}
    of_card = [table for table in near if _is_of(table, card)]
    guesses = chain.from_iterable(_counts(table) or _link(table, card, far) for table in of_card)
    for names, options in (*guesses, *_people(card, far)):
        for name in names:
            if _EXTRA_NAME.fullmatch(name) and _bare(name) not in taken:
                taken.add(_bare(name))
                yield shlex.join(["relay", "sql", "extra", card.name, name, *options])
                break


def _is_of(table: Table, card: Table) -> bool:
    """Return whether each row belongs to one task."""
    columns = [column for column, other in table.refers.items() if other == card.name]
    return len(columns) == 1 and _finds(table, columns[0], card)


def _finds(table: Table, column: str, other: Table) -> bool:
    """Return whether the values of a column can be compared with another table's key."""
    return _KEYS.get(table.types[column]) == _KEYS.get(other.types[other.key[0]], "")


def _counts(table: Table) -> list[_Guess]:
    """Say how many rows there are, and how many of them are done."""
    words = _singular(table.words)
    if (found := _COUNTED.fullmatch(words)) is None:
        return []
    options = ["--of", table.name]
    guesses: list[_Guess] = [
        ([_camel(f"{name}_count") for name in (found[2], words)], [*options, *_option("--filter", _filter(table))])
    ]
    if done := next(
        (column for column in table.types if table.types[column] == "boolean" and _is_done(column)), None
    ):
        names = [_camel(f"{name}s_done") for name in (found[2], words)]
        guesses.append((names, [*options, "--filter", _all((_filter(table), _quoted(done))) or ""]))
    return guesses


def _is_done(column: str) -> bool:
    return _DONE.fullmatch(_words(column)) is not None


def _link(link: Table, card: Table, far: Mapping[str, Table]) -> list[_Guess]:
    """Return the table that a table links tasks to: the one in its name, or the only other one that it references."""
    of_card = set(map(_singular, card.words.split("_")))
    words = "_".join(word for word in link.words.split("_") if _singular(word) not in of_card)
    linked = {
        column: table
        for column, other in link.refers.items()
        if (table := far.get(other)) is not None and table.name != link.name and not _is_called(column, "by")
        if _finds(link, column, table) and _name(table) is not None
    }
    names = {column: name for column, table in linked.items() if (name := _called(words, table)) is not None}
    if not names and all(
        _MOMENT.fullmatch(_words(each)) or _shows(each, link.types[each])
        for each in {*link.types} - {*link.refers, *link.key}
    ):
        names = {column: _last(table.words) for column, table in linked.items() if not _is_person(table.words)}
    if len(names) != 1:
        return []
    [(column, name)] = names.items()
    table = linked[column]
    by_default = next(each for each, other in link.refers.items() if other == table.name)
    options = ["--of", table.name, "--through", link.name]
    options += _option("--link-column", column if column != by_default else None)
    options += _option("--show", _name(table)) + _option("--show", table.first(_COLOR, _shown(table)))
    # No filter on people: a task keeps its assignee after that person has left.
    options += _option("--filter", None if _is_person(table.words) else _filter(table))
    return [([_camel(name), _camel(words)], [*options, *_option("--link-filter", _filter(link))])]


def _called(words: str, table: Table) -> str | None:
    """Return the name of linked rows, in the plural if either is; None if the link means another table."""
    link, own = _last(words), _last(table.words)
    if _singular(link) == _singular(own):
        return max(link, own, key=len)
    return link if _is_person(link) and _is_person(table.words) else None


def _people(card: Table, far: Mapping[str, Table]) -> Iterator[_Guess]:
    for column, other in card.refers.items():
        person, words = far.get(other), re.sub("_?id$", "", _words(column))
        if person is None or not words or not _finds(card, column, person) or (name := _name(person)) is None:
            continue
        if _is_person(words) or (_is_person(person.words) and not _is_called(column, "by")):
            options = ["--of", person.name, "--task-column", column, "--show", name]
            yield [_camel(words), _camel(f"{words}_name")], options


def _is_person(words: str) -> bool:
    return _PERSON.fullmatch(_singular(words)) is not None


def _name(table: Table) -> str | None:
    return table.first(_PERSON_NAME if _is_person(table.words) else _NAME, _shown(table))


def _shown(table: Table) -> list[str]:
    return [column for column in table.texts if not _NOT_SHOWN.search(column)]


def _singular(words: str) -> str:
    return re.sub("(?<!s)s$", "", re.sub("ies$", "y", words))


def _last(words: str) -> str:
    return words.rpartition("_")[2]


def _camel(words: str) -> str:
    first, *others = words.split("_")
    return first + "".join(map(str.capitalize, others))


def _bare(name: str) -> str:
    """Return a name in the form in which relay.extra compares names."""
    return name.replace("_", "").lower()
