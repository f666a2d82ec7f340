"""Examines this machine: ports, open files, and limits of connections."""

from __future__ import annotations

import math
import resource
from typing import Final

import aiohttp

from relay.commands.check.core import Check, Place, Verdict, failed, halves, ok, warning
from relay.config import Settings
from relay.daemon.errors import StartError, listening_on
from relay.websocket.sockets import bind

SPARE_FILES: Final = 128
"""Number of files that a process of the daemon needs in addition to its clients' connections."""

LONGEST_RETURN_MINUTES: Final = 2.0
"""Maximum time in which all clients should be able to reconnect."""


async def _ports(place: Place) -> Verdict:
    settings = place.settings
    ports = {"HEALTH_PORT": settings.HEALTH_PORT}
    if settings.WS_ENABLED and not settings.WS_SOCKET:
        ports = {"WS_PORT": settings.WS_PORT} | ports
    if len(set(ports.values())) < len(ports) and settings.HEALTH_PORT:
        return failed(f"WS_PORT and HEALTH_PORT are both {settings.HEALTH_PORT}", "choose two ports")
    problems = [problem for name, port in ports.items() if (problem := await _taken(name, settings.WS_HOST, port))]
    if not problems:
        return ok("free: " + ", ".join(f"{settings.WS_HOST}:{port or 'any'}" for port in ports.values()))
    return (await _running(settings)) or failed(*halves(problems[0]))


async def _taken(setting: str, host: str, port: int) -> str | None:
    """Return why the daemon could not listen, by binding the address without listening; None if it could."""
    try:
        with listening_on(setting, host, port):
            for sock in await bind(host, port):
                sock.close()
    except StartError as ex:
        return str(ex)
    return None


async def _running(settings: Settings) -> Verdict | None:
    """Return the verdict if a relay is running on these ports."""
    first = settings.WS_HOST.replace(",", " ").split()[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)  # noqa: S104  # compared
    address = f"http://[{host}]" if ":" in host else f"http://{host}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as client,
            client.get(f"{address}:{settings.HEALTH_PORT}/health") as response,
        ):
            health = await response.json()
            port, status = health["websocket"]["port"], health["status"]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return None
    if settings.WS_ENABLED and port != settings.WS_PORT:
        return None
    return ok(f"a relay is running here, and says that it is {status}")


async def _files(place: Place) -> Verdict:
    return judge_files(place.settings.WS_MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def judge_files(clients: int, limit: int) -> Verdict:
    """Judge whether a process may open enough files for its clients."""
    if limit == resource.RLIM_INFINITY:
        return ok("a process may open any number of files")
    needed = clients + SPARE_FILES
    found = f"a process may open {limit} files here, and WS_MAX_CONNECTIONS={clients} needs {needed}"
    hint = f"raise the limit (ulimit -n {needed}, LimitNOFILE={needed}), or lower WS_MAX_CONNECTIONS"
    return ok(found) if needed <= limit else failed(found, hint)


async def _rates(place: Place) -> Verdict:
    settings = place.settings
    return judge_rates(settings.WS_MAX_CONNECTIONS, settings.WS_RATE_LIMIT_TOTAL)


def judge_rates(clients: int, a_minute: int) -> Verdict:
    """Judge whether all clients can reconnect soon after a restart."""
    if not a_minute:
        return ok("connections are not limited by the minute")
    minutes = clients / a_minute
    found = f"{clients} clients need {minutes:.0f} minutes to come back, at {a_minute} a minute"
    if minutes > LONGEST_RETURN_MINUTES:
        return warning(found, f"raise WS_RATE_LIMIT_TOTAL to {clients}: after a restart they all come at once")
    return ok(f"{clients} clients come back within {math.ceil(minutes)} minutes, at {a_minute} a minute")


async def _limits(place: Place) -> Verdict:
    return judge_limits(place.settings)


def judge_limits(settings: Settings) -> Verdict:
    """Judge whether each limit can be reached before a wider one."""
    for least, most in _WITHIN:
        smaller, larger = getattr(settings, least), getattr(settings, most)
        if smaller > larger > 0:
            found = f"{least}={smaller} is never reached, for {most} is {larger}"
            return warning(found, f"lower {least}, or raise {most}")
    return ok("each can be reached")


_WITHIN: Final = (
    ("WS_MAX_CONNECTIONS_PER_ADDRESS", "WS_MAX_CONNECTIONS"),
    ("WS_RATE_LIMIT_PER_CLIENT", "WS_RATE_LIMIT_TOTAL"),
    ("WS_SEND_BUFFER", "WS_BACKLOG_TOTAL"),
)
"""Pairs of a limit and the wider one that includes it."""

CHECKS: Final = (
    Check(
        "ports",
        _ports,
        "`WS_PORT` and `HEALTH_PORT` are free, or a relay of these ports is running",
        "choose another port, or stop the other program",
    ),
    Check(
        "files",
        _files,
        "the limit of open files against `WS_MAX_CONNECTIONS`",
        "`ulimit -n`, `LimitNOFILE=`, or fewer connections",
    ),
    Check(
        "rates",
        _rates,
        "how long `WS_MAX_CONNECTIONS` clients take to return at `WS_RATE_LIMIT_TOTAL` (warning: over two minutes)",
        "`WS_RATE_LIMIT_TOTAL`",
    ),
    Check(
        "limits",
        _limits,
        "no limit of one client is above that of all (warning)",
        "lower the one, or raise the other",
    ),
)
