"""Settings: where the daemon listens and what it connects to. Checked once, at the start.

Each setting is defined once, as a field of `Settings`: its default, its meaning, its bounds, the allowed values in
words, and the commands that take it. Command-line options, `--help`, errors and docs/configuration.md derive from it.

Rules:
- An option wins over an environment variable, and a variable over a file in a secrets directory. The command line
  loads a `.env` file into the environment, because libpq reads its variables there.
- An empty variable counts as unset.
- An error never repeats a value that may contain a password.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic_settings import BaseSettings, EnvSettingsSource, SecretsSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from relay.config import conninfo
from relay.config.origins import Origins
from relay.config.proxies import Proxies

DISCOVERY: Final = "/.well-known/openid-configuration"
"""Path below an issuer's address of the document that says where its keys are (OpenID Connect Discovery)."""

SHORTEST_SECRET_BYTES: Final = 32
"""Minimum length of a secret for HS256, as RFC 7518 requires: a shorter one can be guessed from one token."""

_ALIKE: Final = 0.9
"""Similarity from which a variable's name counts as a misspelt setting."""

Audience = Literal["serve", "publish", "both"]
"""The commands that take a setting: `relay serve` and `relay check`; `relay publish`; or all three."""


class Fault(ValueError):
    """A value is wrong for a reason that the description of allowed values does not explain."""


class SettingsError(Exception):
    """A setting cannot be used. The text names it, its value and what is allowed, in one line."""


def is_address(text: str) -> bool:
    """Return whether a setting is an address on the web, not a file or a name."""
    return text.startswith(("https://", "http://"))


def is_safe_address(text: str) -> bool:
    """Return whether the answer from an address cannot be replaced on the way."""
    return text.startswith("https://") or (
        text.startswith("http://") and urlsplit(text).hostname in {"localhost", "127.0.0.1", "::1"}
    )


# What a setting is -----------------------------------------------------------------------------------------


def _setting(
    default: Any,
    meaning: str,
    allowed: str,
    *,
    of: Audience = "serve",
    secret: bool = False,
    option: bool = True,
    short: str = "",
    **checks: Any,
) -> Any:
    """Define a setting; `checks` are those of pydantic's `Field`.

    `secret`: no message repeats the value, because it may contain a password. `option`: whether there is a
    command-line option, which every user of the machine can read. `short`: a second name for that option.
    """
    about: JsonDict = {"allowed": allowed, "of": of, "secret": secret, "option": option, "short": short}
    return Field(default, description=meaning, json_schema_extra=about, **checks)


def _number(default: int, meaning: str, unit: str, least: int, most: int | None = None, **about: Any) -> Any:
    """Define a setting that is a whole number, in a unit, within bounds."""
    allowed = f"{unit} from {least}" + ("" if most is None else f" to {most}")
    bounds = {"ge": least} if most is None else {"ge": least, "le": most}
    return _setting(default, meaning, allowed, **(bounds | about))


def _port(default: int, meaning: str, **about: Any) -> Any:
    return _setting(default, meaning, "a port from 0 to 65535, 0 for any free one", ge=0, le=65535, **about)


def _flag(default: bool, meaning: str, **about: Any) -> Any:
    return _setting(default, meaning, "true or false", **about)


def _file(meaning: str, beside: str = "", **about: Any) -> Any:
    return _setting("", meaning, "the path of a file" + (f", along with {beside}" if beside else ""), **about)


_WHOLE: Final = "a whole number"
_MS: Final = "milliseconds"
_HOUR_MS: Final = 3_600_000
_NATS_SERVERS: Final = "addresses like nats://host:4222 or tls://host:4222, separated by commas"
_NATS_NAME: Final = "up to 64 letters, digits, _ and -"


