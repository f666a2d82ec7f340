"""The contract for machines: a JSON Schema and an AsyncAPI document of all messages. Pure.

Both are made from the models of messages.py, with examples, and the descriptions of codes.py.

Rules:
- The schemas use only what both JSON Schema 2020-12 and AsyncAPI's own schemas (draft 7) support.
- Messages from the relay may have unknown keys: a newer relay may send more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from relay.model.codes import CLOSE_CODES, ERRORS, REASONS
from relay.model.messages import (
    LANES,
    Authenticate,
    Authenticated,
    Batch,
    BoardSync,
    Error,
    Included,
    Includes,
    Ping,
    Pong,
    ResumableBoardSync,
    Subscribe,
    TaskCreated,
    TaskDeleted,
    TaskMoved,
    TaskUpdated,
    Unsubscribe,
)

VERSION: Final = "1.0.0"
"""Version of the contract, not of the relay. A new message raises the second number."""

Format = Literal["json-schema", "asyncapi"]

_SENT: Final[Mapping[type[BaseModel], Sequence[Mapping[str, Any]]]] = {
    Subscribe: [
        {"type": "subscribe", "boardId": "default"},
        {"type": "subscribe", "boardId": "default", "cursor": None},
    ],
    Unsubscribe: [{"type": "unsubscribe", "boardId": "default"}],
    Includes: [{"type": "includes", "boardId": "default", "xid": "735"}],
    Ping: [{"type": "ping"}],
    Authenticate: [{"type": "authenticate", "token": "your-fresh-token"}],
}
"""Messages that clients send, with examples."""

_TASK: Final = {
    "id": "task-2",
    "boardId": "default",
    "title": "New Task",
    "lane": "backlog",
    "priority": "medium",
    "estimatedHours": 4,
}
_EMPTY: Final[Mapping[str, Any]] = {lane: [] for lane in LANES}
_LANES: Final = {**_EMPTY, "backlog": [_TASK]}
_NAMED: Final = {"boardId": "default", "cursor": "5e0c…"}
_DELETED: Final = {"type": "task.deleted", "data": {"id": "task-2"}}

_RECEIVED: Final[Mapping[type[BaseModel], Sequence[Mapping[str, Any]]]] = {
    BoardSync: [{"type": "board.sync", "data": {"lanes": _LANES}}],
    ResumableBoardSync: [
        {"type": "board.sync", **_NAMED, "data": {"lanes": _LANES}},
        {"type": "board.sync", **_NAMED, "reason": "truncate", "data": {"lanes": _EMPTY}},
    ],
    TaskCreated: [{"type": "task.created", "data": _TASK}],
    TaskUpdated: [
        {"type": "task.updated", "data": {"id": "task-2", "changes": {"lane": "in_progress", "status": "working"}}}
    ],
    TaskMoved: [{"type": "task.moved", "data": {"id": "task-2", "fromLane": "backlog", "toLane": "in_progress"}}],
    TaskDeleted: [_DELETED],
    Batch: [
        {"type": "batch", "boardId": "default", "data": [{"type": "task.created", "data": _TASK}]},
        {"type": "batch", **_NAMED, "data": [_DELETED]},
    ],
    Included: [{"type": "included", "data": {"boardId": "default", "xid": "735"}}],
    Pong: [{"type": "pong"}],
    Authenticated: [{"type": "authenticated"}],
    Error: [
        {
            "type": "error",
            "data": {
                "code": "unknown_type",
                "message": "type 'foo' is unknown: expected subscribe, unsubscribe, includes, ping or authenticate",
            },
        },
        {
            "type": "error",
            "data": {"code": "not_allowed", "message": "this board may not be followed", "boardId": "secret"},
        },
    ],
}
"""Messages that clients receive, with examples."""

_REPLIES: Final[Mapping[type[BaseModel], Sequence[type[BaseModel]]]] = {
    Subscribe: [BoardSync, ResumableBoardSync, Batch, Error],
    Unsubscribe: [],
    Includes: [Included, Error],
    Ping: [Pong],
    Authenticate: [Authenticated, Error],
}
"""The answers to each message that clients send."""

_ABOUT: Final = (
    "Every committed change of a Postgres table, pushed to the subscribers of its board. Every message is a JSON "
    "object with a `type`, in a text frame. Ignore keys that you do not know: a newer relay may send more."
)

_SECURITY: Final[Mapping[str, Mapping[str, str]]] = {
    "header": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer your-token`"},
    "subprotocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "`relay, bearer.your-token`, for browsers: the relay selects `relay`",
    },
    "query": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": "`?token=your-token`. URLs end up in logs and histories: prefer the other ways",
    },
}
"""Ways to present a token, if the relay requires one."""


def text(its_format: Format) -> str:
    """Return the document as printed and checked in: JSON and a line break."""
    document = json_schema() if its_format == "json-schema" else asyncapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of any message; `$defs` has `ClientMessage` and `ServerMessage`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of pg-change-relay",
        "description": _ABOUT,
        "x-version": VERSION,
        "x-close-codes": _close_codes(),
        "oneOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {
            "ClientMessage": {"description": "What clients send.", "oneOf": _references(_SENT)},
            # A resumable board.sync also fits the schema of a plain one, so this cannot be oneOf.
            "ServerMessage": {"description": "What clients receive.", "anyOf": _references(_RECEIVED)},
            **_schemas("#/$defs/{model}"),
        },
    }


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document, from the relay's side: it receives what clients send."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "pg-change-relay", "version": VERSION, "description": _ABOUT},
        "defaultContentType": "application/json",
        "servers": {
            "local": _server("localhost:4002", "ws", "A relay on this machine with its defaults."),
            "public": _server("relay.example.com", "wss", "A relay behind TLS; replace the name."),
        },
        "channels": {"relay": _channel()},
        "operations": _operations(),
        "components": {
            "messages": {model.__name__: _message(model, examples) for model, examples in _all_messages().items()},
            "schemas": _schemas("#/components/schemas/{model}"),
            "securitySchemes": _SECURITY,
        },
    }


class _Generator(GenerateJsonSchema):
    """Leaves out titles, which would repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # pydantic's signature
        return False


