"""Examines credentials and certificates."""

from __future__ import annotations

from typing import Final

from relay.auth.keys import AccessError
from relay.auth.reload import Reloader
from relay.commands.check.core import Check, Place, Verdict, failed, ok, warning
from relay.daemon.serve import open_to_all


async def _access(place: Place) -> Verdict:
    settings = place.settings
    if not settings.WS_ENABLED:
        return ok("no clients are served: WS_ENABLED is false")
    try:
        await Reloader(settings).open()
    except AccessError as ex:
        return failed(str(ex), "correct the setting that is named, or its file")
    if settings.is_open:
        found, hint = open_to_all(settings.WS_HOST)
        return warning(found, hint) if hint else ok(found)
    return ok(
        "credentials are asked for, and can be read" + (", as the certificate can" * bool(settings.WS_TLS_CERT))
    )


CHECKS: Final = (
    Check(
        "access",
        _access,
        "the token file, the JWKS and the certificate can be read; whether everybody gets in (warning)",
        "correct the setting or the file that is named; set a credential",
    ),
)
