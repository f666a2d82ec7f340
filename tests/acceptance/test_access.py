"""`relay serve` with credentials: how they are configured, changed while it runs, and kept to itself."""

from __future__ import annotations

import asyncio
import http
import json
import signal
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.typing import Origin

from relay.daemon.serve import open_to_all
from relay.postgres.embedded import free_port
from tests.acceptance.support import Daemon, Relays, mistake, run_relay, until
from tests.certificates import certificate, key_and_jwk
from tests.contract import checked
from tests.servers import Database

SECRET = "a secret that is long enough, by far"
SUBSCRIBE = json.dumps({"type": "subscribe", "boardId": "default"})


async def gets_in(daemon: Daemon, token: str, **options: Any) -> bool:
    """Tell whether a client with this token gets its board."""
    try:
        async with connect(f"{daemon.url}?token={token}", proxy=None, **options) as connection:
            await connection.send(SUBSCRIBE)
            async with asyncio.timeout(20):
                return bool(checked(await connection.recv())["type"] == "board.sync")
    except InvalidStatus as ex:
        if ex.response.status_code != http.HTTPStatus.UNAUTHORIZED:
            raise
        return False


def signed(key: Any, kid: str, **claims: Any) -> str:
    claims = {"exp": time.time() + 60, "boards": "*"} | claims
    return jwt.encode(claims, key, "ES256", headers={"kid": kid})


async def test_without_credentials_it_says_loudly_that_it_is_open(database: Database, relay: Relays) -> None:
    """And how to close it, where others can reach it."""
    daemon = await relay(database.dsn, WS_HOST="127.0.0.1")
    assert "every program on this machine" in (await daemon.logged("access.open"))["problem"]
    for hosts in ("0.0.0.0", "::", "127.0.0.1,192.0.2.1"):
        problem, hint = open_to_all(hosts)
        assert hosts in problem
        assert "set WS_TOKENS" in hint


