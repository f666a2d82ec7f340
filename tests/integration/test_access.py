"""Access, on real sockets: credentials, boards, the database's word, rates and limits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.typing import Origin, Subprotocol

from relay import config
from relay.auth.gate import Gate
from relay.auth.keys import AccessError
from relay.auth.rates import Rates
from relay.auth.reload import Reloader
from relay.auth.tokens import Access, static_tokens
from relay.config.origins import Origins
from relay.config.proxies import Proxies
from relay.config.settings import DISCOVERY
from relay.websocket import server
from relay.websocket.limits import Limits
from tests.certificates import key_and_jwk
from tests.contract import checked
from tests.integration.client import Client, until
from tests.integration.conftest import Relay
from tests.servers import Database

SECRET = "a secret that is long enough, by far"


def token(boards: Sequence[str] | None = ("default",), seconds: float = 60, **claims: Any) -> str:
    named = {} if boards is None else {"boards": list(boards)}
    return jwt.encode({"exp": time.time() + seconds, **named, **claims}, SECRET, "HS256")


def guarded(**options: Any) -> Gate:
    """Return a gate with two static tokens, and for tokens signed with the secret."""
    return Gate(Access(static_tokens(["all", "some:default"], "test"), secret=SECRET, **options))


@asynccontextmanager
async def relay_of(database: Database, gate: Gate | None = None, **options: Any) -> AsyncIterator[Relay]:
    async with Relay(database.dsn, gate=gate, **options).running() as relay:
        yield relay


async def refused(url: str, **options: Any) -> InvalidStatus:
    """Try to connect, and return how that was refused."""
    with pytest.raises(InvalidStatus) as failure:
        async with connect(url, proxy=None, **options):
            pass
    return failure.value


async def said(connection: ClientConnection, message: object) -> Any:
    """Send a message and return the answer."""
    await connection.send(json.dumps(message))
    async with asyncio.timeout(20):
        return checked(await connection.recv())


SUBSCRIBE = {"type": "subscribe", "boardId": "default"}


async def test_each_way_to_present_a_credential_is_good(database: Database) -> None:
    """In the address, as a header, and as a subprotocol; the answer to a browser names the one that was taken."""
    async with relay_of(database, guarded()) as relay:
        for credential in ("all", "some", token()):
            async with connect(f"{relay.url}?token={credential}", proxy=None) as connection:
                assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
            header = {"Authorization": f"Bearer {credential}"}
            async with connect(relay.url, additional_headers=header, proxy=None) as connection:
                assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
            offered = [Subprotocol("relay"), Subprotocol(f"bearer.{credential}")]
            async with connect(relay.url, subprotocols=offered, proxy=None) as connection:
                assert connection.subprotocol == "relay"
                assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"


@pytest.mark.parametrize("query", ["", "?token=wrong", "?token=", "?token=a.b.c"])
async def test_without_a_good_credential_nobody_gets_in(database: Database, query: str) -> None:
    """The refusal is short, and the same whatever was wrong, which is counted."""
    async with relay_of(database, guarded()) as relay:
        refusal = await refused(relay.url + query)
        assert relay.endpoint.connections == 0

    assert refusal.response.status_code == 401
    assert refusal.response.headers["WWW-Authenticate"] == "Bearer"
    assert refusal.response.body == b"Unauthorized\n"
    assert relay.endpoint.refusals.counts.total() == 1


async def test_a_board_that_the_token_does_not_name_is_refused(database: Database) -> None:
    """In the same words whether it exists or not; the connection lives on."""
    database.execute("insert into tasks (board_id, title) values ('secret', 'S')")
    async with relay_of(database, guarded()) as relay, connect(f"{relay.url}?token=some", proxy=None) as connection:
        for board in ("secret", "nothing"):
            assert await said(connection, SUBSCRIBE | {"boardId": board}) == {
                "type": "error",
                "data": {"code": "not_allowed", "message": "this board may not be followed", "boardId": board},
            }
        assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"


async def test_connection_ends_when_its_token_expires(database: Database) -> None:
    """With a code of its own."""
    async with (
        relay_of(database, guarded()) as relay,
        # The leeway comes on top.
        connect(f"{relay.url}?token={token(seconds=-3)}", proxy=None) as connection,
    ):
        async with asyncio.timeout(20):
            await connection.wait_closed()
    assert connection.close_code == 4001


async def test_a_fresh_token_keeps_the_subscriptions(database: Database) -> None:
    """As far as it allows them; the connection outlives the old token."""
    old = token(["default", "old"], seconds=-2)
    async with (
        relay_of(database, guarded()) as relay,
        connect(f"{relay.url}?token={old}", proxy=None) as connection,
        connect(f"{relay.url}?token={old}", proxy=None) as stale,
    ):
        assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
        assert (await said(connection, SUBSCRIBE | {"boardId": "old"}))["type"] == "board.sync"
        answer = await said(connection, {"type": "authenticate", "token": token(["default"])})
        assert answer == {"type": "authenticated"}
        revoked = checked(await connection.recv())
        assert (revoked["data"]["code"], revoked["data"]["boardId"]) == ("not_allowed", "old")
        await stale.wait_closed()
        database.execute("insert into tasks (id, board_id, title) values ('o', 'old', 'T'), ('a', 'default', 'T')")
        assert checked(await connection.recv())["data"]["id"] == "a"


async def test_a_bad_token_on_the_way_changes_nothing(database: Database) -> None:
    """It is answered with an error that does not repeat it."""
    async with relay_of(database, guarded()) as relay, connect(f"{relay.url}?token=some", proxy=None) as connection:
        answer = await said(connection, {"type": "authenticate", "token": "hush"})
        assert answer["data"]["code"] == "not_authenticated"
        assert "hush" not in str(answer)
        answer = await said(connection, {"type": "authenticate", "token": {"hush": 1}})
        assert answer["data"]["code"] == "invalid_message"
        assert "hush" not in str(answer)
        assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"


async def test_a_client_that_guesses_tokens_is_closed(database: Database) -> None:
    """Good messages between the guesses do not help."""
    async with relay_of(database, guarded()) as relay, connect(f"{relay.url}?token=some", proxy=None) as connection:
        for number in range(5):
            await connection.send(json.dumps({"type": "authenticate", "token": f"guess-{number}"}))
            await connection.send('{"type":"ping"}')
        async with asyncio.timeout(20):
            await connection.wait_closed()
    assert connection.close_code == 1008
    assert relay.endpoint.refusals.counts.total() == 5


async def test_when_credentials_change_connections_are_checked_again(database: Database) -> None:
    """One whose token is gone is closed with a code of its own, one whose boards changed loses these, others stay."""
    gate = guarded()
    async with (
        relay_of(database, gate) as relay,
        connect(f"{relay.url}?token=all", proxy=None) as gone,
        connect(f"{relay.url}?token=some", proxy=None) as less,
        connect(f"{relay.url}?token={token()}", proxy=None) as same,
    ):
        for connection in (gone, less, same):
            assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
        gate.access = Access(static_tokens(["some:other"], "test"), secret=SECRET)
        relay.endpoint.check_grants()
        async with asyncio.timeout(20):
            await gone.wait_closed()
            revoked = checked(await less.recv())
        assert (revoked["data"]["code"], revoked["data"]["boardId"]) == ("not_allowed", "default")
        assert gone.close_code == 4003
        assert await said(same, {"type": "ping"}) == {"type": "pong"}


# Keys at an address


@asynccontextmanager
async def served(keys: dict[str, Any], path: str = "/keys") -> AsyncIterator[tuple[str, list[float]]]:
    """Serve keys over HTTP; yield the address, and the times at which it was asked."""
    asked: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        asked.append(time.monotonic())
        return web.json_response(keys)

    app = web.Application()
    app.router.add_get(path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{path}", asked
    finally:
        await runner.cleanup()


async def gets_in(relay: Relay, key: ec.EllipticCurvePrivateKey, kid: str, **claims: str) -> bool:
    """Tell whether a token that is signed with a key opens the board."""
    signed = jwt.encode(
        {"exp": time.time() + 60, "boards": ["default"], **claims}, key, "ES256", headers={"kid": kid}
    )
    try:
        async with connect(f"{relay.url}?token={signed}", proxy=None) as connection:
            return bool((await said(connection, SUBSCRIBE))["type"] == "board.sync")
    except InvalidStatus:
        return False


async def test_keys_that_are_rotated_at_an_address_are_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is signed with a new key gets in at once; a flood of unknown keys asks the address once."""
    (one, one_jwk), (two, two_jwk) = key_and_jwk("one"), key_and_jwk("two")
    keys = {"keys": [one_jwk]}
    async with served(keys) as (address, asked):
        guard = Reloader(config.load({"WS_JWT_KEYS": address}))
        await guard.open()
        async with relay_of(database, guard.gate, new_keys=guard.new_keys) as relay:
            assert await gets_in(relay, one, "one")
            keys["keys"] = [one_jwk, two_jwk]
            assert not await gets_in(relay, two, "two")  # it was asked just now
            monkeypatch.setattr("relay.auth.reload.SOONEST_SECONDS", 0)
            assert await gets_in(relay, two, "two")
            assert await gets_in(relay, one, "one")
            monkeypatch.setattr("relay.auth.reload.SOONEST_SECONDS", 10)
            answers = await asyncio.gather(*(gets_in(relay, one, f"key-{number}") for number in range(20)))
            assert not any(answers)
            assert len(asked) == 2


