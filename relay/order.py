"""The order of tasks in a lane, as stated by `board.sync`. Pure; used by the relay and the Python client.

Tasks are compared by one key after the other, and finally by id. Booleans come before numbers, and numbers before
strings. Integers are compared exactly, other numbers in double precision, and strings by code points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class OrderKey(NamedTuple):
    """A key by which tasks are compared. `values` lists the values of an enum in their order."""

    key: str
    descending: bool
    nulls_first: bool
    values: tuple[str, ...] | None = None


def arranged(tasks: Sequence[T], order: Sequence[OrderKey], value_of: Callable[[T, str], Any]) -> list[T]:
    """Return the tasks in order; `value_of` returns a task's value of a key, None if it has none."""
    found = sorted(tasks, key=lambda task: _comparable(value_of(task, "id")))
    for by in reversed(order):
        _arrange(found, by, value_of)
    return found


def _arrange(tasks: list[T], by: OrderKey, value_of: Callable[[T, str], Any]) -> None:
    places = None if by.values is None else {value: n for n, value in enumerate(by.values)}

    def value(task: T) -> tuple[int, Any]:
        found = value_of(task, by.key)
        if places is not None and isinstance(found, str):
            return _comparable(places.get(found, len(places)))
        return _comparable(found)

    tasks.sort(key=value, reverse=by.descending)
    tasks.sort(key=lambda task: (value_of(task, by.key) is None) != by.nulls_first)


def _comparable(value: object) -> tuple[int, Any]:
    match value:
        case bool():
            return 0, value
        case int() | float() | Decimal():
            return 1, value
        case str():
            return 2, value
        case _:
            return 3, 0
