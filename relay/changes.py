"""What Postgres says: the journal's entries, and how they become messages. Pure.

A *change* is one entry of the journal: a row went from one version to another. A *transaction* is all the changes
that became visible together. Its `messages` are those of each board it touches.

Rules:
- Row images stay as Postgres wrote them. Columns are compared by their JSON text: both images of a change were
  written under the same settings, so equal text is equal value.
- The messages of one task come in the order of its row's versions. The journal's order is that order, except
  where a user's own triggers write the table again: an AFTER trigger that fires before ours and updates the row
  once more has its change journalled first. So each change carries the place (`Version`) of the row versions
  that it went between, and `_history` follows them like a chain. Where they do not tell, the board is to be read
  again: never is a guess sent.
- The id, the board and the lane appear under the guide's names whatever their columns are called.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import Final, NamedTuple

import msgspec

from relay import protocol
from relay.cursor import Reason
from relay.protocol import Message, Row

_decode_row: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Version(NamedTuple):
    """Where a version of a row stands: its table or partition, and its place there."""

    part: int
    tid: str


class UnreadableRow(Exception):
    """A row that cannot be shown, because a column of it holds what is no Unicode text."""


class WatchOutdated(Exception):
    """A watch whose columns are no longer there."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A watched table, as far as its changes are concerned."""

    id: int
    table: str
    id_column: str
    board_column: str
    lane_column: str
    hidden: frozenset[str]

    def columns(self, image: str) -> dict[str, msgspec.Raw]:
        """Take a row's JSON apart, under the columns' own names. Raises UnreadableRow."""
        try:
            return _decode_row(image)
        except (msgspec.MsgspecError, UnicodeEncodeError) as ex:
            raise UnreadableRow(f"a row of {self.table} cannot be shown: {ex}: {image!a:.200}") from None

    def task(self, columns: Row) -> Row:
        """Turn a row into a task as clients see it. Raises WatchOutdated if it lacks the columns that make it one."""
        keys = _keys(self, tuple(columns))
        task = {keys[column]: value for column, value in columns.items() if column in keys}
        if missing := {"id", "boardId", "lane"} - task.keys():
            raise WatchOutdated(
                f"rows of {self.table} have no {', '.join(sorted(missing))} any more: run relay sql watch again and "
                f"name the columns as they are now"
            )
        return task


@lru_cache(maxsize=1024)
def _keys(watch: Watch, columns: tuple[str, ...]) -> Mapping[str, str]:
    """Name the columns for clients: camelCase, but two that would share a name both keep their own."""
    roles = {watch.id_column: "id", watch.board_column: "boardId", watch.lane_column: "lane"}
    visible = [column for column in columns if column not in watch.hidden]
    wanted = {column: roles.get(column) or _camel_case(column) for column in visible}
    names = list(wanted.values())
    keys = {column: name if column in roles or names.count(name) == 1 else column for column, name in wanted.items()}
    for column in visible:
        # A column called "id" beside another that is the task's id.
        while column not in roles and list(keys.values()).count(keys[column]) > 1:
            keys[column] += "_"
    return keys


def _camel_case(column: str) -> str:
    return re.sub(r"(?<=[^_])_+([a-z0-9])", lambda match: match[1].upper(), column)


@dataclass(frozen=True, slots=True)
class Side:
    """A row before or after a change: the task, the board it is on (none if null), and the row version."""

    task: Row
    board: str | None
    version: Version

    @property
    def key(self) -> bytes:
        return bytes(self.task["id"])


@dataclass(frozen=True, slots=True)
class Change:
    """One row went from `old` to `new`; without `old` it appeared, without `new` it left.

    `old_here`: the same transaction made the old version too. `depth`: how deep in triggers the statement was.
    """

    watch: int
    old: Side | None
    new: Side | None
    old_here: bool = False
    depth: int = 1

    @property
    def key(self) -> tuple[int, bytes]:
        """Which task it is about; of a change of id, the old one."""
        side = self.old or self.new
        assert side is not None, "a change has at least one side"
        return self.watch, side.key


@dataclass(slots=True)
class Transaction:
    """The changes that one transaction made, in the journal's order.

    With `sync`, the transaction did what only reading the boards again can show, such as TRUNCATE: the reason.
    """

    xid: int
    changes: list[Change] = field(default_factory=list)
    sync: Reason | None = None

    def messages(self, boards: Container[str | None]) -> dict[str, list[Message] | None]:
        """Give each of `boards` that it touches the messages for its subscribers, in order.

        None instead of messages: the board must be read again. Those of other boards are not even encoded.
        """
        ordered, untold = _in_version_order(_one_key_each(self.changes))
        found: dict[str, list[Message]] = defaultdict(list)
        for change in ordered:
            for board, message in _change_messages(change, boards):
                found[board].append(message)
        return {**found, **{board: None for board in untold if board is not None and board in boards}}