async def test_the_issuer_says_where_its_keys_are(database: Database) -> None:
    """An issuer's address is enough: only its tokens get in then, and a description of another is refused."""
    one, one_jwk = key_and_jwk("one")
    described: dict[str, Any] = {}
    async with served({"keys": [one_jwk]}) as (keys, _), served(described, DISCOVERY) as (discovery, _):
        issuer = discovery.removesuffix(DISCOVERY)
        described |= {"issuer": issuer, "jwks_uri": keys}
        settings = config.load({"WS_JWT_ISSUER": issuer})
        assert not settings.is_open
        guard = Reloader(settings)
        await guard.open()
        async with relay_of(database, guard.gate) as relay:
            assert await gets_in(relay, one, "one", iss=issuer)
            assert not await gets_in(relay, one, "one", iss="https://other.example")
        for wrong in ({"issuer": "https://other.example"}, {"jwks_uri": "http://other.example/keys"}):
            described |= {"issuer": issuer, "jwks_uri": keys} | wrong
            with pytest.raises(AccessError, match=r"^WS_JWT_ISSUER: http://127"):
                await Reloader(settings).open()


async def test_an_address_that_is_away_changes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that were good stay good."""
    monkeypatch.setattr("relay.auth.reload.SOONEST_SECONDS", 0)
    one, one_jwk = key_and_jwk("one")
    async with served({"keys": [one_jwk]}) as (address, _):
        guard = Reloader(config.load({"WS_JWT_KEYS": address}))
        await guard.open()
    async with relay_of(database, guard.gate, new_keys=guard.new_keys) as relay:
        assert not await gets_in(relay, one, "unknown")
        assert await gets_in(relay, one, "one")


# The database's word


RULE = """
    create or replace function relay.may_read(claims jsonb, board text) returns boolean language sql stable
    as $$ select claims ->> 'sub' = board or board = 'public' $$
