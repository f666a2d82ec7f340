"""The board page in Chromium: two windows in step, a relay that goes and comes, tokens, what strangers may try."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import pytest
import pytest_asyncio
from playwright.async_api import Browser, CDPSession, Locator, Page, Route, expect

from relay.auth.tokens import LEEWAY_SECONDS
from relay.http.page import policy
from relay.postgres.embedded import free_port
from tests.acceptance.support import RELAY, Daemon, Program, Relays, until
from tests.acceptance.test_guide import installed_browser
from tests.proxy import Proxy
from tests.servers import Database, Server, temporary_database

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "s" * 32
CUT_OFF: Final = re.compile(r"WebSocket connection to .* failed|net::ERR_(CONNECTION|INTERNET)")
"""What Chromium itself says of a link that is cut, or of a relay that lets nobody in."""


# What the tests share ---------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Yield the browser that is installed."""
    async with installed_browser() as started:
        yield started


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a folder that Postgres's user may pass through, as /tmp is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(folder: Path) -> AsyncIterator[str]:
    """Run the demo, and yield the page's address: the first that it prints."""
    options = ("--ws-port", "0", "--health-port", "0")
    program = Program([RELAY, "demo", *options], folder, {"TMPDIR": str(folder)})
    try:
        address = re.compile(r"\b(?:https?|wss?|postgresql)://\S+")
        await until(lambda: address.search(program.output) or program.exit_code is not None, "the page's address")
        found = address.search(program.output)
        assert found, program.output
        assert re.fullmatch(r"http://localhost:\d+/", found[0])
        yield found[0]
    finally:
        program.end()


@pytest.fixture(scope="module")
def tasks(server: Server, _template: str) -> Iterator[Database]:
    """Yield a database for all tests of the module: each has a board of its own."""
    with temporary_database(server, _template) as dsn, Database(dsn) as database:
        yield database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relays(folder: Path, tasks: Database) -> AsyncIterator[Relays]:
    """Yield what starts daemons with a page; they end with the module, and before their database."""
    assert tasks
    async with AsyncExitStack() as stack:
        started = Relays(folder, stack)
        yield started
        for daemon in started.started:
            stack.push_async_callback(daemon.end_and_show, sys.stdout)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(relays: Relays, tasks: Database) -> Daemon:
    """Return a daemon that asks for no token."""
    return await relays(tasks.dsn, HEALTH_PORT=str(free_port()))


