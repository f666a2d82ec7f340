"""`python -m relay`, the same as `relay`."""

from relay.commands.cli import main

main()
