"""`relay check`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Final

import click
from rich.text import Text

from relay import logs
from relay.commands import terminal
from relay.commands.check import checks
from relay.commands.check.core import Finding
from relay.commands.check.suggest import suggest as suggest_commands
from relay.commands.options import OF_SERVE, one_line_errors, settings_options
from relay.config import Settings, SettingsError, read
from relay.postgres.install import InstallError
from relay.text import harmless

_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}
_STATUS_WIDTH: Final = 9
_NAME_WIDTH: Final = checks.LONGEST_NAME + 2


@click.command()
@settings_options(*OF_SERVE)
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@click.option("--suggest", metavar="TABLE", help="print the commands that would watch TABLE")
@click.pass_context
def check(context: click.Context, /, as_json: bool, suggest: str | None, **options: str | None) -> None:
    """Check everything that the daemon needs, and say what to do about problems.

    Run it where the daemon runs, with the daemon's settings. Exit code 1 if anything failed, 2 if a setting is not
    allowed; warnings do not count.
    """
    logs.start("error")
    try:
        settings = read(options, OF_SERVE)
    except SettingsError as ex:
        raise click.BadParameter(str(ex)) from None
    if suggest is not None:
        with one_line_errors(InstallError):
            for command in suggest_commands(settings.DATABASE_URL, suggest):
                click.echo(command)
        return
    context.exit(asyncio.run(_show(settings, as_json=as_json)))


async def _show(settings: Settings, *, as_json: bool) -> int:
    """Print the findings, for people one by one; return the exit code."""
    findings, console = [], terminal.console()
    async for finding in checks.run(settings):
        findings.append(finding)
        if not as_json:
            console.print(*_lines(finding), sep="\n")
    counted = Counter(finding.status for finding in findings)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        console.print("relay check: " + ", ".join(f"{count} {status}" for status, count in counted.items()))
    return 1 if counted["failed"] else 0


def _lines(finding: Finding) -> list[Text]:
    status = (f"{finding.status:{_STATUS_WIDTH}}", _COLOURS[finding.status])
    found = Text.assemble(status, f"{finding.check:{_NAME_WIDTH}}", harmless(finding.found))
    if not finding.hint:
        return [found]
    return [found, Text(f"{'':{_STATUS_WIDTH + _NAME_WIDTH}}hint: {harmless(finding.hint)}")]
