"""Rights on a NATS server with the configuration of deploy/, as publishers, edges and intruders find them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import secrets
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nkeys  # type: ignore[import-untyped]  # it has no types
import pytest
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, BadRequestError

from relay import config
from relay.nats.connection import StreamError
from relay.nats.jetstream import Stream
from tests.acceptance.support import SECONDS, Client, Daemon, Relays, run_relay
from tests.acceptance.test_edges import PublisherDaemon
from tests.certificates import certificate
from tests.nats import NATS_SERVER, NatsServer
from tests.servers import Database, NoServerError, do_without

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
PUBLISHERS_PASSWORD: Final = "let-the-publisher-in"
EDGES_PASSWORD: Final = "let-the-edges-in"
WRONG_PASSWORD: Final = "let-me-in"
SECRETS: Final = (PUBLISHERS_PASSWORD, EDGES_PASSWORD, WRONG_PASSWORD)
DOMAIN: Final = "relay"

WIDE_ROWS: Final = """
    insert into tasks (title, description, board_id)
    select 'Wide', repeat('x', 300000), 'other' from generate_series(1, 30)
"""
"""More than JetStream sends before it asks whether it has arrived."""


class GuardedServer(NatsServer):
    """A server with deploy/nats.conf, as it is there, and the certificates that go with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in ("server", "relays", "stranger"):
            (folder / name).mkdir()
        self.authority, key = certificate(folder / "server", "nats")
        self.certificate, self.key = certificate(folder / "relays", "relay")
        self.strangers_certificate, self.strangers_key = certificate(folder / "stranger", "stranger")
        settings = {
            "NATS_LISTEN": f"127.0.0.1:{self.port}",
            "NATS_STORE": folder / "store",
            "NATS_TLS_CERT": self.authority,
            "NATS_TLS_KEY": key,
            "NATS_TLS_CLIENTS": self.certificate,
            "NATS_PUBLISHER_PASSWORD": PUBLISHERS_PASSWORD,
            "NATS_EDGE_PASSWORD": EDGES_PASSWORD,
        }
        given = [f"{name}={value}" for name, value in settings.items()]
        assert NATS_SERVER is not None
        self._command = ["env", *given, NATS_SERVER, "--config", DEPLOY / "nats.conf"]

    def to(self, user: str, password: str, scheme: str = "tls") -> str:
        """Return the address as a publisher or an edge is given it."""
        return f"{scheme}://{user}:{password}@127.0.0.1:{self.port}"

    @property
    def known(self) -> dict[str, str]:
        """The settings by which a relay knows the server, and is known by it."""
        return {"NATS_CA": str(self.authority), "NATS_CERT": str(self.certificate), "NATS_KEY": str(self.key)}

    @property
    def publisher(self) -> dict[str, str]:
        """The settings of a publisher."""
        return {"PUBLISH_TO": self.to("publisher", PUBLISHERS_PASSWORD), **self.known}

    @property
    def edge(self) -> dict[str, Any]:
        """The settings of an edge."""
        return {"SERVE_FROM": self.to("edge", EDGES_PASSWORD), "NATS_DOMAIN": DOMAIN, **self.known}

    def violations(self) -> list[str]:
        """What somebody tried and may not."""
        return [line for line in self.log.splitlines() if "Violation" in line]

    @contextlib.asynccontextmanager
    async def login(self, user: str, password: str) -> AsyncIterator[Login]:
        """Connect with these credentials, and with any program but a relay."""
        context = ssl.create_default_context(cafile=self.authority)
        context.load_cert_chain(self.certificate, self.key)
        client, refusals = NatsClient(), asyncio.Queue[str]()

        async def refused(ex: Exception) -> None:
            await refusals.put(str(ex).lower())

        await client.connect(
            self.to(user, password, "nats"),
            tls=context,
            inbox_prefix=f"_INBOX_{user}",
            allow_reconnect=False,
            error_cb=refused,
        )
        try:
            yield Login(client, refusals)
        finally:
            await client.close()