def _change_messages(change: Change, boards: Container[str | None]) -> Iterator[tuple[str, Message]]:
    old, new = change.old, change.new
    if old and new and old.board == new.board:
        if new.board is not None and new.board in boards:
            for message in _update_messages(old.task, new.task):
                yield new.board, message
        return
    if old and old.board is not None and old.board in boards:
        yield old.board, protocol.task_deleted(old.task["id"])
    if new and new.board is not None and new.board in boards:
        yield new.board, protocol.task_created(new.task)


def _update_messages(old: Row, new: Row) -> Iterator[Message]:
    changes = {key: value for key, value in new.items() if value != old.get(key)}
    moved = "lane" in changes
    if moved:
        yield protocol.task_moved(new["id"], old["lane"], new["lane"])
    if len(changes) > moved:
        yield protocol.task_updated(new["id"], changes)


def _one_key_each(changes: Iterable[Change]) -> Iterator[Change]:
    """Take a change of key for what it is to clients: one task leaves, another appears."""
    for change in changes:
        if change.old and change.new and change.old.key != change.new.key:
            yield replace(change, new=None)
            yield replace(change, old=None, old_here=False)
        else:
            yield change


def _in_version_order(changes: Iterable[Change]) -> tuple[list[Change], set[str | None]]:
    """Put the changes of each task in the order of its row's versions; those of different tasks stay in place.

    Returns also the boards of tasks whose order cannot be told; their changes are left out.
    """
    ordered: list[Change | None] = []
    places: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, change in enumerate(changes):
        ordered.append(change)
        places[change.key].append(place)
    untold: set[str | None] = set()
    for its_places in places.values():
        if len(its_places) > 1:
            its_changes = [its_change for place in its_places if (its_change := ordered[place])]
            history = _history(its_changes)
            if history is None:
                untold |= {side.board for change in its_changes for side in (change.old, change.new) if side}
            for place, next_change in zip_longest(its_places, history or ()):
                ordered[place] = next_change
    return [its_change for its_change in ordered if its_change is not None], untold


Chain = list[Change]
"""Changes of one row, each beginning with the version that the one before it ended with."""


def _history(changes: Chain) -> Chain | None:
    """Order the changes of one task within one transaction; None if their order cannot be told.

    They form chains: an appearance, or a version from before the transaction; updates; perhaps a departure. The
    chain that was there before comes first, then the one that is there after. A row that came and went between
    was never to be seen.
    """
    chains = _gaps_closed(_chains(changes), changes)
    if sum(map(len, chains)) != len(changes):
        return None
    before = [chain for chain in chains if chain[0].old]
    after = [chain for chain in chains if chain[-1].new and chain not in before]
    if len(before) > 1 or len(after) + sum(chain[-1].new is not None for chain in before) > 1:
        return None
    return [change for chain in (*before, *after) for change in chain]


def _continues(second: Change, first: Change) -> bool:
    return first.new is not None and second.old is not None and first.new.version == second.old.version


def _chains(changes: Chain) -> list[Chain]:
    if all(_continues(second, first) for first, second in pairwise(changes)):
        return [changes]
    made = {change.new.version for change in changes if change.new}
    after = {change.old.version: change for change in changes if change.old}
    chains = []
    for change in changes:
        if change.old is not None and change.old.version in made:
            continue
        chain = [change]
        while (last := chain[-1].new) is not None and (link := after.get(last.version)) is not None:
            chain.append(link)
        chains.append(chain)
    return chains


def _gaps_closed(chains: list[Chain], changes: Chain) -> list[Chain]:
    """Join chains that are one, but for versions without an entry; no chain at all if it cannot be told which.

    A chain that begins with a version made here, but by no entry, goes on from one that ends with a version; or else
    its row was there before, and was first touched without an entry. While no statement was nested in another, the
    chain that it goes on from stands before it in the journal.
    """
    nested = any(second.depth < first.depth for first, second in pairwise(changes))
    place = {id(change): number for number, change in enumerate(changes)}
    before_known = any(chain[0].old and not chain[0].old_here for chain in chains)
    touched: Change | None = None
    while later := next((chain for chain in chains if chain[0].old_here and chain[0] is not touched), None):
        candidates = [
            chain
            for chain in chains
            if chain is not later
            and chain[-1].new is not None
            and (nested or place[id(chain[-1])] < place[id(later[0])])
        ]
        if not candidates and not before_known:
            before_known, touched = True, later[0]
        elif len(candidates) == 1 and (before_known or not nested):
            chains = [chain for chain in chains if chain is not later and chain is not candidates[0]]
            chains.append(candidates[0] + later)
        else:
            return []
    return chains
