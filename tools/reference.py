"""Write the tables of the documents that the code defines: `make docs`. With --check, fail if one is out of date.

Each stands between two comments, `<!-- NAME: made by make docs -->` and `<!-- end -->`. What they say is defined
where it is used: settings in relay/config, figures in relay/model/status.py, log events in relay/logs/events.py,
codes and reasons in relay/model/codes.py, checks in relay/commands/check.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from relay.commands.check.checks import HERE, NATS, THERE
from relay.config import SETTINGS
from relay.logs.events import EVENTS
from relay.model.codes import CLOSE_CODES, ERRORS, PROBLEMS, REASONS, REFUSALS
from relay.model.status import metrics

DOCS: Final = Path(__file__).parents[1] / "docs"

_TABLE: Final = re.compile(r"(<!-- ([\w-]+): made by make docs -->\n).*?(\n<!-- end -->)", re.DOTALL)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield "|" + "---|" * len(head)
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells).replace("|  |", "| |").rstrip() + " |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _settings() -> Iterator[str]:
    rows = (
        [
            _code(name),
            " ".join(map(_code, filter(None, (setting.option, setting.short)))),
            setting.of,
            _code(setting.default),
            setting.meaning,
            setting.allowed.replace("|", "\\|"),
        ]
        for name, setting in SETTINGS.items()
    )
    return _table(["variable", "option", "command", "default", "meaning", "allowed"], rows)


def _metrics() -> Iterator[str]:
    def row(name: str, kind: str, meaning: str) -> list[str]:
        suffix = "_total" if kind == "counter" else ""
        return [_code(name + suffix), "gauge" if kind == "info" else kind, meaning]

    return _table(["metric", "type", "what it is"], (row(each.name, each.kind, each.meaning) for each in metrics()))


def _events() -> Iterator[str]:
    rows = ([_code(name), event.meaning, ", ".join(map(_code, event.fields))] for name, event in EVENTS.items())
    return _table(["`event`", "logged when", "fields"], rows)


def _checks() -> Iterator[str]:
    rows = ([_code(check.name), check.about, check.advice] for check in (*HERE, *THERE, *NATS))
    return _table(["check", "what it examines", "what to do"], rows)


def _refusals() -> Iterator[str]:
    rows = (
        [_code(reason), str(refusal.answer.value) if refusal.answer else "none", refusal.meaning]
        for reason, refusal in REFUSALS.items()
    )
    return _table(["reason", "answer", "what it is"], rows)


def _problems() -> Iterator[str]:
    rows = ([_code(words), problem.meaning, problem.advice] for words, problem in PROBLEMS.items())
    return _table(["in the problem", "what it means", "what to do"], rows)


def _reasons() -> Iterator[str]:
    return _table(["reason", "why the board was sent"], ([_code(name), why] for name, why in REASONS.items()))


def _errors() -> Iterator[str]:
    return _table(["code", "sent for"], ([_code(code), meaning] for code, meaning in ERRORS.items()))


def _client_closes() -> Iterator[str]:
    rows = ([str(int(code)), close.meaning, close.reconnect] for code, close in CLOSE_CODES.items())
    return _table(["close code", "meaning", "reconnect?"], rows)


def _operator_closes() -> Iterator[str]:
    rows = ([str(int(code)), close.meaning, close.worth] for code, close in CLOSE_CODES.items())
    return _table(["close code", "what it says to the client", "worth attention when"], rows)


TABLES: Final[Mapping[str, Callable[[], Iterator[str]]]] = {
    "settings": _settings,
    "metrics": _metrics,
    "log-events": _events,
    "checks": _checks,
    "refusals": _refusals,
    "problems": _problems,
    "reasons": _reasons,
    "errors": _errors,
    "client-close-codes": _client_closes,
    "operator-close-codes": _operator_closes,
}


def written(text: str) -> str:
    """Return a document with its tables as the code defines them. Raises KeyError for a table that is not defined."""
    return _TABLE.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + found[3], text)


def main() -> None:
    """Write the tables, or with --check fail if that would change any."""
    checks = "--check" in sys.argv[1:]
    outdated = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if (new := written(text)) != text:
            outdated.append(path.name)
            if not checks:
                path.write_text(new)
    if checks and outdated:
        sys.exit(f"{', '.join(outdated)}: a table is not what the code defines: run make docs")


if __name__ == "__main__":
    main()