@dataclass
class Login:
    """A connection to NATS, and what the server refuses it."""

    client: NatsClient
    refusals: asyncio.Queue[str]

    async def expect_no_publish(self, subject: str, data: bytes = b"") -> None:
        """Publish something, and see the server refuse it."""
        await self.client.publish(subject, data)
        await self._expect(f'publish to "{subject}"')

    async def expect_no_subscription(self, subject: str, queue: str = "") -> None:
        """Subscribe to something, and see the server refuse it."""
        await self.client.subscribe(subject, queue=queue)
        await self._expect(f'subscription to "{subject}"')

    async def flush(self) -> None:
        """Return once the server has all that was sent: one flush may overtake what was given just before."""
        await self.client.flush()
        await self.client.flush()

    async def _expect(self, what: str) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                assert what.lower() in await self.refusals.get()
        except TimeoutError:
            pytest.fail(f"the server does not refuse a {what}")


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[GuardedServer]:
    """Yield a running server."""
    try:
        server = GuardedServer(tmp_path / "nats")
    except NoServerError as error:
        do_without(str(error))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def publishing(database: Database, folder: Path, settings: Mapping[str, str]) -> AsyncIterator[PublisherDaemon]:
    """Run a publisher."""
    publisher = PublisherDaemon(folder, {"DATABASE_URL": database.dsn, **settings})
    try:
        yield await publisher.runs()
    finally:
        await publisher.end_and_show(sys.stdout)


def output_of(daemon: Daemon) -> str:
    """Return all that a daemon says of itself."""
    said = [daemon.output]
    for path in ("/health", "/ready", "/live", "/metrics"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.health_port, timeout=SECONDS)) as link:
            link.request("GET", path)
            said.append(link.getresponse().read().decode())
    return "\n".join(said)


def expect_no_secret(*daemons: Daemon) -> None:
    """See that no password is in what daemons say of themselves."""
    for daemon in daemons:
        assert [secret for secret in SECRETS if secret in output_of(daemon)] == []


# With their rights


