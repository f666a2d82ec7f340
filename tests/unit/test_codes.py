"""Every code, reason and event of the code is defined once, with its meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from relay.logs.events import EVENTS
from relay.model.codes import CLOSE_CODES, ERRORS, PROBLEMS, REASONS, REFUSALS
from relay.model.cursor import Reason
from relay.model.messages import CloseCode, ErrorCode

ROOM = Path(__file__).parents[2] / "relay"
CODE = "".join(path.read_text() for path in sorted(ROOM.rglob("*.py")) if path.name not in {"events.py", "codes.py"})


def test_every_event_that_is_logged_is_defined_and_no_other() -> None:
    event = r"((?:websocket|health|log|feed|worker|relay|access|publisher)\.[a-z_]+)"
    others = {"relay.client", "relay.websockets"}  # loggers

    assert set(re.findall(f'"{event}"', CODE)) - others == set(EVENTS)


def test_every_reason_for_a_refusal_that_is_defined_is_given() -> None:
    assert [reason for reason in REFUSALS if f'"{reason.removesuffix("…").rstrip()}' not in CODE] == []


def test_every_reason_of_a_credential_is_defined() -> None:
    code = "".join(path.read_text() for path in (ROOM / "auth").glob("*.py"))
    raised = set(re.findall(r'Refused\("([^"]+)"\)', code))

    assert len(raised) > 4
    assert {re.sub("^(wrong token): .*", r"\1: …", reason) for reason in raised} <= set(REFUSALS)


def test_every_code_and_reason_of_messages_is_explained() -> None:
    assert list(ERRORS) == list(get_args(ErrorCode))
    assert list(REASONS) == list(get_args(Reason))
    assert set(CLOSE_CODES) == {*CloseCode, 1000, 1002, 1006}


def test_every_problem_that_is_explained_can_occur() -> None:
    of_postgres = {"Connection refused", "permission denied"}
    code = CODE.replace('"\n            f"', "") + "".join(
        path.read_text() for path in (ROOM.parent / "sql").rglob("*.sql")
    )

    assert {words for words in PROBLEMS if words not in code} <= of_postgres
    assert of_postgres <= PROBLEMS.keys()
