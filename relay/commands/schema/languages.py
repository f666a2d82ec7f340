"""The type of a table's tasks, printed as JSON Schema, TypeScript and Python. Pure.

Rules:
- The type is valid for every task that a client can get; it may be wider than what the table happens to contain.
- JSON has no NaN or infinity, so Postgres writes them as strings.
- Objects are open, because a migration may add a column while a program runs.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from relay.text import harmless

Kind = Literal["boolean", "integer", "bigint", "whole", "decimal", "numeric", "float", "string", "any"]
"""The kind of a scalar: `bigint` and `whole` are integers that may exceed a double, `decimal` has a fraction, and
`numeric` may be either."""

WORDS: Final[Mapping[str, Sequence[str]]] = {
    "whole": ["NaN"],
    "decimal": ["NaN"],
    "numeric": ["NaN", "Infinity", "-Infinity"],
    "float": ["NaN", "Infinity", "-Infinity"],
}
"""The strings that may replace a number. A numeric with a precision cannot be infinite."""


@dataclass(frozen=True, slots=True)
class JsonType:
    """The JSON type of a value: an array has `item`, an object `name` and `keys`, an enum `labels`."""

    kind: Kind | Literal["array", "object", "enum"]
    item: JsonType | None = None
    name: str = ""
    keys: Sequence[Key] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A key that every object has; its value may be null if `nullable`."""

    name: str
    type: JsonType
    nullable: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """The type of a table's tasks."""

    table: str
    keys: Sequence[Key]

    @property
    def about(self) -> str:
        return harmless(f"A task of {self.table}, as the relay shows it")


# JSON Schema -----------------------------------------------------------------------------------------------


def json_schema(task: Shape) -> str:
    """Print a JSON Schema (2020-12)."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Task",
        "description": f"{task.about}.",
        **_object(task.keys),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _object(keys: Sequence[Key]) -> dict[str, Any]:
    properties = {key.name: _or_null(_schema(key.type)) if key.nullable else _schema(key.type) for key in keys}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _schema(its: JsonType) -> dict[str, Any]:
    match its.kind:
        case "any":
            return {}
        case "enum":
            return {"enum": list(its.labels)}
        case "array":
            assert its.item, "an array has items"
            return {
                "type": "array",
                "items": _or_null(_schema(its.item)) if _holds_null(its.item) else _schema(its.item),
            }
        case "object":
            return _object(its.keys)
        case "boolean" | "string":
            return {"type": its.kind}
    number = {"type": "number" if its.kind in {"decimal", "numeric", "float"} else "integer"}
    words = WORDS.get(its.kind)
    return {"anyOf": [number, {"enum": list(words)}]} if words else number


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if not schema:
        return schema
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def _holds_null(item: JsonType) -> bool:
    """Return whether an array may contain nulls: any may, except arrays of arrays."""
    return item.kind != "array"


# TypeScript ------------------------------------------------------------------------------------------------

_NAME: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*", re.ASCII)
_TYPESCRIPT: Final[Mapping[str, Sequence[str]]] = {
    "boolean": ["boolean"],
    "integer": ["number"],
    "bigint": ["number", "bigint"],
    "whole": ["number", "bigint"],
    "numeric": ["number", "bigint"],
    "decimal": ["number"],
    "float": ["number"],
    "string": ["string"],
    "any": ["unknown"],
}
"""The types that the JavaScript client produces; an integer beyond 2^53 is a bigint."""


def typescript(task: Shape) -> str:
    """Print an interface."""
    keys = "".join(f"  {line}\n" for line in _members(task.keys, "  "))
    return f"/** {task.about.replace('*/', '* /')}. */\nexport interface Task {{\n{keys}}}\n"


def _members(keys: Sequence[Key], indent: str) -> Iterator[str]:
    for key in keys:
        name = key.name if _NAME.fullmatch(key.name) else json.dumps(key.name)
        yield f"readonly {name}: {' | '.join(_union(key.type, key.nullable, indent))};"


def _union(its: JsonType, nullable: bool, indent: str) -> list[str]:
    """Return the members of a union."""
    match its.kind:
        case "enum":
            found = [json.dumps(label) for label in its.labels] or ["never"]
        case "array":
            assert its.item, "an array has items"
            found = [f"readonly ({' | '.join(_union(its.item, _holds_null(its.item), indent))})[]"]
        case "object":
            members = "".join(f"\n{indent}  {line}" for line in _members(its.keys, indent + "  "))
            found = [f"{{{members}\n{indent}}}"]
        case _:
            found = [*_TYPESCRIPT[its.kind], *(json.dumps(word) for word in WORDS.get(its.kind, ()))]
    return [*found, "null"] if nullable and found != ["unknown"] else found


# Python ----------------------------------------------------------------------------------------------------

_PYTHON: Final[Mapping[str, str]] = {
    "boolean": "bool",
    "integer": "int",
    "bigint": "int",
    "whole": "int",
    "decimal": "float",
    "numeric": "float",
    "float": "float",
    "string": "str",
    "any": "Any",
}


def python(task: Shape) -> str:
    """Print a TypedDict, and one for each composite type."""
    classes: dict[str, str] = {}
    _class("Task", task.keys, classes)
    body = "\n\n".join(classes.values())
    used = [name for name in ("Any", "Literal", "TypedDict") if re.search(rf"\b{name}\b", body)]
    return f"# {task.about}.\nfrom typing import {', '.join(used)}\n\n\n{body}"


def _class(name: str, keys: Sequence[Key], classes: dict[str, str]) -> str:
    """Add a class after those that it uses; return its name."""
    members = {key.name: " | ".join(_hints(key.type, key.nullable, classes)) for key in keys}
    while name in classes:
        name += "_"
    if all(each.isidentifier() and not keyword.iskeyword(each) for each in members):
        lines = [f"    {each}: {hint}\n" for each, hint in members.items()] or ["    pass\n"]
        classes[name] = f"class {name}(TypedDict):\n{''.join(lines)}"
    else:
        lines = [f"        {each!r}: {hint},\n" for each, hint in members.items()]
        classes[name] = f"{name} = TypedDict(\n    {name!r},\n    {{\n{''.join(lines)}    }},\n)\n"
    return name


def _hints(its: JsonType, nullable: bool, classes: dict[str, str]) -> list[str]:
    """Return the members of a union."""
    match its.kind:
        case "enum":
            found = [f"Literal[{', '.join(map(repr, its.labels))}]"] if its.labels else ["None"]
        case "array":
            assert its.item, "an array has items"
            found = [f"list[{' | '.join(_hints(its.item, _holds_null(its.item), classes))}]"]
        case "object":
            name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", its.name))
            found = [_class(name if name.isidentifier() else f"Type{name}", its.keys, classes)]
        case _:
            words = WORDS.get(its.kind, ())
            found = [_PYTHON[its.kind], *([f"Literal[{', '.join(map(repr, words))}]"] if words else [])]
    return [*found, "None"] if nullable and found[0] not in {"Any", "None"} else found


PRINTED: Final[Mapping[str, Callable[[Shape], str]]] = {
    "json-schema": json_schema,
    "typescript": typescript,
    "python": python,
}
"""The function that prints each format."""