async def test_tokens_of_the_environment_and_of_a_file_are_good(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Both at once; the file may be changed while it runs, and what is wrong with it then changes nothing."""
    file = tmp_path / "tokens"
    file.write_text("# of others\ntwo:default\n")
    daemon = await relay(database.dsn, WS_TOKENS="one", WS_TOKENS_FILE=str(file))
    assert [await gets_in(daemon, token) for token in ("one", "two", "three")] == [True, True, False]

    file.write_text("three:other,default\n")
    daemon.signal(signal.SIGHUP)
    await daemon.logged("access.reloaded")
    assert [await gets_in(daemon, token) for token in ("one", "two", "three")] == [True, False, True]

    file.write_text("four:\n")
    daemon.signal(signal.SIGHUP)
    line = await daemon.logged("access.reload_failed")
    assert "entry 1 is no token" in line["problem"]
    assert await gets_in(daemon, "three")


async def test_credentials_and_their_changes_reach_every_worker(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """From a directory of secrets, and from a file at SIGHUP, which goes to the daemon; the log has none of them."""
    (tmp_path / "WS_TOKENS").write_text("hush-always\n")
    file = tmp_path / "tokens"
    file.write_text("hush-old\n")
    daemon = await relay(database.dsn, CREDENTIALS_DIRECTORY=str(tmp_path), WS_TOKENS_FILE=str(file), WS_WORKERS="2")
    assert [await gets_in(daemon, token) for token in ("hush-always", "hush-old", "hush-new")] == [True, True, False]
    file.write_text("hush-new\n")
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.output.count("access.reloaded") == 2, "both workers' word")
    for _ in range(8):
        assert await gets_in(daemon, "hush-new")
        assert not await gets_in(daemon, "hush-old")
    assert await gets_in(daemon, "hush-always")
    assert "hush" not in daemon.output


async def test_a_file_of_keys_is_read_and_read_again(database: Database, relay: Relays, tmp_path: Path) -> None:
    """A key that is taken out closes the connections of its tokens."""
    (one, one_jwk), (two, two_jwk) = key_and_jwk("one"), key_and_jwk("two")
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [one_jwk]}))
    daemon = await relay(database.dsn, WS_JWT_KEYS=str(file), WS_JWT_AUDIENCE="relay", WS_JWT_ISSUER="us")
    good = {"aud": "relay", "iss": "us"}
    assert await gets_in(daemon, signed(one, "one", **good))
    assert not await gets_in(daemon, signed(one, "one"))
    async with connect(f"{daemon.url}?token={signed(one, 'one', **good)}", proxy=None) as connection:
        file.write_text(json.dumps({"keys": [two_jwk]}))
        daemon.signal(signal.SIGHUP)
        await daemon.logged("access.reloaded")
        assert await gets_in(daemon, signed(two, "two", **good))
        assert not await gets_in(daemon, signed(one, "one", **good))
        await still_or_no_more(connection)


async def still_or_no_more(connection: ClientConnection) -> None:
    """Wait for the end of a connection whose token is not good any more."""
    async with asyncio.timeout(20):
        await connection.wait_closed()
    assert connection.close_code == 4003


def test_a_credential_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """The daemon does not start, and never by mistake without."""
    said = mistake(run_relay("serve", "--ws-port", "0", "--health-port", "0", cwd=tmp_path, WS_TOKENS="hush:"))
    assert "WS_TOKENS: entry 1 is no token" in said
    assert "hush" not in said


def process_list() -> str:
    """Return all that everybody may see of this machine's processes."""
    command = ["ps", "-e", "-o", "args"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_no_secret_shows(database: Database, relay: Relays) -> None:
    """Neither in the log nor in the process list nor in the metrics, whatever is done with them."""
    token = jwt.encode({"exp": time.time() + 60, "boards": ["default"], "sub": "hush-sub"}, SECRET, "HS256")
    wrong = jwt.encode({"exp": time.time() - 60, "boards": ["hush-board"]}, SECRET, "HS256")
    daemon = await relay(database.dsn, WS_TOKENS="hush-token:default", WS_JWT_SECRET=SECRET)
    for presented in ("hush-token", token, wrong, "hush-wrong", "hush.wrong.too"):
        await gets_in(daemon, presented)
    async with connect(f"{daemon.url}?token={token}", proxy=None) as connection:
        for message in ({"type": "authenticate", "token": wrong}, {"type": "authenticate", "hush-key": 1}):
            await connection.send(json.dumps(message))
            assert checked(await connection.recv())["type"] == "error"
    processes = process_list()
    metrics = str(daemon.metrics())
    await daemon.stop()

    for shown in (daemon.output, processes, metrics):
        for secret in ("hush", SECRET, token, wrong, token.split(".")[2], wrong.split(".")[2]):
            assert secret not in shown


async def test_foreign_pages_are_refused_and_its_own_is_not(database: Database, relay: Relays) -> None:
    """Without a word about origins: the guide's page and the relay's own get in, from this machine."""
    health = free_port()
    daemon = await relay(database.dsn, HEALTH_PORT=str(health), WS_TOKENS="one")
    for origin in ("http://localhost:4000", f"http://localhost:{health}", f"http://127.0.0.1:{health}"):
        assert await gets_in(daemon, "one", origin=Origin(origin))
    for origin in ("http://evil.example", "http://localhost", "null", f"http://evil.example:{health}"):
        assert not await gets_in(daemon, "one", origin=Origin(origin))


async def test_limits_are_those_of_the_settings(database: Database, relay: Relays) -> None:
    """Each of them reaches the connections."""
    daemon = await relay(
        database.dsn,
        WS_HEARTBEAT="100",
        WS_MAX_BOARDS="1",
        WS_MESSAGE_RATE="2",
        WS_IDLE_TIMEOUT="300",
        WS_HANDSHAKE_TIMEOUT="300",
        WS_TRUSTED_PROXIES="127.0.0.1",
        WS_RATE_LIMIT_PER_CLIENT="1",
        WS_MAY_READ="true",
        WS_TOKENS="one:a,b,default",
        WS_ORIGINS="https://app.example",
        WS_REQUIRE_ORIGIN="true",
    )

    def client(address: str, origin: str | None = "https://app.example") -> connect:
        headers = {"Authorization": "Bearer one", "X-Forwarded-For": address}
        allowed = Origin(origin) if origin else None
        return connect(daemon.url, additional_headers=headers, origin=allowed, proxy=None, max_queue=None)

    for number, origin in enumerate(("http://localhost:4000", None)):
        with pytest.raises(InvalidStatus):
            async with client(f"192.0.2.{10 + number}", origin):
                pass
    async with client("192.0.2.1") as connection:
        for board, expected in (("a", "board.sync"), ("b", "error")):
            await connection.send(json.dumps({"type": "subscribe", "boardId": board}))
            answer = checked(await connection.recv())
            assert answer["type"] == expected
        assert answer["data"]["code"] == "too_many_boards"
        for _ in range(40):
            await connection.send('{"type":"ping"}')
        await connection.wait_closed()
        assert connection.close_code == 1008
    with pytest.raises(InvalidStatus):
        async with client("192.0.2.1"):
            pass
    async with client("192.0.2.2") as idle:
        await idle.wait_closed()
        assert idle.close_code == 4008
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ws_port)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean "
        "language sql as 'select false'"
    )
    async with client("192.0.2.3") as refused:
        await refused.send(SUBSCRIBE)
        assert checked(await refused.recv())["data"]["code"] == "not_allowed"