@dataclass
class Window:
    """A window of the browser, and what it complained of."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def card(self, title: str) -> Locator:
        return self.page.locator(".lane .card").filter(has_text=title)

    def in_lane(self, lane: str, title: str) -> Locator:
        return self.page.locator(f'.lane[data-lane="{lane}"] .card').filter(has_text=title)

    async def is_(self, state: str) -> None:
        """Wait until it says how it is connected."""
        await expect(self.page.locator("#state")).to_have_attribute("data-state", state, timeout=10_000)

    async def add(self, title: str, lane: str = "todo") -> None:
        """Add a task by hand."""
        await self.page.locator(f'.lane[data-lane="{lane}"] .add').click()
        await self.page.keyboard.type(title)
        await self.page.keyboard.press("Enter")
        await self.page.keyboard.press("Escape")
        await expect(self.in_lane(lane, title)).to_have_count(1)


Open = Callable[..., Awaitable[Window]]


@asynccontextmanager
async def opening(browser: Browser) -> AsyncIterator[Open]:
    """Yield what opens windows; none of their scripts may have had a fault, or broken the policy, in the end."""
    opened: list[Window] = []

    async def open_window(url: str, **options: Any) -> Window:
        context = await browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | options))
        new = Window(await context.new_page())
        opened.append(new)
        new.page.on("pageerror", lambda error: new.faults.append(str(error)))
        new.page.on("console", lambda said: new.faults.extend([said.text] if said.type == "error" else []))
        await new.page.goto(url)
        return new

    yield open_window
    for each in opened:
        await each.page.context.close()
    assert [fault for each in opened for fault in each.faults if not CUT_OFF.search(fault)] == []


@pytest_asyncio.fixture(loop_scope="module")
async def window(browser: Browser) -> AsyncIterator[Open]:
    """Yield what opens windows, for one test."""
    async with opening(browser) as open_window:
        yield open_window


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(browser: Browser, demo: str) -> AsyncIterator[tuple[Window, Window]]:
    """Yield two windows of the demo, for all tests of it."""
    async with opening(browser) as open_window:
        one, other = await asyncio.gather(open_window(demo), open_window(demo))
        await asyncio.gather(one.is_("live"), other.is_("live"))
        yield one, other


def address(of: Daemon, board: str) -> str:
    return f"http://localhost:{of.health_port}/?board={board}"


# The demo, in which the page writes -------------------------------------------------------------------------------


async def test_two_windows_show_the_same_board(pair: tuple[Window, Window]) -> None:
    """What is added, edited and deleted in one window happens in the other."""
    one, other = pair
    await one.add("Paint the fence")
    await expect(other.in_lane("todo", "Paint the fence")).to_have_count(1)

    await other.card("Paint the fence").locator(".title").click()
    await other.page.get_by_label("Title").fill("Paint the fence green")
    await other.page.get_by_label("Lane").select_option("done")
    await other.page.get_by_label("Hours").fill("2.5")
    await other.page.get_by_role("button", name="Save").click()
    await expect(one.in_lane("done", "Paint the fence green")).to_contain_text("2.5 h")

    await one.in_lane("done", "Paint the fence green").locator(".title").press("Delete")
    await expect(other.card("Paint the fence")).to_have_count(0)
    await expect(one.card("Paint the fence")).to_have_count(0)


async def test_a_drag_is_seen_in_the_other_window(pair: tuple[Window, Window]) -> None:
    """A card that the mouse takes to another lane goes there in both windows, and the click opens nothing."""
    one, other = pair
    await one.add("Carry me")
    await expect(other.card("Carry me")).to_have_count(1)

    source = await one.card("Carry me").bounding_box()
    target = await one.page.locator('.lane[data-lane="recovery"]').bounding_box()
    assert source
    assert target
    await one.page.mouse.move(source["x"] + 30, source["y"] + 12)
    await one.page.mouse.down()
    await one.page.mouse.move(target["x"] + 60, target["y"] + 300, steps=4)
    await expect(one.page.locator(".lane.target")).to_have_attribute("data-lane", "recovery")
    await expect(other.in_lane("todo", "Carry me")).to_have_count(1)
    await one.page.mouse.up()

    await expect(other.in_lane("recovery", "Carry me")).to_have_count(1)
    await expect(one.in_lane("recovery", "Carry me")).to_have_count(1)
    await expect(one.page.locator("#stage .card")).to_have_count(0)
    await expect(one.page.locator("#details")).to_be_hidden()
    await expect(one.page.locator("#latency-value")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    await one.card("Carry me").locator(".title").press("Delete")


class Finger:
    """A finger on a window's screen: the browser's own input, of which come scrolling and taps as well."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session

    @classmethod
    async def on(cls, window: Window) -> Finger:
        return cls(await window.page.context.new_cdp_session(window.page))

    async def press(self, x: float, y: float) -> None:
        await self._dispatch("touchStart", (x, y))

    async def move(self, x: float, y: float) -> None:
        await self._dispatch("touchMove", (x, y))

    async def lift(self) -> None:
        await self._dispatch("touchEnd")

    async def swipe(self, x: float, y: float, by: float) -> None:
        """Press, move sideways and lift; nothing is awaited in between, for on a slow machine that were resting."""
        steps = [self.move(x + by * step / 10, y) for step in range(1, 11)]
        await asyncio.gather(self.press(x, y), *steps, self.lift())

    async def _dispatch(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y} for x, y in points]
        await self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})


PHONE: Final[dict[str, Any]] = {"viewport": {"width": 360, "height": 780}, "has_touch": True, "is_mobile": True}