"""


async def test_the_database_decides_about_boards(database: Database) -> None:
    """By the claims of the token, which need name no boards then."""
    database.execute(RULE)
    url = f"?token={token(None, sub='mine')}"
    async with (
        relay_of(database, guarded(database_decides=True), judged=True) as relay,
        connect(relay.url + url, proxy=None) as connection,
    ):
        assert (await said(connection, SUBSCRIBE))["data"]["code"] == "not_allowed"
        for board in ("mine", "public"):
            assert (await said(connection, SUBSCRIBE | {"boardId": board}))["type"] == "board.sync"


async def test_a_board_that_the_token_does_not_name_is_refused_whatever_the_database_says(database: Database) -> None:
    """Both must agree."""
    database.execute(RULE)
    async with (
        relay_of(database, guarded(database_decides=True), judged=True) as relay,
        connect(f"{relay.url}?token=some", proxy=None) as connection,
    ):
        assert (await said(connection, SUBSCRIBE | {"boardId": "public"}))["data"]["code"] == "not_allowed"


async def test_until_it_is_replaced_the_databases_rule_is_the_tokens(database: Database) -> None:
    """A client with a token that names boards may read these; one without a token, nothing."""
    async with relay_of(database, guarded(database_decides=True), judged=True) as relay:
        async with connect(f"{relay.url}?token=some", proxy=None) as connection:
            assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
        async with connect(f"{relay.url}?token={token(None)}", proxy=None) as connection:
            assert (await said(connection, SUBSCRIBE))["data"]["code"] == "not_allowed"
    async with relay_of(database, judged=True) as relay, connect(relay.url, proxy=None) as connection:
        assert (await said(connection, SUBSCRIBE))["data"]["code"] == "not_allowed"


async def test_when_the_answer_changes_live_subscriptions_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets an error for the board it may not follow any more, and nothing more of it."""
    monkeypatch.setattr(server, "ASK_AGAIN_SECONDS", 0.05)
    database.execute(RULE)
    async with relay_of(database, judged=True) as relay, Client.to(relay.url) as client:
        assert (await client.subscribe("public"))[0] == "board.sync"
        database.execute(RULE.replace("board = 'public'", "false"))
        kind, data = await client.receive()
        assert (kind, data["code"], data["boardId"]) == ("error", "not_allowed", "public")
        database.execute("insert into tasks (board_id, title) values ('public', 'T')")
        await client.send({"type": "ping"})
        assert (await client.receive())[0] == "pong"


