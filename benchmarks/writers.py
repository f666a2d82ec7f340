"""What the triggers cost the writers: `relay bench writers`, with its options, on an embedded Postgres with fsync on.

python benchmarks/writers.py            # about five minutes
python benchmarks/writers.py --seconds 1 --rounds 1
"""

from __future__ import annotations

import sys

from relay.commands.cli import cli
from relay.postgres.embedded import EmbeddedPostgres

with EmbeddedPostgres(settings={"fsync": "on", "synchronous_commit": "on"}) as server:
    cli(["bench", "writers", "--database-url", server.dsn, *sys.argv[1:]], prog_name="relay")