@pytest_asyncio.fixture(loop_scope="module")
async def phone(demo: str, window: Open) -> Window:
    """Return the demo on a phone, which shows one lane at a time, and the board's whole name."""
    one = await window(demo, **PHONE)
    await one.is_("live")
    assert await one.page.locator("#board").evaluate("it => it.scrollWidth <= it.clientWidth")
    return one


async def place(of: Locator) -> tuple[float, float]:
    """Return the middle of something on the screen."""
    box = await of.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


_IS_AT_THE_END: Final = """() => {
    const lanes = document.getElementById("lane-list");
    return lanes.scrollLeft + lanes.clientWidth > lanes.scrollWidth - 2;
}"""


async def test_a_finger_that_rests_takes_a_card_along(pair: tuple[Window, Window], phone: Window) -> None:
    """Held for a moment, a card is carried past the edge of a phone to the last lane, and is there in all windows."""
    one, _ = pair
    await one.add("Touch me", "backlog")
    x, y = await place(phone.in_lane("backlog", "Touch me"))
    finger = await Finger.on(phone)
    await finger.press(x, y)
    await expect(phone.page.locator(".card.lifted")).to_have_text(re.compile("Touch me"))
    await finger.move(PHONE["viewport"]["width"] - 10, y)
    await phone.page.wait_for_function(_IS_AT_THE_END)  # sooner, a gap between lanes may be where the card was
    await finger.move(x, y)
    last = phone.page.locator(".lane").last
    await expect(last).to_contain_class("target")
    lane = await last.get_attribute("data-lane")
    assert lane is not None
    await finger.lift()

    await expect(one.in_lane(lane, "Touch me")).to_have_count(1)
    await expect(phone.in_lane(lane, "Touch me")).to_be_in_viewport()
    await expect(phone.page.locator("#details")).to_be_hidden()
    await one.card("Touch me").locator(".title").press("Delete")


async def test_a_finger_that_moves_at_once_scrolls(pair: tuple[Window, Window], phone: Window) -> None:
    """A swipe over a card brings the next lanes and leaves the card where it is; a tap opens it."""
    one, _ = pair
    await one.add("Leave me", "backlog")
    card = phone.in_lane("backlog", "Leave me")
    x, y = await place(card)
    await (await Finger.on(phone)).swipe(x, y, -280)
    await expect(card).not_to_be_in_viewport()
    await expect(phone.page.locator("body.dragging, .lifted")).to_have_count(0)

    await card.scroll_into_view_if_needed()
    await card.tap()
    await expect(phone.page.get_by_label("Title")).to_have_value("Leave me")
    await expect(phone.page.get_by_label("Lane")).to_have_value("backlog")
    await phone.page.get_by_role("button", name="Delete").tap()
    await expect(one.card("Leave me")).to_have_count(0)


_NOTE_WHAT_IS_SAID: Final = """() => {
  const said = document.getElementById("said");
  const news = new EventTarget();
  let all = "";
  new MutationObserver(() => {
    all += said.textContent + "; ";
    news.dispatchEvent(new Event("said"));
  }).observe(said, { childList: true });
  window.saidOf = (wanted) => new Promise((done) => {
    const check = () => wanted.test(all) && done(true);
    news.addEventListener("said", check);
    check();
  });
}"""


async def test_the_keyboard_moves_a_card_and_keeps_it(pair: tuple[Window, Window]) -> None:
    """Shift and an arrow move the card on which the focus is, and stays; arrows alone walk; it is said aloud."""
    one, _ = pair
    await one.add("Walk with me", "in_progress")
    title = one.card("Walk with me").locator(".title")
    await title.focus()
    await one.page.evaluate(_NOTE_WHAT_IS_SAID)
    await one.page.keyboard.press("Shift+ArrowRight")
    await expect(one.in_lane("done", "Walk with me")).to_have_count(1)
    await expect(title).to_be_focused()
    # Where the demo changes much beside, how much it was is said instead.
    await one.page.evaluate("window.saidOf(/Walk with me moved to Done|\\d changes/)")

    await one.page.keyboard.press("ArrowLeft")
    focused = one.page.locator(".title:focus")
    await expect(focused).to_have_count(1)
    await expect(title).not_to_be_focused()
    assert await one.page.locator('.lane .title[tabindex="0"]').count() == 1
    await title.press("Delete")
    await expect(one.card("Walk with me")).to_have_count(0)


