#!/usr/bin/env -S python -I
"""Ask the daemon of this container how it is: exit code 0 if it answers 200, and its answer on standard output.

    healthcheck /live

It asks where the environment tells the daemon to listen, as the daemon reads it. It imports little, for it runs every
few seconds beside the daemon.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_SECONDS = 4.0

# Linux takes the address that stands for all of them, 0.0.0.0 or ::, as this machine's own.
host = os.environ.get("WS_HOST") or "0.0.0.0"  # noqa: S104  # nothing listens here
port = int(os.environ.get("HEALTH_PORT") or 4001)
link = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
try:
    link.request("GET", sys.argv[1])
    response = link.getresponse()
    print(response.status, response.read().decode())  # noqa: T201  # docker inspect shows it
except OSError as ex:
    sys.exit(f"no answer from {host} port {port}: {ex}")
sys.exit(response.status != http.client.OK)