@pytest.mark.parametrize(
    "body",
    ["select 1 / 0 = 0", "select null::boolean", "select pg_sleep(60) is null"],
    ids=["fails", "null", "hangs"],
)
async def test_a_rule_that_gives_no_answer_is_a_no(database: Database, body: str) -> None:
    """And the boards and changes of others go on."""
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean language plpgsql "
        f"as $$ begin if board = 'default' then return true; end if; return ({body}); end $$"
    )
    async with relay_of(database, judged=True) as relay, connect(relay.url, proxy=None) as connection:
        assert (await said(connection, SUBSCRIBE | {"boardId": "other"}))["data"]["code"] == "not_allowed"
        assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
        assert relay.feed.problem is None


async def test_a_question_that_fails_is_a_no_to_nobody_else(database: Database) -> None:
    """Those that are asked in the same statement have their answers."""
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean language plpgsql "
        "as $$ begin return 1 / (board <> 'bad')::integer = 1; end $$"
    )
    async with Relay(database.dsn).running() as relay:
        await until(lambda: relay.feed.problem is None)
        boards = ["a", "b", "bad", "c", "d", "bad", "e"]
        assert await relay.feed.may_read([({}, board) for board in boards]) == [board != "bad" for board in boards]


async def test_a_fresh_tokens_boards_are_decided_again_at_once(database: Database) -> None:
    """By its own claims: what the database said of the token before it counts no more, nor what it has yet to say."""
    database.execute(
        RULE.replace("claims ->> 'sub' = board", "pg_sleep(0.2) is not null and claims ->> 'sub' = board")
    )
    async with (
        relay_of(database, guarded(database_decides=True), judged=True) as relay,
        connect(f"{relay.url}?token={token(None, sub='mine')}", proxy=None) as connection,
    ):
        assert (await said(connection, SUBSCRIBE | {"boardId": "mine"}))["type"] == "board.sync"
        await connection.send(json.dumps(SUBSCRIBE | {"boardId": "yours"}))
        assert (await said(connection, {"type": "ping"})) == {"type": "pong"}
        answer = await said(connection, {"type": "authenticate", "token": token(None, sub="yours")})
        assert answer == {"type": "authenticated"}
        async with asyncio.timeout(server.ASK_AGAIN_SECONDS / 2):  # at once, and not when all are asked again
            found = [checked(await connection.recv()) for _ in range(2)]
        assert {message["type"] for message in found} == {"error", "board.sync"}
        [refusal] = [message["data"] for message in found if message["type"] == "error"]
        assert (refusal["code"], refusal["boardId"]) == ("not_allowed", "mine")
        assert relay.hub.following(next(iter(relay.endpoint.clients)).outbox) == ["yours"]