async def test_nobody_but_the_page_writes(demo: str) -> None:
    """Other sites, other hosts, forms, and bodies that are no task are refused, each with its reason."""
    own, url = demo.removesuffix("/"), f"{demo}demo/tasks"
    good = {"Origin": own, "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    task = json.dumps({"title": "Forged"})
    refused: list[tuple[dict[str, str], str, int, str]] = [
        ({"Origin": "https://evil.example"}, task, 403, "the origin is another"),
        ({"Origin": "null"}, task, 403, "the origin is another"),
        ({"Sec-Fetch-Site": "cross-site"}, task, 403, "comes from another site"),
        ({"Sec-Fetch-Site": "same-site"}, task, 403, "comes from another site"),
        ({"Host": "evil.example:80", "Origin": "http://evil.example:80"}, task, 403, "the host is 'evil.example:80'"),
        ({"Content-Type": "text/plain"}, task, 415, "the type is text/plain"),
        ({}, '{"title":"Forged","createdAt":"now"}', 400, "createdAt: Extra inputs are not permitted"),
        ({}, "{", 400, "the body: Invalid JSON"),
        ({}, "{}", 400, "nothing to write"),
        ({}, json.dumps({"title": "\0"}), 400, "title: String should match"),
        ({}, json.dumps({"title": "F", "description": "x" * 70_000}), 400, "the body is too long"),
        ({}, json.dumps({"lane": "todo"}), 409, "not written: "),
    ]
    async with aiohttp.ClientSession() as session:
        async with session.post(url, data=task, headers={"Content-Type": "application/json"}) as response:
            assert response.status == 403
        for headers, body, status, reason in refused:
            async with session.post(url, data=body, headers=good | headers) as response:
                assert (response.status, headers | {"body": body[:60]}) == (status, headers | {"body": body[:60]})
                assert reason in (await response.json())["problem"]
        for method in ("PATCH", "DELETE"):
            async with session.request(method, f"{url}/none", data=task, headers=good) as response:
                assert response.status == 404
            async with session.request(
                method, f"{url}/task-101", data=task, headers=good | refused[0][0]
            ) as response:
                assert response.status == 403
        async with session.post(
            url, data=_in_parts('{"title": "\');', ' drop table tasks; --"}'), headers=good
        ) as response:
            assert response.status == 201
            number = (await response.json())["id"]
        async with session.delete(f"{url}/{number}", headers=good) as response:
            assert response.status == 204


async def _in_parts(*parts: str) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0.05)  # a network's, not a signal: nobody says when a part was read
        yield part.encode()


# A daemon, whose page shows and does not write --------------------------------------------------------------------


async def test_the_page_cannot_write_outside_the_demo(daemon: Daemon, tasks: Database, window: Open) -> None:
    """The daemon has no writer, and the page offers none; a task is opened to be read."""
    tasks.execute("insert into tasks (board_id, title, description) values ('read', 'Read me', 'Line by line')")
    one = await window(address(daemon, "read"))
    await one.card("Read me").locator(".title").press("Enter")
    await expect(one.page.locator("#details dd").filter(has_text="Line by line")).to_have_count(1)
    assert await one.page.locator(".add").count() == 0
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{address(daemon, '')}demo/tasks", json={}) as answer,
    ):
        assert answer.status in {404, 405}


