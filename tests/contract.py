"""The contract for machines, held to what relays send: every message that a test receives goes through here."""

from __future__ import annotations

import json
from typing import Any, Final

from jsonschema_rs import Draft202012Validator

from relay.model.schema import json_schema


def checked(message: str | bytes) -> Any:
    """Read what a relay sent; fail if the JSON Schema does not know it, or some key of it."""
    value = json.loads(message)
    _RECEIVED.validate(value)
    return value


def _closed(schema: Any) -> Any:
    """Forbid keys that a schema does not name, where it does not say that there may be any."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if schema.get("type") == "object" else closed


def _validator(of: str) -> Draft202012Validator:
    schema = json_schema()
    definitions = {name: _closed(schema["$defs"][name] | {"examples": []}) for name in schema["$defs"]}
    return Draft202012Validator({"$schema": schema["$schema"], "$ref": f"#/$defs/{of}", "$defs": definitions})


KINDS: Final = {
    (name := each["$ref"].rpartition("/")[2]): _validator(name)
    for each in json_schema()["$defs"]["ServerMessage"]["anyOf"]
}
"""A validator of each kind of message that is received."""

_RECEIVED: Final = _validator("ServerMessage")