async def test_rates_are_of_all_workers_together(database: Database, relay: Relays) -> None:
    """Whichever of them a client comes to."""
    daemon = await relay(database.dsn, WS_WORKERS="2", WS_RATE_LIMIT_PER_CLIENT="5")
    refused = 0
    for _ in range(12):
        try:
            async with connect(daemon.url, proxy=None):
                pass
        except InvalidStatus as ex:
            refused += ex.response.status_code == http.HTTPStatus.TOO_MANY_REQUESTS
    assert refused == 7
    assert daemon.metrics()["relay_refused_total too many connections a minute"] == 7


# TLS


async def name_of_the_server(daemon: Daemon, cert: Path) -> str:
    """Follow a board over TLS, trusting that certificate alone; return whom it names."""
    trusted = ssl.create_default_context(cafile=cert)
    async with connect(daemon.url.replace("ws:", "wss:"), ssl=trusted, proxy=None) as connection:
        await connection.send(SUBSCRIBE)
        assert checked(await connection.recv())["type"] == "board.sync"
        subject = connection.transport.get_extra_info("peercert")["subject"]
        return str(subject[0][0][1])


async def speak_plainly(daemon: Daemon) -> None:
    """Send what is no TLS; that connection ends, and nothing else."""
    with pytest.raises((InvalidMessage, OSError)):
        async with connect(daemon.url, proxy=None):
            pass


async def test_it_serves_over_tls_and_takes_a_new_certificate(
    database: Database, relay: Relays, tmp_path: Path
) -> None:
    """At SIGHUP; connections that are there go on with the old one."""
    cert, key = certificate(tmp_path, "first")
    daemon = await relay(database.dsn, WS_TLS_CERT=str(cert), WS_TLS_KEY=str(key))
    assert await name_of_the_server(daemon, cert) == "first"
    trusted = ssl.create_default_context(cafile=cert)
    async with connect(
        daemon.url.replace("ws:", "wss:"), ssl=trusted, proxy=None, max_size=None, max_queue=1
    ) as connection:
        certificate(tmp_path, "second")
        daemon.signal(signal.SIGHUP)
        await daemon.logged("access.reloaded")
        await speak_plainly(daemon)
        assert await name_of_the_server(daemon, cert) == "second"
        good = cert.read_bytes()
        certificate(tmp_path, "third")
        key.write_text("no key")
        daemon.signal(signal.SIGHUP)
        await daemon.logged("access.reload_failed")
        cert.write_bytes(good)  # what clients trust
        assert await name_of_the_server(daemon, cert) == "second"

        # Large boards go over it whole and in order, also to a slow reader: there too, the backlog is ours.
        database.execute(
            "insert into tasks (id, title, description) "
            "select 't' || i, 'T', repeat('x', 1000) from generate_series(1, 20000) i"
        )
        await connection.send(SUBSCRIBE)
        async with asyncio.timeout(20):
            board = checked(await connection.recv())
        assert len(board["data"]["lanes"]["backlog"]) == 20000
        database.execute("update tasks set title = 'U' where id = 't1'")
        assert checked(await connection.recv())["data"]["id"] == "t1"