async def test_a_hostile_title_is_text(daemon: Daemon, tasks: Database, window: Open) -> None:
    """What a database says never becomes markup, on a card, in the messages, or in the dialog."""
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    tasks.execute("insert into tasks (board_id, title, lane) values ('hostile', %s, %s)", hostile, hostile)
    one = await window(address(daemon, "hostile"))
    await one.page.locator("#log-switch").click()
    await expect(one.page.locator(".title")).to_have_text(hostile)
    tasks.execute("update tasks set status = %s where board_id = 'hostile'", hostile)
    await expect(one.page.locator(".card .status")).to_have_text(hostile)
    await expect(one.page.locator("#log-list")).to_contain_text("onerror")
    tasks.execute("update tasks set lane = 'constructor' where board_id = 'hostile'")
    await expect(one.in_lane("constructor", hostile)).to_have_count(1)
    tasks.execute("update tasks set lane = 'done' where board_id = 'hostile'")
    tasks.execute("select relay.resync()")
    await expect(one.page.locator('.lane[data-lane="constructor"]')).to_have_count(0)
    await one.page.locator(".lane .title").press("Enter")
    await expect(one.page.locator("#details h2")).to_have_text(hostile)
    assert await one.page.locator("img, body script").count() == 0
    assert await one.page.title() == "hostile · Board"


async def test_the_policy_holds(daemon: Daemon, window: Open) -> None:
    """A script that got in all the same could neither write markup nor reach another server."""
    one = await window(address(daemon, "policy"))
    await one.is_("live")
    broken: list[str] = await one.page.evaluate(
        """async () => {
            const broken = [];
            document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
            try { document.body.innerHTML = "<b>markup</b>"; } catch {}
            try { await fetch("http://127.0.0.1:1/"); } catch {}
            try { new WebSocket("ws://localhost:1/"); } catch {}
            await new Promise((resolve) => setTimeout(resolve, 50));
            return broken;
        }"""
    )
    assert sorted(broken) == ["connect-src", "connect-src", "require-trusted-types-for"]
    assert len(one.faults) >= len(broken)
    one.faults.clear()


async def test_two_thousand_cards_move_one_by_one(daemon: Daemon, tasks: Database, window: Open) -> None:
    """A large board is shown whole, and a move touches the card that moves and no other."""
    tasks.execute(
        "insert into tasks (id, board_id, title, lane) select 'large-' || n, 'large', 'Task ' || n, "
        "(array['backlog', 'todo', 'in_progress', 'done'])[1 + n % 4] from generate_series(1, 2000) n"
    )
    started = time.perf_counter()
    one = await window(address(daemon, "large"))
    await expect(one.page.locator(".lane .card")).to_have_count(2000)
    shown = time.perf_counter() - started
    await one.page.evaluate(
        """() => {
            window.touched = 0;
            window.frames = [];
            new MutationObserver((records) => {
                for (const { target, addedNodes, removedNodes } of records) {
                    if (target.matches(".cards")) window.touched += addedNodes.length + removedNodes.length;
                }
            }).observe(document.getElementById("lanes"), { subtree: true, childList: true });
            let last = performance.now();
            const next = (now) => { window.frames.push(now - last); last = now; requestAnimationFrame(next); };
            requestAnimationFrame(next);
        }"""
    )
    for number in range(4, 24, 4):
        tasks.execute("update tasks set lane = 'recovery' where id = %s", f"large-{number}")
        await expect(one.page.locator(f'.lane[data-lane="recovery"] .card:has-text("large-{number}")')).to_have_count(
            1
        )
    assert await one.page.evaluate("window.touched") == 10
    frames: list[float] = sorted(await one.page.evaluate("window.frames"))
    print(  # noqa: T201 - for the reader; a busy machine has no budget to keep
        f"2,000 cards: shown in {shown:.2f} s; frames while cards move: "
        f"median {frames[len(frames) // 2]:.1f} ms, worst {frames[-1]:.1f} ms"
    )


