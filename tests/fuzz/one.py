"""One target under libFuzzer, which is guided by the code that an input reaches."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Fuzz until asked to stop, or until an input crashes it."""
    atheris = importlib.import_module("atheris")  # an extra, for Linux
    with atheris.instrument_imports(include=["relay", "websockets", "jwt"]):
        targets = importlib.import_module("tests.fuzz.targets")
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