async def test_a_token_that_allows_the_same_asks_nothing(database: Database) -> None:
    """However often it is presented; one with other claims is as much work as the boards that are asked about."""
    judge = Judge()
    endpoint_options: Any = {"gate": guarded(database_decides=True), "limits": Limits(messages_a_second=50)}
    async with Relay(database.dsn, authorizer=judge, **endpoint_options).running() as relay:
        await until(lambda: relay.feed.problem is None)
        async with connect(f"{relay.url}?token={token(None, sub='me')}", proxy=None) as connection:
            for number in range(60):
                assert (await said(connection, SUBSCRIBE | {"boardId": f"b{number}"}))["type"] == "board.sync"
            asked = len(judge.asked)
            for seconds in range(61, 71):
                fresh = {"type": "authenticate", "token": token(None, seconds, sub="me")}
                assert await said(connection, fresh) == {"type": "authenticated"}
            assert len(judge.asked) == asked == 60
            for number in range(8):  # a full bucket is good for four of them
                await connection.send(json.dumps({"type": "authenticate", "token": token(None, sub=f"{number}")}))
            answers = [checked(await connection.recv()) for _ in range(8)]
            refused = [answer for answer in answers if answer["type"] == "error"]
            assert {answer["data"]["code"] for answer in refused} == {"too_many_messages"}
            assert len(judge.asked) <= 60 + (8 - len(refused)) * 60


class Judge:
    """Says yes to everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []

    async def may_read(self, questions: Sequence[tuple[Any, str]]) -> list[bool]:
        self.asked += questions
        return [True] * len(questions)


async def test_a_client_that_unsubscribes_before_the_answer_is_sent_nothing(database: Database) -> None:
    """The wish that counts is the last one."""
    database.execute(RULE)
    async with relay_of(database, judged=True) as relay, Client.to(relay.url) as client:
        await client.send({"type": "subscribe", "boardId": "public"})
        await client.send({"type": "unsubscribe", "boardId": "public"})
        await until(lambda: relay.feed.problem is None)
        database.execute("insert into tasks (board_id, title) values ('public', 'T')")
        await client.send({"type": "ping"})
        assert (await client.receive())[0] == "pong"


async def test_a_client_that_left_before_the_answer_follows_nothing(database: Database) -> None:
    """Even if it left without a word: a board of nobody would be kept for ever."""
    database.execute(
        "create or replace function relay.may_read(claims jsonb, board text) returns boolean language plpgsql "
        "as $$ begin perform pg_sleep(0.5); return true; end $$"
    )
    async with relay_of(database, judged=True) as relay, Client.to(relay.url) as other:
        async with connect(relay.url, proxy=None) as connection:
            await connection.send(json.dumps({"type": "subscribe", "boardId": "public"}))
            assert await said(connection, {"type": "ping"}) == {"type": "pong"}
            sock = connection.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # by a reset
            connection.transport.abort()
        await until(lambda: relay.endpoint.connections == 1)
        await other.subscribe("public")
        assert relay.hub.subscriptions == 1


@pytest.mark.parametrize(
    ("offered", "origin", "reason"),
    [
        (["relay", "bearer.wrong"], None, "wrong token: DecodeError"),
        (["relay"], None, "no credential"),
        (["relay", "bearer.all"], "http://evil.example", "foreign origin"),
    ],
)
async def test_a_client_that_knows_our_close_codes_is_refused_by_one(
    database: Database, offered: list[str], origin: str | None, reason: str
) -> None:
    """A browser hides HTTP 401 from its pages; a client that offers our subprotocol gets a close code instead."""
    gate = Gate(Access(static_tokens(["all"], "test"), secret=SECRET), origins=Origins.of(["http://localhost:4000"]))
    async with relay_of(database, gate) as relay:
        async with connect(
            relay.url,
            subprotocols=list(map(Subprotocol, offered)),
            origin=Origin(origin) if origin else None,
            proxy=None,
        ) as connection:
            with pytest.raises(ConnectionClosedError):
                await connection.recv()
        assert (connection.close_code, connection.subprotocol) == (4003, "relay")
        assert connection.close_reason == "give a good token, from an allowed origin"
        await until(lambda: relay.endpoint.arrivals == 0)

        assert relay.endpoint.refusals.counts == {reason: 1}
        assert (relay.endpoint.opened, relay.endpoint.connections, relay.hub.subscriptions) == (0, 0, 0)


# Origins, rates, limits


async def test_pages_of_foreign_origins_are_refused_before_the_upgrade(database: Database) -> None:
    """With 401, as the guide's server does."""
    async with relay_of(database, Gate(origins=Origins.of(["http://localhost:4000"]))) as relay:
        assert (await refused(relay.url, origin=Origin("http://evil.example"))).response.status_code == 401
        async with connect(relay.url, origin=Origin("http://LOCALHOST:4000"), proxy=None) as connection:
            assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"