async def test_a_relay_that_is_killed_and_comes_back(relays: Relays, tasks: Database, window: Open) -> None:
    """The page says that it is cut off, keeps what it has, and is true again once a relay is there."""
    tasks.execute("insert into tasks (id, board_id, title) values ('lasting', 'restart', 'Lasting')")
    ws_port, health_port = free_port(), str(free_port())
    first = await relays(tasks.dsn, ws_port=ws_port, HEALTH_PORT=health_port)
    one = await window(address(first, "restart"))
    await one.is_("live")
    await first.stop(signal.SIGKILL)
    await expect(one.page.locator("#state")).not_to_have_attribute("data-state", "live")
    await expect(one.card("Lasting")).to_have_count(1)
    tasks.execute("update tasks set lane = 'done' where id = 'lasting'")
    await relays(tasks.dsn, ws_port=ws_port, HEALTH_PORT=health_port)
    await one.is_("live")
    await expect(one.in_lane("done", "Lasting")).to_have_count(1)


async def lead_through(page: Page, network: Proxy) -> None:
    """Have the page find the relay behind a proxy."""

    async def through(route: Route) -> None:
        answer = await route.fetch()
        document = await answer.json()
        document["websocket"]["port"] = network.port
        await route.fulfill(response=answer, json=document)

    await page.route("**/page.json", through)


async def test_a_network_that_goes_and_comes(daemon: Daemon, tasks: Database, window: Open) -> None:
    """Offline, the page says so; online, it catches up with what was committed meanwhile."""
    tasks.execute("insert into tasks (id, board_id, title) values ('away', 'network', 'Away')")
    async with Proxy("127.0.0.1", daemon.ws_port) as network:
        one = await window("about:blank", bypass_csp=True)  # the policy names the relay's port, not the proxy's
        await one.page.clock.install()
        await lead_through(one.page, network)
        await one.page.goto(address(daemon, "network"))
        await one.is_("live")
        if not await one.page.evaluate("navigator.onLine"):
            pytest.skip("without a network beside loopback the browser has never been online: give this machine one")
        # The client listens for the same event, and has listened for longer: it has asked for a sign of life by then.
        await one.page.evaluate("void (window.went = new Promise((r) => addEventListener('offline', () => r())))")
        network.strand()  # Chromium leaves open the connections it has
        await one.page.context.set_offline(True)
        await one.page.evaluate("window.went")
        await one.page.clock.fast_forward(5000)  # for which a link may be silent that was asked for a sign of life
        await one.is_("offline")
        tasks.execute("update tasks set lane = 'done', priority = 'high' where id = 'away'")
        await one.page.context.set_offline(False)
        await one.is_("live")
        await expect(one.in_lane("done", "Away")).to_contain_text("high")


async def test_a_machine_that_sleeps_and_wakes(daemon: Daemon, tasks: Database, window: Open) -> None:
    """A page that lay frozen while its link died in silence finds out by itself, and is true again."""
    tasks.execute(
        "insert into tasks (id, board_id, title) values ('asleep', 'sleep', 'Asleep'), ('gone', 'sleep', 'Gone')"
    )
    async with Proxy("127.0.0.1", daemon.ws_port) as network:
        one = await window("about:blank", bypass_csp=True)  # as above
        await one.page.clock.install()
        await lead_through(one.page, network)
        await one.page.goto(address(daemon, "sleep"))
        await one.is_("live")
        lifecycle = await one.page.context.new_cdp_session(one.page)
        await lifecycle.send("Page.setWebLifecycleState", {"state": "frozen"})
        network.strand()
        tasks.execute("update tasks set lane = 'done' where id = 'asleep'")
        tasks.execute("delete from tasks where id = 'gone'")
        await lifecycle.send("Page.setWebLifecycleState", {"state": "active"})
        await one.page.clock.fast_forward("08:00:00")  # every timer that is due fires once, as after a night
        await one.page.clock.fast_forward("00:30")  # for which the link may be silent now that it is asked
        await expect(one.in_lane("done", "Asleep")).to_have_count(1)
        await expect(one.page.locator(".lane .card")).to_have_count(1)
        await one.is_("live")


async def give_token(one: Window, token: str) -> None:
    """Give the page the token that it asks for."""
    await expect(one.page.locator("#asks")).to_be_visible()
    await one.page.locator("#token").fill(token)
    await one.page.get_by_role("button", name="Connect").click()


