"""Settings: where the daemon listens and what it connects to. Checked once, at the start.

Each setting is an environment variable; the command line makes an option of each (see cli.py). `ALLOWED` says
in words what a setting may be, for `--help` and for errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import psycopg.conninfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Port = Annotated[int, Field(ge=0, le=65535)]


class SettingsError(Exception):
    """A setting that cannot be used: its name, its value and what is allowed, in one line."""


class Settings(BaseModel):
    """What the daemon is told. Field names are the variables' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    WS_PORT: Port = Field(4002, description="port of the WebSocket endpoint")
    WS_HOST: str = Field("0.0.0.0", min_length=1, description="address to listen on")  # noqa: S104  # the guide's
    WS_ENABLED: bool = Field(True, description="whether the WebSocket endpoint is open")
    WS_HEARTBEAT: int = Field(
        30_000, ge=100, le=3_600_000, description="milliseconds between pings; who answers none is dropped"
    )
    WS_MAX_CONNECTIONS: int = Field(100, ge=1, description="connections at once; more are refused with 503")
    WS_SEND_BUFFER: int = Field(
        1024 * 1024,
        ge=64 * 1024,
        le=1024 * 1024 * 1024,
        description="bytes that may wait for a client that reads slowly; then it is sent the board anew instead",
    )
    WS_COMPRESSION: bool = Field(False, description="whether to compress messages for clients that offer it")
    WS_WORKERS: int = Field(1, ge=1, le=256, description="processes that serve clients, each on a core of its own")
    HEALTH_PORT: Port = Field(4001, description="port of GET /health and GET /metrics")
    DATABASE_URL: str = Field(
        "", description="connection string of the database; what it leaves out, libpq's PG* variables give"
    )

    @field_validator("DATABASE_URL")
    @classmethod
    def _is_conninfo(cls, value: str) -> str:
        try:
            psycopg.conninfo.conninfo_to_dict(value)
        except psycopg.ProgrammingError:
            raise ValueError("no connection string") from None
        return value


ALLOWED: Final[Mapping[str, str]] = {
    "WS_PORT": "a port from 0 to 65535, 0 for any free one",
    "WS_HOST": "an address or host name",
    "WS_ENABLED": "true or false",
    "WS_HEARTBEAT": "milliseconds from 100 to 3600000",
    "WS_MAX_CONNECTIONS": "a whole number from 1",
    "WS_SEND_BUFFER": "bytes from 65536 to 1073741824",
    "WS_COMPRESSION": "true or false",
    "WS_WORKERS": "a whole number from 1 to 256",
    "HEALTH_PORT": "a port from 0 to 65535, 0 for any free one",
    "DATABASE_URL": "postgresql://user@host/database, or key=value pairs as libpq takes them",
}

SECRET: Final = frozenset({"DATABASE_URL"})
"""Settings whose value no message repeats, for it may hold a password."""


def load(values: Mapping[str, str]) -> Settings:
    """Check settings given as text; those not given have their defaults. Raises SettingsError."""
    try:
        return Settings.model_validate(values)
    except ValidationError as ex:
        name = str(ex.errors()[0]["loc"][0])
        found = "its value" if name in SECRET else repr(values[name])
        raise SettingsError(f"{name}: {found} is not allowed: expected {ALLOWED[name]}") from None