class Settings(BaseModel):
    """The configuration of the daemon. Field names are the variables' names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    WS_PORT: int = _port(4002, "port of the WebSocket endpoint")
    WS_HOST: str = _setting(
        "0.0.0.0",  # noqa: S104  # the guide's
        "addresses to listen on, for both ports; :: means IPv6 and IPv4",
        "addresses or host names, separated by commas",
        of="both",
        pattern=r"[^\s,]",
    )
    WS_SOCKET: str = _setting(
        "", "path of a Unix socket for clients, in place of WS_PORT", "the path of a Unix socket"
    )
    WS_ENABLED: bool = _flag(True, "whether clients can connect")
    WS_HEARTBEAT: int = _number(
        30_000, "milliseconds between pings; a client that answers none is disconnected", _MS, 100, _HOUR_MS
    )
    WS_MAX_CONNECTIONS: int = _number(100, "connections at once; more are refused with HTTP 503", _WHOLE, 1)
    WS_MAX_CONNECTIONS_PER_ADDRESS: int = _number(
        0,
        "connections at once from one address, for each worker; more are refused with HTTP 503, 0 is no limit",
        _WHOLE,
        0,
    )
    WS_SEND_BUFFER: int = _number(
        1024 * 1024,
        "bytes that may wait for a slow client; above that, it gets its board again instead",
        "bytes",
        64 * 1024,
        1024**3,
    )
    WS_COMPRESSION: bool = _flag(False, "whether to compress messages for clients that offer it")
    WS_WORKERS: int = _number(
        1, "processes that serve clients, each on a core of its own", _WHOLE, 1, 256, short="--workers"
    )
    WS_TOKENS: str = _setting(
        "",
        "accepted tokens, each with the boards that it allows, like team-*",
        "token or token:board,board, separated by spaces",
        secret=True,
        option=False,
    )
    WS_TOKENS_FILE: str = _file("file of such tokens, one per line")
    WS_JWT_SECRET: str = _setting(
        "",
        "secret of JSON Web Tokens (HS256)",
        f"text of {SHORTEST_SECRET_BYTES} bytes or more",
        secret=True,
        option=False,
    )
    WS_JWT_KEYS: str = _setting(
        "",
        "JWKS of JSON Web Tokens (RSA, P-256, P-384, P-521 or Ed25519 keys)",
        "the path of a file, or an address that begins with https://",
    )
    WS_JWT_AUDIENCE: str = _setting("", "audience (aud) that JSON Web Tokens must have", "text")
    WS_JWT_ISSUER: str = _setting(
        "",
        "issuer (iss) that JSON Web Tokens must have; without WS_JWT_KEYS, keys are fetched from its address",
        "text, or an address that begins with https://",
    )
    WS_MAY_READ: bool = _flag(False, "whether relay.may_read in the database must also allow each board")
    WS_ORIGINS: str = _setting(
        "http://localhost:4000",
        "origins whose pages may connect, besides the relay's own; * allows any",
        "origins like https://app.example.com, https://*.example.com or file://, separated by commas",
    )
    WS_REQUIRE_ORIGIN: bool = _flag(False, "whether clients that send no origin are refused")
    WS_TRUSTED_PROXIES: str = _setting(
        "",
        "proxies that are trusted to name the addresses of their clients",
        "addresses or networks like 10.0.0.0/8, or unix for WS_SOCKET, separated by commas",
    )
    WS_RATE_LIMIT_PER_CLIENT: int = _number(
        10, "connections a minute from one address; more are refused with HTTP 429, 0 is no limit", _WHOLE, 0
    )
    WS_RATE_LIMIT_TOTAL: int = _number(
        100, "connections a minute from all; more are refused with HTTP 429, 0 is no limit", _WHOLE, 0
    )
    WS_MESSAGE_RATE: int = _number(50, "messages a second from one client, 0 is no limit", _WHOLE, 0)
    WS_MAX_BOARDS: int = _number(100, "boards that one client may follow", _WHOLE, 1)
    WS_HANDSHAKE_TIMEOUT: int = _number(10_000, "milliseconds that a handshake may take", _MS, 100)
    WS_IDLE_TIMEOUT: int = _number(
        300_000, "milliseconds after which a client that follows no board is disconnected, 0 is never", _MS, 0
    )
    WS_BACKLOG_TOTAL: int = _number(256 * 1024**2, "bytes that may wait for all clients together", "bytes", 1024**2)
    WS_DRAIN: int = _number(
        5000, "milliseconds over which clients are disconnected when the relay stops", _MS, 0, _HOUR_MS
    )
    WS_TLS_CERT: str = _file("certificate with its chain, for wss://")
    WS_TLS_KEY: str = _file("its private key, if in a file of its own", "WS_TLS_CERT")
    HEALTH_PORT: int = _port(
        4001, "port of GET /health, /ready, /live, /status and /metrics, and the board page", of="both"
    )
    HEALTH_BUDGET: int = _number(
        10_000, "milliseconds within which a probe must come back, or the relay is not ready", _MS, 100, of="both"
    )
    BOARD_PAGE: bool = _flag(True, "whether HEALTH_PORT serves a page that shows boards")
    LOG_LEVEL: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "lowest level that is logged", "debug, info, warning or error", of="both"
    )
    DATABASE_URL: str = _setting(
        "",
        "connection string of the database; libpq's PG* variables supply what it leaves out",
        "postgresql://user@host/database, or key=value pairs as libpq takes them",
        of="both",
        secret=True,
    )
    SERVE_FROM: str = _setting(
        "",
        "NATS servers to read the feed from, instead of the database",
        _NATS_SERVERS,
        secret=True,
        short="--from",
    )
    PUBLISH_TO: str = _setting(
        "nats://localhost:4222",
        "NATS servers to publish the feed to",
        _NATS_SERVERS,
        of="publish",
        secret=True,
        short="--to",
    )
    NATS_STREAM: str = _setting(
        "relay",
        "name of the JetStream stream, and first part of its subjects",
        _NATS_NAME,
        of="both",
        pattern="^[A-Za-z0-9_-]{1,64}$",
    )
    NATS_DOMAIN: str = _setting(
        "",
        "JetStream domain of the stream, if not the default one",
        _NATS_NAME,
        of="both",
        pattern="^[A-Za-z0-9_-]{0,64}$",
    )
    NATS_CREDENTIALS: str = _file("credentials for NATS, as created by nsc", of="both")
    NATS_CA: str = _file("certificate authorities that NATS's certificate must be from", of="both")
    NATS_CERT: str = _file("client certificate for NATS", of="both")
    NATS_KEY: str = _file("its private key, if in a file of its own", "NATS_CERT", of="both")
    NATS_KEEP: int = _number(
        3600, "seconds that a stream created by the publisher keeps changes", "seconds", 60, of="publish"
    )
    NATS_KEEP_BYTES: int = _number(
        1024**3, "maximum size in bytes of a stream created by the publisher", "bytes", 1024**2, of="publish"
    )
    NATS_REPLICAS: int = _number(1, "NATS servers that keep a copy of the stream", _WHOLE, 1, 5, of="publish")

    @property
    def is_open(self) -> bool:
        """Whether everybody is admitted, because no credential is configured."""
        return not (self.WS_TOKENS or self.WS_TOKENS_FILE or self.WS_JWT_SECRET or self.jwt_keys)

    @property
    def jwt_keys(self) -> str:
        """The location of the keys of JSON Web Tokens: from the setting, or else from the issuer."""
        if self.WS_JWT_KEYS or self.WS_JWT_SECRET or not is_address(self.WS_JWT_ISSUER):
            return self.WS_JWT_KEYS
        return self.WS_JWT_ISSUER.rstrip("/") + DISCOVERY

    @field_validator("WS_JWT_KEYS", "WS_JWT_ISSUER")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        if is_address(value) and not is_safe_address(value):
            raise ValueError("its keys could be replaced on the way")
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

    @field_validator("WS_TLS_KEY", "NATS_KEY")
    @classmethod
    def _has_certificate(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get(str(info.field_name).replace("_KEY", "_CERT")):
            raise ValueError("no certificate")
        return value

    @field_validator("DATABASE_URL")
    @classmethod
    def _is_conninfo(cls, value: str) -> str:
        if (fault := conninfo.fault(value)) is not None:
            raise Fault(fault)
        return value


class Setting(NamedTuple):
    """A setting, for options, errors and documentation."""

    name: str
    default: str
    """As written in the environment; empty for none."""
    meaning: str
    allowed: str
    """The allowed values, in words."""
    of: Audience
    secret: bool
    """Whether the value may contain a password, so that no message repeats it."""
    option: str
    """The command-line option, empty for none."""
    short: str
    """A second name for the option, empty for none."""

    def is_of(self, command: Literal["serve", "publish"]) -> bool:
        """Whether a command takes it."""
        return self.of in {command, "both"}


def _about(name: str) -> Setting:
    field = Settings.model_fields[name]
    about = field.json_schema_extra
    assert isinstance(about, dict)
    option = "--" + name.lower().replace("_", "-") if about["option"] else ""
    default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return Setting(
        name,
        default,
        str(field.description),
        str(about["allowed"]),
        about["of"],  # type: ignore[arg-type]  # what _setting put there
        bool(about["secret"]),
        option,
        str(about["short"]),
    )


SETTINGS: Final[Mapping[str, Setting]] = {name: _about(name) for name in Settings.model_fields}


# Where they come from --------------------------------------------------------------------------------------


class _Environment(BaseSettings, Settings):
    """The same settings, as pydantic-settings reads them."""

    model_config = SettingsConfigDict(case_sensitive=True, env_ignore_empty=True)


def secrets_directories() -> list[Path]:
    """Return the directories whose files have the names of settings and contain their values.

    They are those of Docker (`/run/secrets`) and of systemd (`LoadCredential=`); the later ones win.
    """
    named = [Path("/run/secrets"), Path(os.environ.get("CREDENTIALS_DIRECTORY", ""))]
    return [path for path in named if path.is_absolute() and path.is_dir()]


def read(options: Mapping[str, str | None], names: Iterable[str]) -> Settings:
    """Read the named settings from options, the environment and secrets directories. The others have their defaults.

    Raises SettingsError.
    """
    secrets = SecretsSettingsSource(_Environment, secrets_dir=secrets_directories() or None)
    try:
        found = secrets() | EnvSettingsSource(_Environment)()
    except SourceError as ex:
        why = ex.__cause__
        reason = f"{why.filename}: {why.strerror}" if isinstance(why, OSError) else "a file there is not UTF-8"
        raise SettingsError(f"secrets cannot be read: {reason}: expected files of text, of one value each") from None
    found |= {name: value for name, value in options.items() if value is not None}
    return load({name: found[name] for name in names if name in found})


def load(values: Mapping[str, str]) -> Settings:
    """Check settings given as text; those not given have their defaults. Raises SettingsError."""
    try:
        return Settings.model_validate(values)
    except ValidationError as ex:
        error = ex.errors()[0]
        name, fault = str(error["loc"][0]), error.get("ctx", {}).get("error")
        found = "its value" if SETTINGS[name].secret else repr(values[name])
        why = _of_kubernetes(name, values[name]) or (str(fault) if isinstance(fault, Fault) else "")
        because = f": {why}" if why else ""
        raise SettingsError(f"{name}: {found} is not allowed{because}: expected {SETTINGS[name].allowed}") from None


def _of_kubernetes(name: str, value: str) -> str | None:
    """Explain a value that nobody has set: Kubernetes sets variables named after services."""
    if not re.fullmatch(r"(?:tcp|udp|sctp)://[^/]+", value):
        return None
    service = name.removesuffix("_PORT").lower().replace("_", "-")
    return f"Kubernetes sets it for a service {service}: set enableServiceLinks: false, or rename the service"


def misspelt(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that is not a setting but resembles one, with that setting's name."""
    for name in names:
        if name not in SETTINGS and (like := difflib.get_close_matches(name, SETTINGS, 1, _ALIKE)):
            yield name, like[0]