def _all_messages() -> Mapping[type[BaseModel], Sequence[Mapping[str, Any]]]:
    return {**_SENT, **_RECEIVED}


def _references(models: Mapping[type[BaseModel], object]) -> list[dict[str, str]]:
    return [{"$ref": f"#/$defs/{model.__name__}"} for model in models]


def _schemas(ref_template: str) -> dict[str, Any]:
    """Return the schemas of all models, by name, with examples, and a description of each code and reason."""
    messages = _all_messages()
    _, made = models_json_schema(
        [(model, "validation") for model in messages], ref_template=ref_template, schema_generator=_Generator
    )
    made["$defs"]["JsonValue"] = {"description": "Any JSON."}
    schemas: dict[str, Any] = {name: _one_line(schema) for name, schema in made["$defs"].items()}
    for model, examples in messages.items():
        schemas[model.__name__]["examples"] = examples
    schemas["Mistake"]["properties"]["code"]["x-enum-descriptions"] = ERRORS
    schemas["ResumableBoardSync"]["properties"]["reason"]["x-enum-descriptions"] = REASONS
    return schemas


def _one_line(schema: dict[str, Any]) -> dict[str, Any]:
    """Undo the line breaks of a docstring."""
    return schema | {"description": " ".join(schema["description"].split())}


def _close_codes() -> list[dict[str, Any]]:
    return [
        {"code": int(code), "meaning": close.meaning, "reconnect": close.reconnect}
        for code, close in CLOSE_CODES.items()
    ]


def _server(host: str, its_protocol: str, description: str) -> dict[str, Any]:
    return {
        "host": host,
        "protocol": its_protocol,
        "description": f"{description} If the operator requires a token, present it in any of the three ways.",
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY],
    }


def _channel() -> dict[str, Any]:
    return {
        "address": "/",
        "description": (
            "The connection over which a client follows boards. A handshake is answered with HTTP 401 if the token "
            "is not valid or the page's origin is not allowed, with 503 at the limit of connections, and with 429 at "
            "the limit per minute: try again after `Retry-After`."
        ),
        "messages": {
            model.__name__: {"$ref": f"#/components/messages/{model.__name__}"} for model in _all_messages()
        },
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "properties": {"token": {"type": "string", "description": _SECURITY["query"]["description"]}},
                },
                "bindingVersion": "0.1.0",
            }
        },
        "x-close-codes": _close_codes(),
    }


def _message(model: type[BaseModel], examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kind = examples[0]["type"]
    return {
        "name": kind,
        "title": kind,
        "summary": " ".join((model.__doc__ or "").split()),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": [{"payload": example} for example in examples],
    }


def _operations() -> dict[str, Any]:
    channel = {"$ref": "#/channels/relay"}
    operations: dict[str, Any] = {}
    for model, replies in _REPLIES.items():
        operations[_SENT[model][0]["type"]] = {
            "action": "receive",
            "channel": channel,
            "messages": [_in_channel(model)],
            **(
                {"reply": {"channel": channel, "messages": [_in_channel(reply) for reply in replies]}}
                if replies
                else {}
            ),
        }
    return operations | {
        "push": {
            "action": "send",
            "channel": channel,
            "summary": "Messages that the relay sends on its own.",
            "messages": [_in_channel(model) for model in _RECEIVED if model not in {Included, Pong, Authenticated}],
        }
    }


def _in_channel(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/channels/relay/messages/{model.__name__}"}