async def test_too_many_connections_a_minute_are_refused(database: Database) -> None:
    """With 429, and the seconds to wait; those that are there notice nothing."""
    async with (
        relay_of(database, Gate(rates=Rates(per_client=2, total=0))) as relay,
        connect(relay.url, proxy=None) as connection,
        connect(relay.url, proxy=None),
    ):
        refusal = await refused(relay.url)
        assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"

    assert refusal.response.status_code == 429
    assert 1 <= int(refusal.response.headers["Retry-After"]) <= 30
    assert relay.endpoint.refusals.counts == {"too many connections a minute": 1}


async def test_one_of_a_flood_is_answered_before_it_says_anything(database: Database) -> None:
    """In few bytes, and the connection ends: it costs next to nothing."""
    async with (
        relay_of(database, Gate(rates=Rates(per_client=1, total=0))) as relay,
        connect(relay.url, proxy=None),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.endpoint.port)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: ")
    assert b"WS_RATE_LIMIT_PER_CLIENT" in answer
    assert len(answer) < 400


class Full:
    """A listening socket when no file is free, once."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._full = True

    def fileno(self) -> int:
        return self._listening.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self._full:
            self._full = False
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listening.accept()


async def test_when_no_file_is_free_it_goes_on_as_soon_as_one_is(database: Database) -> None:
    """A client that comes meanwhile waits, and is served then."""
    async with relay_of(database) as relay:
        endpoint = relay.endpoint
        listener = endpoint.listener
        listener._accept(cast(socket.socket, Full(listener._sockets[0])))  # noqa: SLF001  # as the event loop does
        assert listener.problem
        assert endpoint.refusals.counts == {"cannot accept: Too many open files": 1}
        async with connect(relay.url, proxy=None) as connection:
            assert (await said(connection, SUBSCRIBE))["type"] == "board.sync"
        assert listener.problem is None


async def test_a_lack_of_file_descriptors_is_not_a_problem_once_nobody_waits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a balancer that asks whether it is ready would never send a client again."""
    monkeypatch.setattr("relay.websocket.listener.RETRY_SECONDS", 0.01)
    async with relay_of(database) as relay:
        listener = relay.endpoint.listener
        listener._accept(cast(socket.socket, Full(listener._sockets[0])))  # noqa: SLF001  # as the event loop does
        assert listener.problem
        await until(lambda: listener.problem is None)


