"""Reloading: keeps the `Gate` of a process up to date with settings, files and addresses.

Rules:
- A credential stays valid until its replacement has been read completely: a broken file or an unreachable address
  changes nothing, and is logged.
- Keys at an address are fetched every few minutes, and when a token is signed with an unknown key, but then at most
  every `SOONEST_SECONDS`, however many such tokens come.
- Files are read when the process starts, and on SIGHUP.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from relay.auth.gate import Gate
from relay.auth.keys import AccessError, Key, signing_keys
from relay.auth.rates import Rates
from relay.auth.tokens import Access, Grant, static_tokens, token_lines
from relay.config.origins import Origins
from relay.config.proxies import Proxies
from relay.config.settings import Settings, is_address, is_safe_address

log = structlog.get_logger()

REFRESH_SECONDS: Final = 300.0
"""Interval at which keys are fetched."""

SOONEST_SECONDS: Final = 10.0
"""Minimum interval between fetches because of unknown keys."""

FETCH_SECONDS: Final = 5.0
"""Timeout of a fetch."""

LARGEST_KEYS_BYTES: Final = 1024 * 1024


class Reloader:
    """Reads credentials and certificates, initially and again."""

    def __init__(self, settings: Settings, rates: Rates | None = None) -> None:
        self._settings = settings
        self._asked = -SOONEST_SECONDS
        self._fetching = asyncio.Lock()
        self._keys: Sequence[Key] | None = None
        self.tls: ssl.SSLContext | None = None
        self.gate = Gate(
            origins=Origins.of(_origins(settings)),
            require_origin=settings.WS_REQUIRE_ORIGIN,
            trusted=Proxies.of(settings.WS_TRUSTED_PROXIES),
            rates=rates,
        )

    async def open(self) -> None:
        """Read everything for the first time. Raises AccessError."""
        if self._settings.WS_TLS_CERT:
            self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        await self._read()

    async def reload(self) -> None:
        """Read everything again. If anything cannot be read, everything stays as it was."""
        try:
            await self._read()
        except AccessError as ex:
            log.error("access.reload_failed", problem=str(ex))  # noqa: TRY400  # the line says it all
        else:
            log.info("access.reloaded")

    async def run(self) -> None:
        """Fetch keys from time to time, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if is_address(self._settings.jwt_keys):
                await self.new_keys()

    async def new_keys(self) -> None:
        """Fetch the keys again, because there may be a new one, unless they were fetched just now."""
        loop = asyncio.get_running_loop()
        async with self._fetching:
            if loop.time() - self._asked < SOONEST_SECONDS:
                return
            try:
                self._keys = await self._read_keys()
            except AccessError as ex:
                log.error("access.keys_failed", problem=str(ex))  # noqa: TRY400  # the line says it all
        self._replace_access()

    async def _read(self) -> None:
        tokens = self._tokens()
        if self.tls:
            # Try on another context first, because a failure halfway would leave a certificate without its key.
            self._read_certificate(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
        async with self._fetching:
            keys = await self._read_keys()
            if self.tls:
                self._read_certificate(self.tls)
            self._static, self._keys = tokens, keys
        self._replace_access()

    def _replace_access(self) -> None:
        settings = self._settings
        self.gate.access = Access(
            self._static,
            secret=settings.WS_JWT_SECRET,
            keys=self._keys,
            audience=settings.WS_JWT_AUDIENCE,
            issuer=settings.WS_JWT_ISSUER,
            database_decides=settings.WS_MAY_READ,
        )

    def _read_certificate(self, tls: ssl.SSLContext) -> None:
        try:
            tls.load_cert_chain(self._settings.WS_TLS_CERT, self._settings.WS_TLS_KEY or None)
        except (OSError, ssl.SSLError) as ex:
            raise AccessError(
                f"WS_TLS_CERT, WS_TLS_KEY: {ex.strerror or ex}: expected a certificate and its key, in PEM"
            ) from None

    def _tokens(self) -> dict[bytes, Grant]:
        tokens = static_tokens(self._settings.WS_TOKENS.split(), "WS_TOKENS")
        if path := self._settings.WS_TOKENS_FILE:
            lines = token_lines(_text(path, "WS_TOKENS_FILE"))
            if not lines and not tokens:
                # An empty file must not admit everybody.
                raise AccessError(f"WS_TOKENS_FILE: {path} has no token: expected one a line")
            tokens |= static_tokens(lines, f"WS_TOKENS_FILE: {path}")
        return tokens

    async def _read_keys(self) -> Sequence[Key] | None:
        source = self._settings.jwt_keys
        setting = "WS_JWT_KEYS" if self._settings.WS_JWT_KEYS else "WS_JWT_ISSUER"
        if not source:
            return None
        self._asked = asyncio.get_running_loop().time()
        if is_address(source):
            text = await _fetched(source, setting)
            if (address := _named_by(text, self._settings.WS_JWT_ISSUER, f"{setting}: {source}")) is not None:
                source, text = address, await _fetched(address, setting)
        else:
            text = _text(source, setting).encode()
        return signing_keys(text, f"{setting}: {source}")


def _origins(settings: Settings) -> list[str]:
    """Return the origins whose pages may connect: those of the setting, and the relay's own page on this machine."""
    own = [f"http://{host}:{settings.HEALTH_PORT}" for host in ("localhost", "127.0.0.1", "[::1]")]
    return [*settings.WS_ORIGINS.replace(",", " ").split(), *own]


def _named_by(text: bytes, issuer: str, where: str) -> str | None:
    """Return the address of keys from an issuer's OpenID configuration; None if the text is something else.

    Raises AccessError.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "jwks_uri" not in found:
        return None
    address, its_issuer = str(found["jwks_uri"]), str(found.get("issuer"))
    if issuer and its_issuer != issuer:
        raise AccessError(f"{where}: is of issuer {its_issuer!r:.200}: expected WS_JWT_ISSUER, {issuer!r}")
    if not is_safe_address(address):
        raise AccessError(f"{where}: names the keys {address!r:.200}: expected an address that begins with https://")
    return address


def _text(path: str, setting: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as ex:
        reason = ex.strerror if isinstance(ex, OSError) else "it is no text"
        raise AccessError(f"{setting}: cannot read {path}: {reason}") from None


async def _fetched(address: str, setting: str) -> bytes:
    import aiohttp  # noqa: PLC0415  # a fifth of a worker's start, and few have an address of keys

    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
            session.get(address, allow_redirects=False) as response,
        ):
            return await response.content.read(LARGEST_KEYS_BYTES)
    except (aiohttp.ClientError, TimeoutError, ValueError) as ex:
        raise AccessError(f"{setting}: {address} does not answer: {str(ex) or type(ex).__name__}") from None
