"""The AsyncAPI document, as AsyncAPI's own tools read it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from relay.model import schema as contract
from tests.servers import do_without

FOLDER = Path(__file__).parent / "asyncapi"
NOT_THE_LATEST = "asyncapi-latest-version"  # 3.0 is what most tools know


def test_asyncapi_document_is_one() -> None:
    """The parser that AsyncAPI's tools are made of has nothing to say against it, and finds all that is in it."""
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules" / "@asyncapi" / "parser").exists():
        do_without("this needs Node and its package @asyncapi/parser: install Node with npm, then run make test")
    document = contract.asyncapi()
    parsed = subprocess.run(
        [node, "parse.mjs"], cwd=FOLDER, input=json.dumps(document), capture_output=True, text=True, check=True
    )

    found = json.loads(parsed.stdout)
    assert [problem for problem in found["problems"] if problem["code"] != NOT_THE_LATEST] == []
    assert set(found["operations"]) == {"subscribe", "unsubscribe", "ping", "authenticate", "includes", "push"}
    definitions = contract.json_schema()["$defs"]
    sides = [*definitions["ClientMessage"]["oneOf"], *definitions["ServerMessage"]["anyOf"]]
    assert set(found["messages"]) == {each["$ref"].rpartition("/")[2] for each in sides}
