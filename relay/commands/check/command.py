"""`relay check`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Final

import click

from relay import logs
from relay.commands.check import checks
from relay.commands.options import OF_SERVE, settings_options
from relay.config import Settings, SettingsError, read


@click.command()
@settings_options(*OF_SERVE)
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@click.pass_context
def check(context: click.Context, /, as_json: bool, **options: str | None) -> None:
    """Look at all that the daemon needs, and say how to mend what is not well.

    To be run where the daemon runs, with its settings. Exit code 1 if anything is wrong, 2 if a setting is not
    allowed; warnings do no harm.
    """
    logs.start("error")
    try:
        settings = read(options, OF_SERVE)
    except SettingsError as ex:
        raise click.BadParameter(str(ex)) from None
    context.exit(asyncio.run(_show(settings, as_json=as_json)))


async def _show(settings: Settings, *, as_json: bool) -> int:
    """Print the findings, for people as they come; return the exit code."""
    findings = []
    async for finding in checks.run(settings):
        findings.append(finding)
        if not as_json:
            _show_finding(finding)
    counted = Counter(finding.status for finding in findings)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        click.echo("relay check: " + ", ".join(f"{count} {status}" for status, count in counted.items()))
    return 1 if counted["failed"] else 0


_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def _show_finding(finding: checks.Finding) -> None:
    status = click.style(f"{finding.status:9}", fg=_COLOURS[finding.status])
    click.echo(f"{status}{finding.check:{checks.LONGEST_NAME + 2}}{finding.found}")
    if finding.mend:
        click.echo(f"{'':{checks.LONGEST_NAME + 11}}mend: {finding.mend}")
