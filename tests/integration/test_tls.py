"""The way to Postgres under TLS: a server that proves who it is, and one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.certificates import certificate
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import Database

SSL_REQUEST_BYTES = 8


@contextlib.asynccontextmanager
async def under_tls(database: Database, folder: Path) -> AsyncIterator[str]:
    """Put TLS before the database, as Postgres speaks it; yield the way through it, trusting its certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    cert, key = certificate(folder, "postgres")
    context.load_cert_chain(cert, key)
    with psycopg.connect(database.dsn) as connection:
        host, port = connection.info.hostaddr, connection.info.port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(SSL_REQUEST_BYTES)
            writer.write(b"S")
            await writer.start_tls(context)
            theirs, ours = await asyncio.open_connection(host, port)
            await asyncio.gather(pass_on(reader, ours), pass_on(theirs, writer))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        through = server.sockets[0].getsockname()[1]
        parts = {name: value for name, value in conninfo_to_dict(database.dsn).items() if name != "hostaddr"}
        secure = {"host": "127.0.0.1", "port": through, "sslmode": "verify-full", "sslrootcert": str(cert)}
        yield make_conninfo("", **parts | secure)


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def test_feed_runs_over_a_verified_connection(database: Database, tmp_path: Path) -> None:
    """With sslmode=verify-full, and the certificate that vouches for the server."""
    async with (
        under_tls(database, tmp_path) as dsn,
        Relay(dsn).running() as relay,
        Client.to(relay.url) as client,
    ):
        await client.subscribe("default")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        assert (await client.receive())[1]["id"] == "a"


async def test_server_without_a_valid_certificate_gets_nothing(database: Database, tmp_path: Path) -> None:
    """The relay does not go on without, and says why."""
    other = tmp_path / "other"
    other.mkdir()
    certificate(other, "somebody else")
    async with under_tls(database, tmp_path) as dsn:
        wrong = make_conninfo(dsn, sslrootcert=str(other / "cert.pem"))
        async with Relay(wrong).running() as relay:
            await until(lambda: "certificate verify failed" in str(relay.feed.problem))