async def test_a_token_is_asked_for_and_again_when_it_is_not_good(
    relays: Relays, tasks: Database, window: Open, folder: Path
) -> None:
    """A token that is wrong, expired or revoked is asked for again, with the reason; it is kept for the tab alone."""
    tokens = folder / "tokens"
    tokens.write_text("first\n")
    guarded = await relays(tasks.dsn, HEALTH_PORT=str(free_port()), WS_TOKENS_FILE=str(tokens), WS_JWT_SECRET=SECRET)
    tasks.execute("insert into tasks (board_id, title) values ('guarded', 'Secret')")
    one = await window(address(guarded, "guarded"))
    why = one.page.locator("#asks-why")

    def token(seconds: float) -> str:
        return jwt.encode({"exp": time.time() + seconds - LEEWAY_SECONDS, "boards": ["guarded"]}, SECRET, "HS256")

    await give_token(one, "a/b=")
    await expect(why).to_contain_text("the token cannot be presented")
    await give_token(one, "c/d=")
    await expect(one.page.locator("#token")).to_have_value("")
    await expect(why).to_contain_text("the token cannot be presented")
    await give_token(one, "wrong")
    await expect(why).to_have_text("The relay refused the one you gave, or this page's origin (see WS_ORIGINS).")
    await expect(one.page.locator("#token")).to_have_value("")
    assert await one.page.locator(".card").count() == 0
    await give_token(one, token(2.5))
    await expect(one.card("Secret")).to_have_count(1)
    await expect(why).to_have_text("The one you gave has expired.")
    await give_token(one, "first")
    await one.is_("live")
    tokens.write_text("second\n")
    guarded.signal(signal.SIGHUP)
    await expect(why).to_have_text("The one you gave is not good any more.")
    await give_token(one, token(3600))
    await one.is_("live")
    kept: list[str] = await one.page.evaluate("[JSON.stringify(localStorage), location.href, document.cookie]")
    assert all("eyJ" not in each for each in kept)
    await one.page.reload()
    await expect(one.card("Secret")).to_have_count(1)

    await one.page.locator("#board").fill("other")
    await one.page.locator("#board").press("Enter")
    await expect(one.page.locator("#notice")).to_contain_text("You may not read the board other")


async def test_a_page_that_is_not_let_in_names_the_limit(relays: Relays, tasks: Database, window: Open) -> None:
    """A browser gives no reason for a handshake that HTTP refused, so the page says what it may be."""
    limited = await relays(tasks.dsn, HEALTH_PORT=str(free_port()), WS_RATE_LIMIT_PER_CLIENT="1")
    one = await window(address(limited, "default"))
    await one.is_("live")
    await one.page.reload()
    notice = one.page.locator("#notice")
    await expect(notice).to_contain_text("The relay answers, but lets no WebSocket of this page in")
    await expect(notice).to_contain_text("too many connections from here in the last minute")


async def test_a_page_of_another_origin_says_that_it_is_refused(
    relays: Relays, tasks: Database, window: Open
) -> None:
    """The relay tells it by a close code, for of HTTP 401 a browser says nothing."""
    other = await relays(tasks.dsn, HEALTH_PORT=str(free_port()))
    port = other.health_port
    one = await window(f"http://other.localhost:{port}/?board=default")
    refused = f"The relay refused this page: http://other.localhost:{port} is not among its WS_ORIGINS."
    await expect(one.page.locator("#notice")).to_have_text(refused)


async def test_boards_are_chosen_and_remembered(daemon: Daemon, tasks: Database, window: Open) -> None:
    """A board's name leads to it, the address names it, and going back leads back."""
    tasks.execute("insert into tasks (board_id, title) values ('north', 'Polar bear'), ('süd/1', 'Penguin')")
    one = await window(address(daemon, "north"))
    await expect(one.card("Polar bear")).to_have_count(1)
    await one.page.locator("#board").fill("süd/1")
    await one.page.locator("#board").press("Enter")
    await expect(one.card("Penguin")).to_have_count(1)
    await expect(one.card("Polar bear")).to_have_count(0)
    assert one.page.url.endswith("?board=s%C3%BCd%2F1")
    known = await one.page.locator("#boards option").evaluate_all("options => options.map(each => each.value)")
    assert known == ["süd/1", "north"]
    await one.page.go_back()
    await expect(one.card("Polar bear")).to_have_count(1)