async def test_documented_permissions_suffice_for_publishers_and_edges(
    nats: GuardedServer, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Boards, changes, questions, much at once, a second publisher that takes over: the server refuses nothing."""
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean "
        "language sql as 'select true'"
    )
    async with publishing(database, tmp_path, nats.publisher) as first:
        await first.logged("publisher.active")
        edge = await relay("", WS_MAY_READ="true", **nats.edge)
        async with publishing(database, tmp_path, nats.publisher) as second, Client.to(edge) as client:
            assert (await client.subscribe())["type"] == "board.sync"
            database.execute(WIDE_ROWS)
            await second.healthy()
            assert await first.stop() == 0
            await second.logged("publisher.active")
            database.execute("insert into tasks (title) values ('Late')")
            assert (await client.receive())["data"]["title"] == "Late"
            checked = run_relay("check", cwd=tmp_path, WS_PORT="0", HEALTH_PORT="0", **nats.edge)
            assert (checked.returncode, checked.stderr) == (0, "")
            expect_no_secret(second, edge)

    assert nats.violations() == []
    for daemon in (first, second, edge):
        assert [line for line in daemon.log() if line.get("logger") == "asyncio"] == []


# Strangers


async def test_a_stranger_is_refused_with_one_line(nats: GuardedServer, tmp_path: Path) -> None:
    """A wrong password or none, a wrong authority, no certificate or a stranger's, files that are none: no secret."""
    (tmp_path / "no.creds").write_text(f"no credentials, but {EDGES_PASSWORD}")
    stranger = {"NATS_CERT": str(nats.strangers_certificate), "NATS_KEY": str(nats.strangers_key)}
    cases: list[tuple[str, dict[str, str]]] = [
        ("Authorization Violation", {"SERVE_FROM": nats.to("edge", WRONG_PASSWORD)}),
        ("Authorization Violation", {"SERVE_FROM": nats.to("nobody", EDGES_PASSWORD)}),
        ("Authorization Violation", {"SERVE_FROM": f"tls://127.0.0.1:{nats.port}"}),
        ("certificate verify failed", {"NATS_CA": str(nats.strangers_certificate)}),
        ("certificate verify failed", {"NATS_CA": "", "NATS_CERT": "", "NATS_KEY": ""}),
        ("does it want a certificate", {"NATS_CERT": "", "NATS_KEY": ""}),
        ("does it want a certificate, NATS_CERT, or another one?", stranger),
        ("No such file", {"NATS_CA": str(tmp_path / "none.pem")}),
        ("No such file", {"NATS_CREDENTIALS": str(tmp_path / "none.creds")}),
        ("no.creds is no file of credentials", {"NATS_CREDENTIALS": str(tmp_path / "no.creds")}),
    ]
    for words, given in cases:
        settings = config.load({**nats.edge, **given})
        with pytest.raises(StreamError) as error:
            async with Stream.open(settings, settings.SERVE_FROM, "edge"):
                pass
        problem = str(error.value)
        assert problem.startswith(f"cannot connect to NATS at 127.0.0.1:{nats.port}: ")
        assert words in problem
        assert "\n" not in problem
        assert not any(secret in problem for secret in SECRETS)


async def test_wrong_password_is_a_problem_and_no_end(
    nats: GuardedServer, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Edge and publisher say so, in log and health, and try again."""
    refused = f"cannot connect to NATS at 127.0.0.1:{nats.port}: 'Authorization Violation'"
    edge = await relay("", healthy=False, **{**nats.edge, "SERVE_FROM": nats.to("edge", WRONG_PASSWORD)})
    wrong = {**nats.publisher, "PUBLISH_TO": nats.to("publisher", WRONG_PASSWORD)}
    async with publishing(database, tmp_path, wrong) as publisher:
        assert (await publisher.logged("publisher.problem"))["problem"] == refused
        assert (await edge.logged("feed.problem"))["problem"] == refused
        for daemon in (publisher, edge):
            assert daemon.health()[1]["problem"] == refused
        expect_no_secret(publisher, edge)


# Credentials in a file


class Issuer:
    """Signs JSON Web Tokens as nsc does: an operator for accounts, an account for users."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), kind)
        self._keys = nkeys.from_seed(self.seed)
        self.name = self._keys.public_key.decode()

    def signed(self, subject: str, kind: str, **claims: object) -> str:
        """Sign what is claimed of a subject."""
        issued = {"jti": secrets.token_hex(16), "iat": int(time.time()), "iss": self.name, "sub": subject}
        nats = {**claims, "type": kind, "version": 2}
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, {**issued, "name": kind, "nats": nats}]
        text = ".".join(encoded(json.dumps(part).encode()) for part in parts)
        return f"{text}.{encoded(self._keys.sign(text.encode()))}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def credentials(path: Path, token: str, seed: str) -> Path:
    """Write a file as nsc does."""
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return path


async def test_file_of_credentials_lets_in(database: Database, relay: Relays, tmp_path: Path) -> None:
    """A JWT with its seed, where an operator has accounts; with another's seed or none it is refused in one line."""
    operator, system, account, user, other = (
        Issuer(kind)
        for kind in (
            nkeys.PREFIX_BYTE_OPERATOR,
            *(nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER, nkeys.PREFIX_BYTE_USER),
        )
    )
    any_number = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    storage = {"mem_storage": 2**24, "disk_storage": 2**32, "streams": 1, "consumer": -1}
    accounts = {
        account.name: operator.signed(account.name, "account", limits={**any_number, **storage}),
        system.name: operator.signed(system.name, "account", limits=any_number),
    }
    try:
        server = NatsServer(
            tmp_path / "nats",
            f"operator: {operator.signed(operator.name, 'operator')}\nsystem_account: {system.name}\n"
            f"resolver: MEMORY\nresolver_preload: {json.dumps(accounts)}\n",
        )
    except NoServerError as error:
        do_without(str(error))
    token = account.signed(user.name, "user", pub={}, sub={}, subs=-1, data=-1, payload=-1)
    good = credentials(tmp_path / "good.creds", token, user.seed.decode())
    server.start()
    try:
        for seed, words in ((other.seed.decode(), "Authorization Violation"), ("SUAA", "nkeys: ")):
            bad = credentials(tmp_path / "bad.creds", token, seed)
            settings = config.load({"SERVE_FROM": server.url, "NATS_CREDENTIALS": str(bad)})
            with pytest.raises(StreamError, match=words) as refused:
                async with Stream.open(settings, settings.SERVE_FROM, "edge"):
                    pass
            assert seed not in str(refused.value)
        known = {"PUBLISH_TO": server.url, "NATS_CREDENTIALS": str(good)}
        async with publishing(database, tmp_path, known) as publisher:
            await publisher.logged("publisher.active")
            edge = await relay("", SERVE_FROM=server.url, NATS_CREDENTIALS=str(good))
            async with Client.to(edge) as client:
                assert (await client.subscribe())["type"] == "board.sync"
            for daemon in (publisher, edge):
                assert not any(secret in output_of(daemon) for secret in (token, user.seed.decode()))
    finally:
        server.stop()


# What they may not


async def filled(jetstream: JetStreamContext) -> JetStreamContext:
    """Make the stream as the publisher, with something in it."""
    await jetstream.add_stream(name="relay", subjects=["relay.board.*", "relay.all", "relay.state"])
    await jetstream.publish("relay.state", b"{}")
    return jetstream


async def test_edge_can_only_read(nats: GuardedServer) -> None:
    """Nothing that it tries changes the stream, answers an ask, or reads what is meant for a publisher."""
    async with nats.login("publisher", PUBLISHERS_PASSWORD) as publisher, nats.login("edge", EDGES_PASSWORD) as edge:
        jetstream = await filled(JetStreamContext(publisher.client))
        before = await jetstream.stream_info("relay")
        for subject in ("relay.state", "relay.all", "relay.board.x", "_INBOX_publisher.x", "_INBOX_edge.x", "_R_.x"):
            await edge.expect_no_publish(subject, b"{}")
        for prefix in ("$JS.API", "$JS.relay.API"):
            for what in (
                *("STREAM.CREATE.relay", "STREAM.UPDATE.relay", "STREAM.DELETE.relay", "STREAM.PURGE.relay"),
                *("STREAM.MSG.DELETE.relay", "STREAM.MSG.GET.other", "STREAM.SNAPSHOT.relay", "STREAM.RESTORE.relay"),
                *("STREAM.CREATE.other", "STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.other", "INFO"),
                *("STREAM.PEER.REMOVE.relay", "STREAM.LEADER.STEPDOWN.relay", "META.LEADER.STEPDOWN"),
                *("CONSUMER.DURABLE.CREATE.relay.x", "CONSUMER.CREATE.relay.x", "CONSUMER.CREATE.other"),
                *("CONSUMER.DELETE.relay.x", "CONSUMER.LIST.relay", "CONSUMER.NAMES.relay", "DIRECT.GET.relay"),
            ):
                await edge.expect_no_publish(f"{prefix}.{what}")
        for subject in (">", "relay.>", "relay.ask.x.board", "_INBOX_publisher.>", "$JS.>", "_R_.>", "$SYS.>", "*.>"):
            await edge.expect_no_subscription(subject)
        after = await jetstream.stream_info("relay")

    assert (after.config, after.state) == (before.config, before.state)
    assert publisher.refusals.empty()


async def test_edge_can_have_nobody_else_write(nats: GuardedServer) -> None:
    """Neither JetStream nor a publisher, by an answer; nor JetStream by what a consumer delivers."""
    async with nats.login("publisher", PUBLISHERS_PASSWORD) as publisher, nats.login("edge", EDGES_PASSWORD) as edge:
        jetstream = await filled(JetStreamContext(publisher.client))
        before = await jetstream.stream_info("relay")
        asked = asyncio.Queue[Msg]()
        await publisher.client.subscribe("relay.ask.x.board", cb=asked.put)
        await publisher.flush()
        for target in ("relay.state", "$JS.API.STREAM.PURGE.relay", "$JS.API.STREAM.DELETE.relay"):
            await edge.client.publish("$JS.relay.API.STREAM.INFO.relay", reply=target)
            await edge.client.publish("relay.ask.x.board", b"default", reply=target)
            async with asyncio.timeout(SECONDS):
                question = await asked.get()
            assert question.reply.startswith("_R_.")
            await publisher.client.publish(question.reply, b"")
            await publisher.flush()
            await deliver(edge, target)
        # Whatever of it is on its way in the server has arrived when this has: it goes the same way.
        inbox = edge.client.new_inbox()
        arrived = await edge.client.subscribe(inbox)
        await edge.flush()
        await deliver(edge, inbox)
        assert (await arrived.next_msg(timeout=SECONDS)).data == b"{}"
        after = await jetstream.stream_info("relay")

    entries = [(found.state.first_seq, found.state.last_seq, found.state.messages) for found in (before, after)]
    assert entries[0] == entries[1]
    assert edge.refusals.empty()


async def deliver(login: Login, subject: str) -> None:
    """Have a consumer deliver the stream to a subject, if JetStream takes that."""
    theirs = JetStreamContext(login.client, domain=DOMAIN)
    with contextlib.suppress(BadRequestError):  # it takes no subject of the stream's own
        await theirs.add_consumer(
            "relay",
            deliver_subject=subject,
            ack_policy=api.AckPolicy.NONE,
            headers_only=subject.startswith("$"),
            inactive_threshold=SECONDS,
        )


async def test_one_account_would_not_do(tmp_path: Path) -> None:
    """There the same rights let an edge have JetStream append to the stream: the reason for two accounts."""
    rights = 'publish: "$JS.API.STREAM.INFO.relay", subscribe: "_INBOX_edge.>"'
    users = f"{{user: all, password: a}}, {{user: edge, password: e, permissions: {{ {rights} }} }}"
    try:
        server = NatsServer(tmp_path / "nats", f"accounts {{ ONE {{ jetstream: enabled, users: [{users}] }} }}")
    except NoServerError as error:
        do_without(str(error))
    server.start()
    try:
        async with server.jetstream(user="all", password="a") as jetstream:
            await filled(jetstream)
            async with server.jetstream(user="edge", password="e", inbox_prefix="_INBOX_edge") as edge:
                client: Any = edge._nc  # noqa: SLF001  # the same connection
                arrived = await jetstream.subscribe(
                    "relay.state", stream="relay", deliver_policy=api.DeliverPolicy.NEW
                )
                await client.publish("$JS.API.STREAM.INFO.relay", reply="relay.state")
                assert b"stream_info_response" in (await arrived.next_msg(timeout=SECONDS)).data
    finally:
        server.stop()


async def test_publisher_can_only_append(nats: GuardedServer) -> None:
    """It alters no stream that is there, deletes nothing, makes no second stream, and reads no edge's inbox."""
    async with nats.login("publisher", PUBLISHERS_PASSWORD) as publisher:
        jetstream = await filled(JetStreamContext(publisher.client))
        for what in (
            *("STREAM.UPDATE.relay", "STREAM.DELETE.relay", "STREAM.PURGE.relay", "STREAM.MSG.DELETE.relay"),
            *("STREAM.CREATE.other", "STREAM.NAMES", "STREAM.INFO.other", "STREAM.SNAPSHOT.relay", "INFO"),
            *("CONSUMER.DURABLE.CREATE.relay.x", "CONSUMER.CREATE.relay.x", "CONSUMER.DELETE.relay.x"),
        ):
            await publisher.expect_no_publish(f"$JS.API.{what}")
        for subject in ("other", "relay.ask.x.board", "_INBOX_edge.x", "$SYS.REQ.SERVER.PING"):
            await publisher.expect_no_publish(subject)
        for subject in (">", "relay.>", "_INBOX_edge.>", "$JS.>", "$SYS.>"):
            await publisher.expect_no_subscription(subject)
        with pytest.raises(APIError, match="name already in use"):
            await jetstream.add_stream(name="relay", subjects=["relay.board.*"])


async def test_answer_goes_to_an_inbox_alone(own_nats: NatsServer, database: Database, tmp_path: Path) -> None:
    """In one account, where the server does not see to it: a publisher answers nobody by appending to the stream."""
    async with publishing(database, tmp_path, {"PUBLISH_TO": own_nats.url}) as publisher:
        await publisher.logged("feed.running")
        async with own_nats.jetstream() as jetstream:
            client: Any = jetstream._nc  # noqa: SLF001  # the same connection
            states = await client.subscribe("relay.state")
            state = json.loads((await states.next_msg(timeout=SECONDS)).data)
            place = f"relay.ask.{state['asked_at']}.board"
            await client.publish(place, b"default", reply="relay.board.forged")
            answers = await client.subscribe(inbox := client.new_inbox())
            await client.publish(place, b"default", reply=inbox)
            while not (answer := await answers.next_msg(timeout=SECONDS)).headers:
                pass  # it is at work
            assert json.loads(answer.data)["run"]
            found = await jetstream.stream_info("relay", subjects_filter="relay.board.>")
            assert found.state.subjects is None
        assert publisher.log("publisher.problem") == []