async def test_behind_a_trusted_proxy_its_clients_are_counted(database: Database) -> None:
    """Each by itself, by what the proxy says of them."""
    gate = Gate(rates=Rates(per_client=1, total=0), trusted=Proxies.of("127.0.0.1"))
    async with relay_of(database, gate) as relay:
        for client in ("198.51.100.1", "198.51.100.2"):
            async with connect(relay.url, additional_headers={"X-Forwarded-For": client}, proxy=None):
                pass
        refusal = await refused(relay.url, additional_headers={"X-Forwarded-For": "1.1.1.1, 198.51.100.2"})
    assert refusal.response.status_code == 429


async def test_a_full_relay_says_when_to_come_back(database: Database) -> None:
    """503, and Retry-After."""
    async with relay_of(database, max_connections=1) as relay, connect(relay.url, proxy=None):
        refusal = await refused(relay.url)
    assert (refusal.response.status_code, refusal.response.headers["Retry-After"]) == (503, "5")


async def test_too_many_boards_are_refused(database: Database) -> None:
    """One that is followed already may be asked for again, and leaving one makes room."""
    async with relay_of(database, limits=Limits(boards=2)) as relay, Client.to(relay.url) as client:
        for board in ("a", "b", "a"):
            assert (await client.subscribe(board))[0] == "board.sync"
        kind, data = await client.subscribe("c")
        assert (kind, data["code"], data["boardId"]) == ("error", "too_many_boards", "c")
        await client.send({"type": "unsubscribe", "boardId": "a"})
        assert (await client.subscribe("c"))[0] == "board.sync"


async def test_too_many_messages_are_refused_and_then_the_client_is(database: Database) -> None:
    """A flood is answered a few times, and closed."""
    async with (
        relay_of(database, limits=Limits(messages_a_second=5)) as relay,
        connect(relay.url, proxy=None) as connection,
    ):
        for _ in range(100):
            await connection.send('{"type":"ping"}')
        received = []
        with contextlib.suppress(ConnectionClosedError):
            while True:
                received.append(checked(await connection.recv())["type"])

    assert connection.close_code == 1008
    assert received[:20] == ["pong"] * 20
    assert set(received[20:]) == {"error"}


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CONT])
async def test_too_many_frames_are_too_many_messages(database: Database, opcode: Opcode) -> None:
    """Pings, pongs that nobody asked for and empty pieces of a message are work too."""
    async with (
        relay_of(database, limits=Limits(messages_a_second=5)) as relay,
        connect(relay.url, proxy=None, max_queue=None) as connection,
    ):
        begin = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
        more = Frame(opcode, b"", fin=opcode is not Opcode.CONT).serialize(mask=True)
        connection.transport.write(begin + more * 100)
        async with asyncio.timeout(20):
            await connection.wait_closed()
    assert connection.close_code == 1008


async def test_a_client_that_follows_no_board_for_long_is_closed(database: Database) -> None:
    """One that follows a board is not."""
    async with (
        relay_of(database, heartbeat=0.1, limits=Limits(idle_seconds=0.3)) as relay,
        connect(relay.url, proxy=None) as idle,
        Client.to(relay.url) as client,
    ):
        await client.subscribe("default")
        async with asyncio.timeout(20):
            await idle.wait_closed()
        assert await client.until_last(database) == []
    assert idle.close_code == 4008


async def test_when_all_backlogs_are_too_much_nobody_is_given_more(database: Database) -> None:
    """Clients that do not read fall behind long before their own limit, and are synced when they read again."""
    limits = Limits(send_buffer=1 << 30, all_buffers=1 << 20)
    async with relay_of(database, limits=limits) as relay, Client.to(relay.url) as client:
        await client.subscribe("default")
        client.stop_reading()
        for number in range(40):
            database.execute(
                "insert into tasks (id, title, description) values (%s, 'T', repeat('x', 500000))", f"t{number}"
            )
            await asyncio.sleep(0)
        await until(lambda: relay.hub.fell_behind > 0)
        client.go_on_reading()
        await client.until_last(database)
        assert len(client.tasks) == 41
        await until(lambda: relay.endpoint.buffered == 0)
