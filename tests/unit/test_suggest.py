"""Which extras `relay check --suggest` proposes, given tables."""

from __future__ import annotations

from typing import Final

import pytest

from relay.commands.check.suggest import Table, commands

_LABELS: Final = "labels: id integer, name text, color text"
_USERS: Final = "users: id integer, email text, password_name text, name text"
_COMMENTS: Final = "comments: id integer, card_id bigint > cards, author_id integer > users, body text"
_LABEL_OF: Final = "card_id bigint > cards, label_id integer > labels"
_USER_OF: Final = "card_id bigint > cards, user_id integer > users"


def _table(columns: str, *, ordinary: bool = True) -> Table:
    """Read a table like "labels: id integer, board_id integer > boards"; its first column is its key."""
    name, _, rest = columns.partition(": ")
    types: dict[str, str] = {}
    refers: dict[str, str] = {}
    for column, its_type in (each.split(" ", 1) for each in rest.split(", ")):
        types[column], _, other = its_type.partition(" > ")
        refers |= {column: f"public.{other}"} if other else {}
    texts = [column for column, its_type in types.items() if its_type == "text"]
    return Table(f"public.{name}", [next(iter(types))], types, refers, texts, ordinary)


def _extras(card: str, *tables: str | Table) -> list[str]:
    """Return what follows the watch, without its beginning."""
    own = _table(f"cards: id bigint, board_id bigint, lane text, title text{card}")
    read = [_table(each) if isinstance(each, str) else each for each in tables]
    referred = {each.name: each for each in (own, *read)}
    near = [each for each in read if own.name in each.refers.values()]
    begins = "relay sql extra public.cards "
    return [line.removeprefix(begins) for line in commands(own, referred, near) if line.startswith(begins)]


_LABELS_ARE: Final = "--of public.labels --through public.{} --show name --show color"


@pytest.mark.parametrize(
    ("card", "tables", "expected"),
    [
        # What a table links tasks to.
        ("", [_LABELS, f"card_labels: {_LABEL_OF}"], ["labels " + _LABELS_ARE.format("card_labels")]),
        ("", [_LABELS, f"labels_cards: {_LABEL_OF}"], ["labels " + _LABELS_ARE.format("labels_cards")]),
        ("", [_LABELS, f"card_label: {_LABEL_OF}"], ["labels " + _LABELS_ARE.format("card_label")]),
        (
            "",
            [_LABELS, f'"_LabelToCard": {_LABEL_OF}'],
            ["labels " + _LABELS_ARE.replace("public.{}", "'public.\"_LabelToCard\"'")],
        ),
        ("", [_LABELS, f"taggings: {_LABEL_OF}, created_at date"], ["labels " + _LABELS_ARE.format("taggings")]),
        ("", [_LABELS, f"labels_then: {_LABEL_OF}, reason text"], []),
        (
            "",
            [f"{_LABELS}, archived boolean", f"card_labels: {_LABEL_OF}, deletedAt date"],
            [
                "labels "
                + _LABELS_ARE.format("card_labels")
                + " --filter 'archived is not true' --link-filter '\"deletedAt\" is null'"
            ],
        ),
        (
            "",
            [_LABELS, f"taggings: {_LABEL_OF}, removed_at date"],
            ["labels " + _LABELS_ARE.format("taggings") + " --link-filter 'removed_at is null'"],
        ),
        ("", [_LABELS, f"card_labels: {_LABEL_OF}, other_id bigint > cards"], []),
        ("", ["labels: id bigint, name text", f"card_labels: {_LABEL_OF}"], []),
        ("", ["labels: id integer, token_name text", f"card_labels: {_LABEL_OF}"], []),
        ("", [_table(_LABELS, ordinary=False), f"card_labels: {_LABEL_OF}"], []),
        ("", [_LABELS, _table(f"card_labels: {_LABEL_OF}", ordinary=False)], []),
        ("", ["labels: id integer, card_id bigint > cards, parent_id integer > labels, name text"], []),
        # People.
        (
            "",
            [_USERS, f"card_members: {_USER_OF}"],
            ["members --of public.users --through public.card_members --show name"],
        ),
        (
            "",
            [_USERS, f"card_users: {_USER_OF}"],
            ["users --of public.users --through public.card_users --show name"],
        ),
        (
            "",
            [_USERS, f"card_assignees: assigned_by integer > users, {_USER_OF}"],
            ["assignees --of public.users --through public.card_assignees --link-column user_id --show name"],
        ),
        ("", [_USERS, f"card_watchers: {_USER_OF}"], []),
        (
            ", ownerId integer > users, updated_by integer > users, created_by integer > users",
            [_USERS],
            [
                "owner --of public.users --task-column ownerId --show name",
                "createdByName --of public.users --task-column created_by --show name",
            ],
        ),
        (
            ", contact integer > people",
            ["people: id integer, title text, username text"],
            ["contactName --of public.people --task-column contact --show username"],
        ),
        (", user_id integer > users", ["users: id integer, first_name text, email text"], []),
        (", user_id uuid > users", [_USERS], []),
        (", team_id integer > teams", ["teams: id integer, name text"], []),
        # Rows that belong to a task.
        ("", [_USERS, _COMMENTS], ["commentCount --of public.comments"]),
        ("", ["card_replies: id integer, card_id bigint > cards"], []),
        (
            "",
            ["checklist_items: id integer, card_id bigint > cards"],
            ["checklistItemCount --of public.checklist_items"],
        ),
        ("", ["card_has_files: id integer, card_id bigint > cards"], ["fileCount --of public.card_has_files"]),
        (
            "",
            ['comments: id integer, card_id bigint > cards, deleted boolean, is-"draft boolean'],
            ['commentCount --of public.comments --filter \'deleted is not true and "is-""draft" is not true\''],
        ),
        (
            "",
            ["subtasks: id integer, card_id bigint > cards, isDone boolean, deleted_at date"],
            [
                "subtaskCount --of public.subtasks --filter 'deleted_at is null'",
                "subtasksDone --of public.subtasks --filter 'deleted_at is null and \"isDone\"'",
            ],
        ),
        ("", ["history: id integer, card_id bigint > cards"], []),
        # Names that are free.
        (", labels text", [_LABELS, f"card_labels: {_LABEL_OF}"], []),
        (", comment_count integer", ["comments: id integer, card_id bigint > cards"], []),
        (
            ", comment_count integer",
            ["old_comments: id integer, card_id bigint > cards"],
            ["oldCommentCount --of public.old_comments"],
        ),
        (
            "",
            ["comments: id integer, card_id bigint > cards", "old_comments: id integer, card_id bigint > cards"],
            ["commentCount --of public.comments", "oldCommentCount --of public.old_comments"],
        ),
        # The lanes' own table.
        (
            ", list_id integer > todos",
            [
                "todos: id integer, board_id bigint, name text, cover_id bigint > cards",
                "card_todo_lists: card_id bigint > cards, list_id integer > todos",
            ],
            [],
        ),
    ],
)
def test_only_extras_that_a_person_would_guess_are_proposed(
    card: str, tables: list[str | Table], expected: list[str]
) -> None:
    assert _extras(card, *tables) == expected
