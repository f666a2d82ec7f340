"""The demo's writer for people: creates, changes and deletes tasks for the board page, by plain SQL.

It is one more application that writes to the table. It knows nothing of the relay, and its changes come back as
messages.

Rules:
- Only the demo has it: the daemon writes nothing for clients.
- Only the board page may use it. The demo listens on this machine only, but any page open in a browser can send
  requests there. So the host must be this machine (other names could be pointed at it), the origin must be the page's
  own, and the body must be JSON, which no form can send.
"""

from __future__ import annotations

import asyncio
import http
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Final, Self

import psycopg
from aiohttp import web
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from relay.text import error_line

PATH: Final = "/demo/tasks"

LARGEST_BODY_BYTES: Final = 64 * 1024

_OWN_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.ASCII)

_Text = Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")]
_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class Fields(BaseModel):
    """The columns of a task to write, under the names that messages use."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    board_id: _Name = "default"
    title: _Name = ""
    description: _Text | None = None
    lane: _Name = "backlog"
    status: _Name | None = None
    priority: _Name = "medium"
    estimated_hours: Annotated[Decimal, Field(ge=0, max_digits=9)] | None = None

    @model_validator(mode="after")
    def _has_any(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing to write")
        return self

    def given(self) -> dict[str, object]:
        """Return the values to write, by column."""
        return self.model_dump(exclude_unset=True)


class Writer:
    """Answers POST /demo/tasks, and PATCH and DELETE /demo/tasks/{id}."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._one_at_a_time = asyncio.Lock()
        self._connection: AsyncConnection[TupleRow] | None = None

    def routes(self) -> list[web.RouteDef]:
        """Return its routes."""
        return [
            web.post(PATH, self._create),
            web.patch(PATH + "/{id}", self._change),
            web.delete(PATH + "/{id}", self._delete),
        ]

    async def aclose(self) -> None:
        """Close the connection to the database."""
        if self._connection:
            await self._connection.close()

    async def _create(self, request: web.Request) -> web.Response:
        values = (await _fields(request)).given()
        insert = sql.SQL("insert into public.tasks ({}) values ({}) returning id").format(
            sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(sql.Placeholder() * len(values))
        )
        [(number,)] = await self._written(insert, *values.values())
        return web.json_response({"id": number}, status=http.HTTPStatus.CREATED)

    async def _change(self, request: web.Request) -> web.Response:
        values = (await _fields(request)).given()
        assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in values)
        update = sql.SQL("update public.tasks set {} where id = %s returning id").format(assignments)
        return _found(await self._written(update, *values.values(), request.match_info["id"]))

    async def _delete(self, request: web.Request) -> web.Response:
        _require_own_page(request)
        delete = sql.SQL("delete from public.tasks where id = %s returning id")
        return _found(await self._written(delete, request.match_info["id"]))

    async def _written(self, statement: sql.SQL | sql.Composed, *values: object) -> list[TupleRow]:
        async with self._one_at_a_time:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = await AsyncConnection.connect(self._dsn, autocommit=True)
                    # Fail soon if somebody holds the row in psql.
                    await self._connection.execute("set lock_timeout = '2s'")
                return await (await self._connection.execute(statement, values)).fetchall()
            except (psycopg.Error, UnicodeError) as ex:
                raise _mistake(web.HTTPConflict, f"not written: {error_line(ex)}") from ex


async def _fields(request: web.Request) -> Fields:
    _require_own_page(request)
    try:
        await request.content.readexactly(LARGEST_BODY_BYTES + 1)
    except asyncio.IncompleteReadError as ex:
        body = ex.partial
    else:
        raise _mistake(web.HTTPBadRequest, f"the body is too long: expected {LARGEST_BODY_BYTES} bytes at most")
    try:
        return Fields.model_validate_json(body)
    except ValidationError as ex:
        [first, *_] = ex.errors()
        where = ".".join(map(str, first["loc"])) or "the body"
        raise _mistake(web.HTTPBadRequest, f"{where}: {first['msg']}") from None


def _require_own_page(request: web.Request) -> None:
    """Admit only the page that this port serves. Raises HTTPForbidden or HTTPUnsupportedMediaType."""
    headers: Mapping[str, str] = request.headers
    if not _OWN_HOST.fullmatch(request.host):
        raise _mistake(web.HTTPForbidden, f"the host is {request.host!r}: expected localhost")
    if headers.get("Origin") != f"http://{request.host}":
        raise _mistake(web.HTTPForbidden, "the origin is another: expected the board page of this port")
    if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise _mistake(web.HTTPForbidden, "the request comes from another site: expected the board page of this port")
    if request.content_type != "application/json":
        raise _mistake(web.HTTPUnsupportedMediaType, f"the type is {request.content_type}: expected application/json")


def _found(rows: list[TupleRow]) -> web.Response:
    if not rows:
        raise _mistake(web.HTTPNotFound, "there is no such task: it may have been deleted meanwhile")
    return web.Response(status=http.HTTPStatus.NO_CONTENT)


def _mistake(kind: type[web.HTTPClientError], problem: str) -> web.HTTPClientError:
    return kind(text=web.json_response({"problem": problem}).text, content_type="application/json")
