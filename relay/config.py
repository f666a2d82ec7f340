"""Settings: where the daemon listens and what it connects to. Checked once, at the start.

Each setting is an environment variable; the command line makes an option of each. `ALLOWED` says in words what a
setting may be, for `--help` and for errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from relay.auth.access import SHORTEST_SECRET_BYTES
from relay.auth.origins import Origins
from relay.auth.proxies import Proxies
from relay.postgres import conninfo

DISCOVERY: Final = "/.well-known/openid-configuration"
"""Where an issuer says, below its own address, where its keys are (OpenID Connect Discovery)."""

Port = Annotated[int, Field(ge=0, le=65535)]


def is_address(text: str) -> bool:
    """Tell whether a setting is an address on the web, and no file or name."""
    return text.startswith(("https://", "http://"))


def is_safe_address(text: str) -> bool:
    """Tell whether nobody on the way to an address could replace what it answers."""
    return text.startswith("https://") or (
        text.startswith("http://") and urlsplit(text).hostname in {"localhost", "127.0.0.1", "::1"}
    )


_ALIKE: Final = 0.9
"""How alike a name must be to one of a setting, that it is taken for it, misspelt."""


class Fault(ValueError):
    """What exactly is wrong with a value, where there is more to say than what is allowed."""


class SettingsError(Exception):
    """A setting that cannot be used: its name, its value and what is allowed, in one line."""


class Settings(BaseModel):
    """What the daemon is told. Field names are the variables' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    WS_PORT: Port = Field(4002, description="port of the WebSocket endpoint")
    WS_HOST: str = Field(
        "0.0.0.0",  # noqa: S104  # the guide's
        pattern=r"[^\s,]",
        description="addresses to listen on, for both ports; :: is IPv6 and IPv4",
    )
    WS_SOCKET: str = Field("", description="path of a Unix socket for clients, in place of WS_PORT")
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
    WS_TOKENS: str = Field("", description="tokens that are good, each with its boards")
    WS_TOKENS_FILE: str = Field("", description="file of such tokens, one a line")
    WS_JWT_SECRET: str = Field("", description="secret of JSON Web Tokens (HS256)")
    WS_JWT_KEYS: str = Field("", description="JWKS of JSON Web Tokens: a file, or an address")
    WS_JWT_AUDIENCE: str = Field("", description="audience that a JSON Web Token must be for")
    WS_JWT_ISSUER: str = Field(
        "", description="issuer that a JSON Web Token must be from; if an address, it says where keys are"
    )
    WS_MAY_READ: bool = Field(False, description="whether relay.may_read in the database decides about each board")
    WS_ORIGINS: str = Field("http://localhost:4000", description="origins whose pages may connect, * for any")
    WS_REQUIRE_ORIGIN: bool = Field(False, description="whether clients that send no origin are refused")
    WS_TRUSTED_PROXIES: str = Field("", description="proxies that are believed where their clients are")
    WS_RATE_LIMIT_PER_CLIENT: int = Field(
        10, ge=0, description="connections a minute from one address; more are refused with 429, 0 is no limit"
    )
    WS_RATE_LIMIT_TOTAL: int = Field(
        100, ge=0, description="connections a minute from all; more are refused with 429, 0 is no limit"
    )
    WS_MESSAGE_RATE: int = Field(50, ge=0, description="messages a second from one client, 0 is no limit")
    WS_MAX_BOARDS: int = Field(100, ge=1, description="boards that one client may follow")
    WS_HANDSHAKE_TIMEOUT: int = Field(10_000, ge=100, description="milliseconds that a handshake may take")
    WS_IDLE_TIMEOUT: int = Field(
        300_000, ge=0, description="milliseconds that a client may follow no board; then it is closed, 0 is never"
    )
    WS_BACKLOG_TOTAL: int = Field(
        256 * 1024 * 1024, ge=1024 * 1024, description="bytes that may wait for all clients together"
    )
    WS_DRAIN: int = Field(
        5000, ge=0, le=3_600_000, description="milliseconds over which clients are seen off when the relay stops"
    )
    WS_TLS_CERT: str = Field("", description="file of the certificate, with its chain, for wss://")
    WS_TLS_KEY: str = Field("", description="file of its key, if that is another")
    HEALTH_PORT: Port = Field(4001, description="port of GET /health, /ready, /live and /metrics, and the board page")
    HEALTH_BUDGET: int = Field(
        10_000, ge=100, description="milliseconds in which a canary must come back; else the relay is not ready"
    )
    BOARD_PAGE: bool = Field(True, description="whether there is a page on HEALTH_PORT that shows boards")
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level of what is logged"
    )
    DATABASE_URL: str = Field(
        "", description="connection string of the database; what it leaves out, libpq's PG* variables give"
    )

    SERVE_FROM: str = Field("", description="NATS servers that clients are served from, instead of the database")
    PUBLISH_TO: str = Field("nats://localhost:4222", description="NATS servers that the feed is published to")
    NATS_STREAM: str = Field(
        "relay",
        pattern="^[A-Za-z0-9_-]{1,64}$",
        description="name of the JetStream stream, and first part of subjects",
    )
    NATS_DOMAIN: str = Field(
        "", pattern="^[A-Za-z0-9_-]{0,64}$", description="JetStream domain that the stream is in, if it is another"
    )
    NATS_CREDENTIALS: str = Field("", description="file of credentials for NATS, as nsc makes it")
    NATS_CA: str = Field("", description="file of the authorities that NATS's certificate must be from")
    NATS_CERT: str = Field("", description="file of a certificate to show to NATS")
    NATS_KEY: str = Field("", description="file of its key, if that is another")
    NATS_KEEP: int = Field(3600, ge=60, description="seconds that a stream made by the publisher keeps changes")
    NATS_KEEP_BYTES: int = Field(1024**3, ge=1024**2, description="bytes of them that it keeps at most")
    NATS_REPLICAS: int = Field(1, ge=1, le=5, description="NATS servers that it is kept on")

    @property
    def is_open(self) -> bool:
        """Whether everybody gets in, for no credential is configured."""
        return not (self.WS_TOKENS or self.WS_TOKENS_FILE or self.WS_JWT_SECRET or self.jwt_keys)

    @property
    def jwt_keys(self) -> str:
        """Where the keys of JSON Web Tokens are: where the setting says, or else where the issuer says."""
        if self.WS_JWT_KEYS or self.WS_JWT_SECRET or not is_address(self.WS_JWT_ISSUER):
            return self.WS_JWT_KEYS
        return self.WS_JWT_ISSUER.rstrip("/") + DISCOVERY

    @field_validator("WS_JWT_KEYS", "WS_JWT_ISSUER")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        if is_address(value) and not is_safe_address(value):
            raise ValueError("keys that anybody on the way could replace")
        return value

    @field_validator("WS_JWT_SECRET")
    @classmethod
    def _is_long(cls, value: str) -> str:
        if value and len(value.encode()) < SHORTEST_SECRET_BYTES:
            raise ValueError("too short")
        return value

    @field_validator("WS_TRUSTED_PROXIES")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        Proxies.of(value)
        return value

    @field_validator("WS_ORIGINS")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        Origins.of(value.replace(",", " ").split())
        return value

    @field_validator("SERVE_FROM", "PUBLISH_TO")
    @classmethod
    def _are_servers(cls, value: str) -> str:
        for server in filter(None, value.split(",")):
            parts = urlsplit(server.strip())
            if parts.scheme not in {"nats", "tls"} or not parts.hostname or parts.path:
                raise ValueError("no NATS server")
        return value

    @field_validator("NATS_KEY")
    @classmethod
    def _has_nats_certificate(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("NATS_CERT"):
            raise ValueError("no certificate")
        return value

    @field_validator("WS_TLS_KEY")
    @classmethod
    def _has_certificate(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("WS_TLS_CERT"):
            raise ValueError("no certificate")
        return value

    @field_validator("DATABASE_URL")
    @classmethod
    def _is_conninfo(cls, value: str) -> str:
        if (fault := conninfo.fault(value)) is not None:
            raise Fault(fault)
        return value


_SERVERS: Final = "addresses like nats://host:4222 or tls://host:4222, separated by commas"

ALLOWED: Final[Mapping[str, str]] = {
    "WS_PORT": "a port from 0 to 65535, 0 for any free one",
    "WS_HOST": "addresses or host names, separated by commas",
    "WS_SOCKET": "the path of a Unix socket",
    "WS_ENABLED": "true or false",
    "WS_HEARTBEAT": "milliseconds from 100 to 3600000",
    "WS_MAX_CONNECTIONS": "a whole number from 1",
    "WS_SEND_BUFFER": "bytes from 65536 to 1073741824",
    "WS_COMPRESSION": "true or false",
    "WS_WORKERS": "a whole number from 1 to 256",
    "WS_TOKENS": "token or token:board,board, separated by spaces",
    "WS_TOKENS_FILE": "the path of a file",
    "WS_JWT_SECRET": f"text of {SHORTEST_SECRET_BYTES} bytes or more",
    "WS_JWT_KEYS": "the path of a file, or an address that begins with https://",
    "WS_JWT_AUDIENCE": "text",
    "WS_JWT_ISSUER": "text, or an address that begins with https://",
    "WS_MAY_READ": "true or false",
    "WS_ORIGINS": "origins like https://app.example.com, https://*.example.com or file://, separated by commas",
    "WS_REQUIRE_ORIGIN": "true or false",
    "WS_TRUSTED_PROXIES": "addresses or networks like 10.0.0.0/8, or unix for WS_SOCKET, separated by commas",
    "WS_RATE_LIMIT_PER_CLIENT": "a whole number from 0",
    "WS_RATE_LIMIT_TOTAL": "a whole number from 0",
    "WS_MESSAGE_RATE": "a whole number from 0",
    "WS_MAX_BOARDS": "a whole number from 1",
    "WS_HANDSHAKE_TIMEOUT": "milliseconds from 100",
    "WS_IDLE_TIMEOUT": "milliseconds from 0",
    "WS_BACKLOG_TOTAL": "bytes from 1048576",
    "WS_DRAIN": "milliseconds from 0 to 3600000",
    "WS_TLS_CERT": "the path of a file",
    "WS_TLS_KEY": "the path of a file, along with WS_TLS_CERT",
    "HEALTH_PORT": "a port from 0 to 65535, 0 for any free one",
    "HEALTH_BUDGET": "milliseconds from 100",
    "BOARD_PAGE": "true or false",
    "LOG_LEVEL": "debug, info, warning or error",
    "DATABASE_URL": "postgresql://user@host/database, or key=value pairs as libpq takes them",
    "SERVE_FROM": _SERVERS,
    "PUBLISH_TO": _SERVERS,
    "NATS_STREAM": "up to 64 letters, digits, _ and -",
    "NATS_DOMAIN": "up to 64 letters, digits, _ and -",
    "NATS_CREDENTIALS": "the path of a file",
    "NATS_CA": "the path of a file",
    "NATS_CERT": "the path of a file",
    "NATS_KEY": "the path of a file, along with NATS_CERT",
    "NATS_KEEP": "seconds from 60",
    "NATS_KEEP_BYTES": "bytes from 1048576",
    "NATS_REPLICAS": "a whole number from 1 to 5",
}

SECRET: Final = frozenset({"DATABASE_URL", "WS_TOKENS", "WS_JWT_SECRET", "SERVE_FROM", "PUBLISH_TO"})
"""Settings whose value no message repeats, for it may hold a password."""

PUBLISHERS: Final = frozenset({"PUBLISH_TO", "NATS_KEEP", "NATS_KEEP_BYTES", "NATS_REPLICAS"})
"""Settings that are the publisher's alone."""

NO_OPTION: Final = frozenset({"WS_TOKENS", "WS_JWT_SECRET"})
"""Settings that are no options of the command line, which every user of the machine can read."""


def load(values: Mapping[str, str]) -> Settings:
    """Check settings given as text; those not given have their defaults. Raises SettingsError."""
    try:
        return Settings.model_validate(values)
    except ValidationError as ex:
        error = ex.errors()[0]
        name, fault = str(error["loc"][0]), error.get("ctx", {}).get("error")
        found = "its value" if name in SECRET else repr(values[name])
        why = _of_kubernetes(name, values[name]) or (str(fault) if isinstance(fault, Fault) else "")
        because = f": {why}" if why else ""
        raise SettingsError(f"{name}: {found} is not allowed{because}: expected {ALLOWED[name]}") from None


def _of_kubernetes(name: str, value: str) -> str | None:
    """Say where a value comes from that nobody has set: Kubernetes makes variables of the names of services."""
    if not re.fullmatch(r"(?:tcp|udp|sctp)://[^/]+", value):
        return None
    service = name.removesuffix("_PORT").lower().replace("_", "-")
    return f"Kubernetes sets it for a service {service}: set enableServiceLinks: false, or rename the service"


def misspelt(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that is no setting and looks like one, and that one."""
    for name in names:
        if name not in Settings.model_fields and (
            like := difflib.get_close_matches(name, Settings.model_fields, 1, _ALIKE)
        ):
            yield name, like[0]
