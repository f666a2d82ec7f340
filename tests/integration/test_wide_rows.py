"""Wide rows: however their images are made and stored, clients receive what they receive of narrow ones."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.integration.client import Client
from tests.servers import Database

WIDE = "".join(hashlib.md5(str(number).encode()).hexdigest() for number in range(100))
"""Text that no compression makes much shorter: rows are as wide as they are stored."""


def images(database: Database) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the old and the new image of the only update that was journalled."""
    [(old, new)] = updates(database)
    return json.loads(old), json.loads(new)


def updates(database: Database) -> list[tuple[str, str]]:
    """Return the old and the new image of each update that was journalled, as text."""
    return database.fetch(
        "select old_row, new_row from relay.entries where old_row is not null and new_row is not null order by lsn"
    )


def wide_task(database: Database, description: str = WIDE) -> None:
    database.execute("insert into tasks (id, title, description, lane) values ('a', 'A', %s, 'todo')", description)


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("title = 'B'", [("task.updated", {"title"})]),
        ("lane = 'done'", [("task.moved", {"lane"})]),
        ("description = 'short'", [("task.updated", {"description"})]),
        ("priority = 'low', estimated_hours = 2.50", [("task.updated", {"priority", "estimatedHours"})]),
        ("board_id = 'other'", [("task.deleted", set())]),
        ("id = 'b'", [("task.deleted", set()), ("task.created", {"description", "title"})]),
    ],
)
async def test_clients_receive_the_same_of_a_wide_row(
    database: Database, client: Client, update: str, expected: list[tuple[str, set[str]]]
) -> None:
    """Whatever changed of it."""
    database.execute("drop trigger tasks_set_updated_at on tasks")
    wide_task(database)
    await client.receive()
    database.execute(f"update tasks set {update}")

    for kind, columns in expected:
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
    _, (old, new) = updates(database)

    assert '"A"' in old
    assert '"B"' in new
    assert value in new


async def test_column_added_to_a_wide_row_is_sent(database: Database, client: Client) -> None:
    """A change right after another transaction's schema change joins the images it has."""
    wide_task(database)
    await client.receive()
    database.execute("alter table tasks add column points int; update tasks set points = 5")
    await client.until_last(database)

    assert client.tasks["a"]["points"] == 5


async def test_many_small_changes_of_a_wide_row_are_one_update(database: Database, client: Client) -> None:
    """Its old images are completed before they are counted."""
    database.execute("drop trigger tasks_set_updated_at on tasks")
    wide_task(database)
    database.execute(
        "begin; update tasks set title = 'B'; update tasks set priority = 'low'; update tasks set title = 'A'; "
        "update tasks set description = upper(description); update tasks set description = lower(description); commit"
    )

    _, *found = await client.until_last(database)
    assert found == [("task.updated", {"id": "a", "changes": {"priority": "low"}})]


@pytest.mark.parametrize(
    "unreadable",
    [
        r"""extra = '"\ud800"'""",
        "extra = (repeat('[', 3000) || repeat(']', 3000))::json",
        "description = repeat('x', 5000000)",
    ],
    ids=["no text", "too deep", "too large"],
)
async def test_wide_row_that_cannot_be_shown_stays_away_whatever_else_of_it_changes(
    database: Database, client: Client, unreadable: str
) -> None:
    """Its old image may lack the column that cannot be shown, for that did not change."""
    database.execute("alter table tasks add column extra json")
    assert (await client.receive())[0] == "board.sync"
    wide_task(database)
    await client.until_last(database)
    database.execute(f"update tasks set {unreadable} where id = 'a'")
    assert [kind for kind, _ in await client.until_last(database)] == ["task.deleted"]
    database.execute("update tasks set title = 'B' where id = 'a'")
    assert await client.until_last(database) == []
    database.execute("update tasks set extra = null, description = 'short', title = 'C' where id = 'a'")

    assert [kind for kind, _ in await client.until_last(database)] == ["task.created"]


# How images are made


def test_images_of_wide_rows_do_not_depend_on_the_writers_settings(database: Database) -> None:
    """Rows that are equal must be equal texts."""
    wide_task(database)
    with database.connect() as writer:
        writer.execute("set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set extra_float_digits = -10")
        writer.execute("update tasks set created_at = '2026-01-01 12:00+00', title = 'B'")
    _, new = images(database)

    assert new["created_at"] == "2026-01-01T12:00:00+00:00"


async def test_row_whose_text_is_much_larger_than_its_json_is_shown(database: Database, client: Client) -> None:
    """A board shows it, which is read as JSON only."""
    database.execute("alter table tasks add column list jsonb[]; alter table tasks alter list set storage external")
    assert (await client.receive())[0] == "board.sync"
    database.execute("insert into tasks (id, title, list) values ('a', 'A', array[to_jsonb(repeat('\"', 1200000))])")

    assert [data["id"] for _, data in await client.until_last(database)] == ["a"]
    assert client.tasks["a"]["list"] == ['"' * 1200000]


def test_image_of_a_row_that_is_too_large_is_the_reason(database: Database) -> None:
    huge = "select relay.image(r) from (select repeat('x', 21000000) as t) r"
    assert database.fetch(huge) == [("!the row is larger than 20 MiB",)]
    wide_task(database)
    database.execute("update tasks set description = repeat('x', 9000000)")
    database.execute("update tasks set title = 'B'")
    database.execute("update tasks set description = 'short'")
    rows = database.fetch(
        "select old_row is not null, new_row is not null, reason from relay.entries "
        "where op = 'R' order by lsn offset 1"
    )

    reason = "row_unreadable: its JSON is larger than 8 MiB"
    assert rows == [(True, False, reason), (False, False, reason), (False, True, reason)]


def test_image_that_a_users_cast_fails_to_make_is_the_reason_and_fails_no_writer(database: Database) -> None:
    """A cast to json runs whatever its owner wrote."""
    database.execute("""
        create type mood as enum ('good', 'bad');
        create function as_json(m mood) returns json language plpgsql as $$
        begin
            if m = 'bad' then raise exception 'no such mood'; end if;
            return to_json(m::text);
        end $$;
        create cast (mood as json) with function as_json(mood);
        alter table tasks add mood mood default 'good'
    """)
    database.execute("insert into tasks (id, title) values ('a', 'A')")
    database.execute("update tasks set mood = 'bad'")
    [_, (old, new, reason)] = database.fetch(
        "select old_row, new_row, reason from relay.entries where op = 'R' order by lsn"
    )

    assert json.loads(old)["mood"] == "good"
    assert new is None
    assert reason == "row_unreadable: P0001 no such mood"
