"""Wide rows: a small change is not journalled as two whole rows, and clients are told the same as ever."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.client import Client
from tests.servers import Database

WIDE = "w" * 3000


def images(database: Database) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the old and the new image of the only update that was journalled."""
    [(old, new)] = database.fetch("select old_row::text, new_row::text from relay.journal where op = 'U'")
    return json.loads(old), json.loads(new)


def wide_task(database: Database, description: str = WIDE) -> None:
    database.execute("insert into tasks (id, title, description, lane) values ('a', 'A', %s, 'todo')", description)


def test_old_image_of_a_wide_row_has_what_changed_and_what_it_is_known_by(database: Database) -> None:
    wide_task(database)
    database.execute("update tasks set title = 'B', updated_at = updated_at")
    old, new = images(database)

    assert old == {"id": "a", "board_id": "default", "lane": "todo", "title": "A", "updated_at": old["updated_at"]}
    assert new["description"] == WIDE


def test_old_image_of_a_narrow_row_is_whole(database: Database) -> None:
    wide_task(database, "narrow")
    database.execute("update tasks set title = 'B'")
    old, new = images(database)

    assert old.keys() == new.keys()


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ("title = 'B'", [("task.updated", {"title"})]),
        ("lane = 'done'", [("task.moved", {"lane"})]),
        ("description = 'short'", [("task.updated", {"description"})]),
        ("priority = 'low', estimated_hours = 2.50", [("task.updated", {"priority", "estimatedHours"})]),
        ("board_id = 'other'", [("task.deleted", set())]),
        ("id = 'b'", [("task.deleted", set()), ("task.created", {"description", "title"})]),
    ],
)
async def test_clients_are_told_the_same_of_a_wide_row(
    database: Database, client: Client, update: str, told: list[tuple[str, set[str]]]
) -> None:
    """Whatever changed of it."""
    database.execute("drop trigger tasks_set_updated_at on tasks")
    wide_task(database)
    await client.receive()
    database.execute(f"update tasks set {update}")

    for kind, columns in told:
        received, data = await client.receive()
        assert received == kind
        if kind == "task.updated":
            assert data["changes"].keys() == columns
        else:
            assert columns - {"lane"} <= data.keys()


@pytest.mark.parametrize("value", [r'"\u0000"', r'"\ud800"', '{"a": [1, 2.50, {}]}', "null"])
def test_json_that_cannot_be_taken_apart_is_journalled_whole(database: Database, value: str) -> None:
    """A json column may hold what no function can read; the writer goes on, and no column is lost."""
    database.execute("alter table tasks add column extra json")
    wide_task(database)
    database.execute("update tasks set extra = %s::text::json", value)
    database.execute("update tasks set title = 'B'")
    _, (old, new) = database.fetch(
        "select old_row::text, new_row::text from relay.journal where op = 'U' order by seq"
    )

    assert '"A"' in old
    assert '"B"' in new
    assert value in new


async def test_column_added_to_a_wide_row_is_told(database: Database, client: Client) -> None:
    """A change right after another transaction's schema change joins the images it has."""
    wide_task(database)
    await client.receive()
    database.execute("alter table tasks add column points int; update tasks set points = 5")
    await client.until_last(database)

    assert client.tasks["a"]["points"] == 5