async def test_the_page_can_be_switched_off(relays: Relays, tasks: Database) -> None:
    """Without the page its addresses are not there, and health still is."""
    bare = await relays(tasks.dsn, healthy=False, BOARD_PAGE="false")
    async with aiohttp.ClientSession(f"http://127.0.0.1:{bare.health_port}") as session:
        for path in ("/", "/board.js", "/board.css", "/page.json"):
            async with session.get(path) as answer:
                assert answer.status == 404
        async with session.get("/live") as answer:
            assert answer.status == 200


async def test_the_page_is_guarded_by_its_headers(daemon: Daemon) -> None:
    """Every file has its type and may not be guessed at; nothing else of the folder is served."""
    async with aiohttp.ClientSession(f"http://localhost:{daemon.health_port}") as session:
        for path, kind in {"/": "html", "/board.js": "javascript", "/board.css": "css", "/page.json": "json"}.items():
            async with session.get(path) as answer:
                assert kind in answer.headers["Content-Type"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
        async with session.get("/") as answer:
            assert answer.headers["Content-Security-Policy"] == policy("localhost", daemon.ws_port)
        async with session.get("/index.html") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("localhost:4001", "ws://localhost:4002"),
        ("relay.example.com", "ws://relay.example.com:4002"),
        ("[::1]:4001", "ws:"),
        ("evil; script-src *", "ws:"),
        ("a b", "ws:"),
        ("", "ws:"),
    ],
)
async def test_the_policy_names_the_host_and_nothing_that_it_smuggles(host: str, source: str) -> None:
    """A policy cannot name an IPv6 address; and a forged host adds nothing to it."""
    assert f"; connect-src 'self' {source}; " in policy(host, 4002)
    assert policy(host, 4002).count(";") == policy("localhost", 4002).count(";")


# Lanes that are rows ----------------------------------------------------------------------------------------------


async def test_lanes_have_their_names_and_their_order_and_cards_any_text(
    relays: Relays, server: Server, request: pytest.FixtureRequest, window: Open
) -> None:
    """Numbers are no names; cards stay in their order when one is moved, and show the column that is asked for."""
    template = request.getfixturevalue("_template")
    with temporary_database(server, template) as dsn, Database(dsn) as database:
        database.execute("select relay.unwatch('tasks')")
        database.execute("create table lists (id int primary key, board_id int, name text, position int)")
        database.execute("create table cards (id int primary key, list_id int, headline text, position int)")
        database.execute("insert into lists values (10, 1, 'Todo', 2), (11, 1, 'Doing', 1)")
        database.execute("insert into cards values (1, 10, 'First', 1), (2, 10, 'Second', 2)")
        database.execute("select relay.lanes('lists', order_by => '{position}')")
        database.execute(
            "select relay.watch('cards', lane_column => 'list_id', lanes => 'lists', order_by => '{position}')"
        )
        daemon = await relays(dsn, HEALTH_PORT=str(free_port()))
        shown = await window(f"{address(daemon, '1')}&text=headline")
        headings, titles = shown.page.locator(".lane h2"), shown.page.locator(".lane .card .title")
        await expect(headings).to_have_text(["Doing", "Todo"])
        await expect(titles).to_have_text(["First", "Second"])

        database.execute("update cards set position = 3 where id = 1")
        await expect(titles).to_have_text(["Second", "First"])
        database.execute("update lists set name = 'Later', position = 0 where id = 10")
        await expect(headings).to_have_text(["Later", "Doing"])
        await expect((await window(address(daemon, "01"))).page.locator("#notice")).to_contain_text("expected '1'")
        await daemon.stop()
