"""Server-sent events as clients read them: curl, and a browser's own EventSource, against the daemon."""

from __future__ import annotations

import functools
import shlex
import shutil
import signal
from pathlib import Path

from playwright.async_api import expect

from relay.postgres.embedded import free_port
from tests.acceptance.support import SECONDS, Program, Relays, until
from tests.acceptance.test_client_js import show
from tests.acceptance.test_docs import EVENTS, examples
from tests.acceptance.test_guide import installed_browser
from tests.servers import Database, do_without

ADDRESS = "http://localhost:4002"

TRY = """(url) => new Promise((resolve) => {
    const events = new EventSource(url);
    events.onmessage = () => resolve("read");
    events.onerror = () => resolve(events.readyState === EventSource.CLOSED ? "refused" : "tries again");
})"""
"""What a page sees that may not read events."""

FETCH = """async (url) => {
    const headers = { Authorization: "Bearer good", "Last-Event-ID": "none" };
    const response = await fetch(url, { headers });
    const { value } = await response.body.getReader().read();
    return [response.status, new TextDecoder().decode(value).startsWith("retry: ")];
}"""
"""What a page sees that presents its token in a header: a browser asks first whether it may."""


async def test_curl_shows_a_board(database: Database, relay: Relays, tmp_path: Path) -> None:
    """As the documents print it: what is there, each change as it comes, and why the stream ends."""
    if not shutil.which("curl"):
        do_without("curl is not installed: on Debian and Ubuntu, apt install curl")
    daemon = await relay(database.dsn)
    [command] = examples(EVENTS, "bash")
    program = Program(
        [*shlex.split(command.replace(ADDRESS, f"http://localhost:{daemon.ws_port}")), "-s"], tmp_path, {}
    )
    try:
        await until(lambda: '"type":"board.sync"' in program.output, "the board")
        database.execute("insert into tasks (id, title) values ('a', 'Paint')")
        await until(lambda: '"title":"Paint"' in program.output, "the change")
        await daemon.stop(signal.SIGTERM)
        await until(lambda: program.exit_code is not None, "the end")
    finally:
        program.end()
    assert program.exit_code == 0
    assert program.output.endswith(": 1012 the relay is stopping\n\n")


async def test_a_browser_resumes_by_itself(database: Database, relay: Relays) -> None:
    """The example of the documents, on a page of another origin, is sent what it missed while the relay was away."""
    port = free_port()
    start = functools.partial(
        relay, database.dsn, HEALTH_PORT=str(port), WS_ORIGINS=f"http://localhost:{port}", WS_TOKENS="good"
    )
    daemon = await start()
    [example] = examples(EVENTS, "javascript")
    address = f"http://localhost:{daemon.ws_port}"
    script = example.replace(f"{ADDRESS}/boards/default/events", f"{address}/boards/default/events?token=good")
    async with installed_browser() as browser:
        page, foreign = await browser.new_page(), await browser.new_page()
        await show(page, f"http://localhost:{port}", f"<script>{script}</script>")
        for title in ("First", "Second"):
            database.execute("insert into tasks (id, title) values (%s, %s)", title, title)
        await expect(page).to_have_title("First, Second", timeout=SECONDS * 1000)
        await foreign.route("**/page", lambda route: route.fulfill(body="", content_type="text/html"))
        await foreign.goto("http://localhost:1/page")
        assert await foreign.evaluate(TRY, f"{address}/boards/default/events?token=good") == "refused"
        assert await page.evaluate(FETCH, f"{address}/boards/default/events") == [200, True]

        await daemon.stop(signal.SIGKILL)
        database.execute(
            "delete from tasks where id = 'First'; insert into tasks (id, title) values ('Third', 'Third')"
        )
        daemon = await start(ws_port=daemon.ws_port)
        await expect(page).to_have_title("Second, Third", timeout=SECONDS * 1000)

    sent = daemon.ask("/status")[1]["counts"]["messages"]
    assert sent == {"task.deleted": 1, "task.created": 1}
