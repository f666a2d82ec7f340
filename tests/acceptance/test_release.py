"""What is published: wheel, sdist, npm package and SBOM.

`make release` builds them into dist/ and runs all of this on them, each in an empty environment. Otherwise they are
built here, and only what they contain is checked: installing takes a minute.
"""

from __future__ import annotations

import email
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

from relay import __version__
from tests.acceptance.support import SECONDS, Client, Program, Relays, environment, until
from tests.acceptance.test_docs import NEEDS_DAEMON, README, commands, examples, role_of_the_daemon
from tests.acceptance.test_guide import node, npm_package
from tests.servers import Database, do_without

ROOT: Final = Path(__file__).parents[2]
STATIC: Final = ROOT / "relay" / "client" / "js"
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALL_SECONDS: Final = 240

pytestmark = pytest.mark.timeout(2 * INSTALL_SECONDS)
fully = pytest.mark.skipif("RELEASE" not in os.environ, reason="installing takes a minute: make release")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what `make release` built, or build wheel and sdist as it does, with this hatchling."""
    if "RELEASE" in os.environ:
        return Path(os.environ["RELEASE"])
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


def only(dist: Path, pattern: str) -> Path:
    [found] = dist.glob(pattern)
    return found


def test_wheel_has_all_that_runs_and_nothing_else(dist: Path) -> None:
    """Each file of the package, the SQL, the client for JavaScript and the licence; no test and no cache."""
    names = set(zipfile.ZipFile(only(dist, "*.whl")).namelist())
    versioned = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "relay", "sql").split()
    info = f"pg_change_relay-{__version__}.dist-info/"
    packaged = {name for name in names if not name.startswith(info)}

    assert packaged == {f"relay/{name}" if name.startswith("sql/") else name for name in versioned}
    assert names - packaged == {
        info + name for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_wheel_says_what_it_is(dist: Path) -> None:
    """An index shows name, version, licence, links and the README, and pip installs both commands."""
    wheel = zipfile.ZipFile(only(dist, "*.whl"))
    info = f"pg_change_relay-{__version__}.dist-info/"
    metadata = email.message_from_bytes(wheel.read(info + "METADATA"))
    command = "= relay.commands.cli:main\n"

    assert (metadata["Name"], metadata["Version"]) == ("pg-change-relay", __version__)
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert metadata.get_all("Project-URL") == [f"{name}, {url}" for name, url in PROJECT["urls"].items()]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert README.read_text().splitlines()[0] in metadata.get_payload()
    assert f"relay {command}" in wheel.read(info + "entry_points.txt").decode()
    assert f"pg-change-relay {command}" in wheel.read(info + "entry_points.txt").decode()


def test_sdist_has_the_tests_and_the_documents(dist: Path) -> None:
    """Whoever packages it can test it. The wheel was built from it, so that it is complete is known."""
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "tests/conftest.py",
        "docs/dba.md",
        "sql/install.sql",
        "sql/install/journal.sql",
    } <= names
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name or name.startswith(".venv")]


def emptied(folder: Path, *requirements: str) -> Path:
    """Install into an environment that has nothing else, and return the folder of its programs."""
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    if uv := shutil.which("uv"):
        run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", programs / "python", *requirements)
    else:
        pip = (sys.executable, "-m", "pip", "--python", programs / "python")
        run(*pip, "install", "--quiet", "--disable-pip-version-check", *requirements)
    return programs


def tried(program: Path, *arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of an installed relay that ends by itself."""
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@fully
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
async def test_the_readmes_commands_run_where_nothing_else_is(
    kind: str, dist: Path, empty_database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Installed from the file alone, each command of the README does what it says, and a relay serves a board."""
    programs = emptied(tmp_path / "empty", str(only(dist, kind)))
    ran = 0
    with role_of_the_daemon(empty_database):
        settings = {"DATABASE_URL": empty_database.dsn, "WS_PORT": "0", "HEALTH_PORT": "0"}
        assert tried(programs / "relay", "sql", "tasks", folder=tmp_path, **settings).returncode == 0
        for line in commands(README):
            program, *arguments = shlex.split(line, comments=True)
            if program == "relay" and arguments[0] not in NEEDS_DAEMON | {"serve"}:
                finished = tried(programs / program, *arguments, folder=tmp_path, **settings)
                assert (finished.returncode, finished.stderr) == (0, ""), line
                ran += 1
        assert ran > 3
        daemon = await relay(empty_database.dsn, program=[programs / "pg-change-relay"])
        async with Client.to(daemon) as client:
            assert (await client.subscribe())["type"] == "board.sync"
            empty_database.execute("insert into tasks (id, title) values ('a', 'A')")
            assert (await client.receive())["type"] == "task.created"
        assert await daemon.stop() == 0


@fully
async def test_the_demo_runs_with_its_extra_and_without_says_how_to_get_it(dist: Path, tmp_path: Path) -> None:
    """The extra brings a Postgres; a plain installation names the command that has one."""
    wheel = only(dist, "*.whl")
    plain = emptied(tmp_path / "plain", str(wheel))
    ports = ("--ws-port", "0", "--health-port", "0")
    finished = tried(plain / "pg-change-relay", "demo", *ports, folder=tmp_path)
    assert finished.stderr.endswith("uvx --from 'pg-change-relay[demo]' relay demo\n")
    assert finished.returncode == 1

    programs = emptied(tmp_path / "demo", f"{wheel}[demo]")
    demo = Program([programs / "relay", "demo", *ports], tmp_path, {})
    try:
        await until(lambda: "board.sync" in demo.output or demo.exit_code is not None, "the first message")
        assert "the whole board" in demo.output
    finally:
        demo.end()


@fully
async def test_the_npm_packages_example_runs_where_nothing_else_is(
    dist: Path, database: Database, relay: Relays, tmp_path: Path
) -> None:
    """Installed from the file alone, the example of its README follows a board."""
    npm = shutil.which("npm") or do_without("npm is not installed: https://nodejs.org")
    run(npm, "install", "--no-audit", "--no-fund", "--prefix", tmp_path, only(dist, "*.tgz"))
    assert [path.name for path in (tmp_path / "node_modules").iterdir() if path.is_dir()] == [
        "pg-change-relay-client"
    ]
    daemon = await relay(database.dsn)
    [example] = examples(STATIC / "README.md", "javascript")
    web_socket = f"globalThis.WebSocket ??= (await import('{npm_package('ws')}/wrapper.mjs')).default;\n"
    (tmp_path / "example.mjs").write_text(web_socket + example.replace("ws://localhost:4002", daemon.url))
    program = Program([node(), "example.mjs"], tmp_path, {})
    try:
        await until(lambda: "board.sync 0" in program.output, "the board")
        database.execute("insert into tasks (id, title) values ('a', 'A')")
        await until(lambda: "task.created 1" in program.output, "the change")
    finally:
        program.end()


@fully
def test_sbom_lists_what_is_installed_with_licences(dist: Path) -> None:
    """Each dependency with its version, and the package itself at the root."""
    bom = json.loads((dist / "sbom.cdx.json").read_text())
    root = bom["metadata"]["component"]
    components = {component["name"].lower(): component for component in bom["components"]}

    assert (bom["bomFormat"], root["name"], root["version"]) == ("CycloneDX", "pg-change-relay", __version__)
    assert {"psycopg", "websockets", "nats-py", "pydantic", "aiohttp"} <= components.keys()
    assert not {"pip", "uv", "pytest"} & components.keys()
    assert [name for name, component in components.items() if not component.get("licenses")] == []
    [dependencies] = [each["dependsOn"] for each in bom["dependencies"] if each["ref"] == root["bom-ref"]]
    assert len(dependencies) >= len(PROJECT["dependencies"])
