"""The image and compose.yaml on a real Docker engine, as an operator brings them up.

Where no engine answers, or it can get no base image, these tests are skipped, in CI too: an engine is not for every
machine to have. The image is built from what lies here, with the package index that the environment names. NATS and
HAProxy, which only carry what is tried, may be this machine's own programs in images made on the fly.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.conftest import GUIDE_PORT
from tests.acceptance.support import RELAY, Program, until
from tests.servers import sole_use

ROOT: Final = Path(__file__).parents[2]
GUIDE_CLIENT: Final = Path(__file__).parent / "guide" / "client.py"
IMAGE: Final = "pg-change-relay:test"
BASES: Final = ("python:3.13-slim", "postgres:18")
USER: Final = "65532"
FROM_THE_ENVIRONMENT: Final = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
ENGINE_SECONDS: Final = 10.0
BUILD_SECONDS: Final = 240.0

pytestmark = pytest.mark.timeout(2 * BUILD_SECONDS)


def docker(*arguments: str, check: bool = True, seconds: float = BUILD_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a command of Docker's; one that fails and should not fails the test with what it said."""
    return run("docker", *arguments, check=check, seconds=seconds)


def run(
    *command: str, check: bool = True, seconds: float = BUILD_SECONDS, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder of compose.yaml."""
    finished = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | dict(settings or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert finished.returncode == 0 or not check, finished.stdout + finished.stderr
    return finished


@pytest.fixture(scope="module")
def engine() -> None:
    """Skip what needs a Docker engine and its base images if there are none."""
    if shutil.which("docker") is None:
        pytest.skip("Docker is not installed")
    with contextlib.suppress(subprocess.TimeoutExpired):
        if docker("info", check=False, seconds=ENGINE_SECONDS).returncode == 0:
            for base in BASES:
                if docker("image", "inspect", base, check=False).returncode:
                    pulled = docker("pull", base, check=False)
                    if pulled.returncode:
                        pytest.skip(f"Docker cannot get {base}: {pulled.stderr.strip().splitlines()[-1]}")
            return
    pytest.skip("no Docker engine answers: see docker info")


@functools.cache
def compose_command() -> tuple[str, ...]:
    """Return how Compose is called here: a part of Docker, or the older program by itself."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) and run(*command, "version", check=False).returncode == 0:
            return command
    pytest.skip("Docker Compose is not installed")


def build(tag: str, *options: str) -> None:
    """Build the image. The network is this machine's, for an index or a proxy that only it can reach."""
    given = [f"--build-arg={name}" for name in FROM_THE_ENVIRONMENT if os.environ.get(name)]
    docker("build", "--network=host", *given, *options, f"--tag={tag}", ".")


def state(container: str, field: str) -> str:
    return docker("inspect", "--format", f"{{{{.State.{field}}}}}", container).stdout.strip()


def logged(container: str) -> str:
    logs = docker("logs", container)
    return logs.stdout + logs.stderr


async def healthy(containers: Iterable[str]) -> None:
    """Wait until these are healthy, for each as long as anything may take."""
    for container in containers:
        await until(functools.partial(_is_healthy, container), f"a healthy container {container}")


def _is_healthy(container: str) -> bool:
    return state(container, "Health.Status") == "healthy"


class Deployment:
    """What `docker compose up` starts, under a name of its own."""

    def __init__(self, images: Mapping[str, str] | None = None) -> None:
        self._project = f"pg-change-relay-test-{secrets.token_hex(4)}"
        self._images = images or {}

    def compose(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        # Port 0 is any free one; the guide's client finds the other.
        ports = {"WS_PORT": str(GUIDE_PORT), "HEALTH_PORT": "0", "EDGES_PORT": "0"}
        settings = {"RELAY_IMAGE": IMAGE, "WS_TOKENS": "", **ports, **self._images}
        return run(*compose_command(), "--project-name", self._project, *arguments, check=check, settings=settings)

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's container and return what it printed."""
        return self.compose("exec", "-T", service, *command, check=check).stdout

    def sql(self, query: str) -> str:
        return self.inside("postgres", "psql", "-U", "postgres", "-Atc", query).strip()

    def container(self, service: str) -> str:
        """Return the id of a service's container, also of one that has ended."""
        return self.compose("ps", "--quiet", "--all", service).stdout.strip()

    def containers(self, *services: str) -> list[str]:
        """Return the ids of all containers of these services."""
        return self.compose("--profile", "edges", "ps", "--quiet", *services).stdout.split()

    def state(self, service: str, field: str) -> str:
        return state(self.container(service), field)

    def logged(self) -> str:
        return logged(self.container("relay"))


@pytest.fixture
def deployment(engine: None) -> Iterator[Deployment]:  # noqa: ARG001  # asked for first
    """Yield the relay and its database in containers; they end with the test, and so do their volumes."""
    build(IMAGE)
    deployed = Deployment()
    with sole_use(f"port-{GUIDE_PORT}"):
        try:
            deployed.compose("up", "--detach", "--no-build")
            yield deployed
        finally:
            deployed.compose("down", "--volumes", "--timeout", "5")


async def test_compose_serves_the_guides_client(deployment: Deployment, tmp_path: Path) -> None:
    """A deployment gets healthy, serves the guide's client as nobody special, outlives Postgres, and ends with 0."""
    deployment.compose("--profile", "monitoring", "config", "--quiet")
    await healthy([deployment.container("relay")])
    expect_little_privilege(deployment)
    await expect_changes(deployment, tmp_path)
    assert any("websocket" in line.lower() for line in deployment.logged().splitlines())

    deployment.compose("stop", "postgres")
    await until(
        lambda: deployment.compose("exec", "-T", "relay", "healthcheck", "/ready", check=False).returncode, "503"
    )
    assert json.loads(deployment.inside("relay", "healthcheck", "/live").removeprefix("200 ")) == {"live": True}

    deployment.compose("stop")
    assert [deployment.state(service, "ExitCode") for service in ("postgres", "sql", "relay")] == ["0", "0", "0"]
    assert "relay.stopped" in deployment.logged()


def expect_little_privilege(deployment: Deployment) -> None:
    """See that neither process is root, may become it, or may write where its program is; and that no pip is left."""
    for service in ("relay", "postgres"):
        status = dict(
            line.split(":\t", 1) for line in deployment.inside(service, "cat", "/proc/1/status").splitlines()
        )
        assert "0" not in status["Uid"].split()
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        root = next(
            line for line in deployment.inside(service, "cat", "/proc/1/mounts").splitlines() if " / " in line
        )
        assert "ro" in root.split()[3].split(",")
    assert deployment.inside("relay", "id", "-u").strip() == USER
    assert (
        "No module named pip" in deployment.compose("exec", "-T", "relay", "python", "-m", "pip", check=False).stderr
    )
    who = "select distinct usename from pg_stat_activity where application_name = 'relay'"
    assert deployment.sql(who) == "relay_daemon"


async def expect_changes(deployment: Deployment, folder: Path) -> None:
    """See that the guide's Python client, verbatim, shows the board and then a write."""
    client = Program([sys.executable, "-u", GUIDE_CLIENT], folder, {})
    try:
        await until(lambda: "'board.sync'" in client.output, "the board")
        deployment.sql("insert into tasks (title) values ('Hello')")
        await until(lambda: "'task.created'" in client.output and "'Hello'" in client.output, "the task")
    finally:
        client.end()


# The feed through NATS


def image_of(image: str, program: str, folder: Path, *instructions: str) -> str:
    """Return an image that the engine has or can get, else one made of this machine's program and its libraries."""
    if docker("image", "inspect", image, check=False).returncode == 0:
        return image
    if (pulled := docker("pull", image, check=False)).returncode == 0:
        return image
    found = shutil.which(program, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None or shutil.which("ldd") is None:
        said = pulled.stderr.strip().splitlines()[-1]
        pytest.skip(f"Docker cannot get {image} ({said}), and there is no {program} here to take its place")
    for path in [found, *re.findall(r"(/\S+) \(0x", run("ldd", found, check=False).stdout)]:
        copy = folder / "root" / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    entry = f"ENTRYPOINT {json.dumps([found])}"
    (folder / "Dockerfile").write_text("\n".join(["FROM scratch", "COPY root/ /", entry, *instructions]))
    made = f"pg-change-relay-test-{program}"
    docker("build", f"--tag={made}", str(folder))
    return made


@pytest.fixture
def edges(engine: None, tmp_path: Path) -> Iterator[Deployment]:  # noqa: ARG001  # asked for first
    """Yield publishers, edges and what is between them in containers; they end with the test."""
    config = "/usr/local/etc/haproxy/haproxy.cfg"
    images = {
        "NATS_IMAGE": image_of("nats:2", "nats-server", tmp_path / "nats"),
        "HAPROXY_IMAGE": image_of(
            "haproxy:3.2", "haproxy", tmp_path / "haproxy", "USER 99:99", f'CMD ["-W", "-db", "-f", "{config}"]'
        ),
    }
    build(IMAGE)
    deployed = Deployment(images)
    try:
        # Without the relay, whose ports another test has.
        deployed.compose("--profile", "edges", "up", "--detach", "--no-build", "balancer", "publisher")
        yield deployed
    finally:
        deployed.compose("--profile", "edges", "down", "--volumes", "--timeout", "5")


async def test_compose_serves_from_edges(edges: Deployment, tmp_path: Path) -> None:
    """Through the balancer a client sees each row once, though its edge and the active publisher are killed."""
    publishers, its_edges = edges.containers("publisher"), edges.containers("edge")
    assert [len(publishers), len(its_edges)] == [2, 2]
    everything = publishers + its_edges
    await healthy(everything)
    expect_nobody_special(edges.containers("nats", "balancer", "publisher", "edge"))

    address = docker("port", edges.container("balancer"), "4002/tcp").stdout.splitlines()[0]
    url = f"ws://127.0.0.1:{address.rpartition(':')[2]}"
    client = Program([RELAY, "tail", "default", "--json", "--url", url], tmp_path, {})
    try:
        await until(lambda: '"board.sync"' in client.output, "the board")
        edges.sql("insert into tasks (title) values ('before')")
        await until(lambda: '"before"' in client.output, "the first task")

        [active] = [each for each in publishers if health(each)["stream"]["active"]]
        [used] = [each for each in its_edges if health(each)["websocket"]["connections"]]
        docker("kill", active, used)
        edges.sql("insert into tasks (title) values ('after')")
        await until(lambda: '"after"' in client.output, "the second task")
        await healthy(each for each in everything if each not in {active, used})
    finally:
        client.end()

    assert [client.output.count(f'"{title}"') for title in ("before", "after")] == [1, 1]
    assert not any("publisher:relay" in logged(each) or "edge:relay" in logged(each) for each in everything)
    assert "Violation" not in logged(edges.container("nats"))


def health(container: str) -> Any:
    """Ask a daemon for its health."""
    return json.loads(docker("exec", container, "healthcheck", "/health").stdout.partition(" ")[2])


def expect_nobody_special(containers: Sequence[str]) -> None:
    """See that none of these is root, has a capability, or may write where its program is."""
    for container in containers:
        assert "0" not in docker("top", container, "-eo", "uid,pid,args").stdout.split()[3::3]
        confined = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.CapAdd}}"
        assert docker("inspect", "--format", confined, container).stdout.strip() == "true [ALL] []"


@pytest.mark.skipif("BUILD_TWICE" not in os.environ, reason="two builds from nothing take a minute: make containers")
@pytest.mark.usefixtures("engine")
def test_build_is_reproducible() -> None:
    """Two builds from nothing give the same files, byte for byte, with the same times."""
    manifests = []
    for number in range(2):
        build(f"{IMAGE}-{number}", "--no-cache")
        manifests.append(docker("run", "--rm", "--entrypoint=python", f"{IMAGE}-{number}", "-c", MANIFEST).stdout)
        docker("image", "rm", f"{IMAGE}-{number}")

    assert manifests[0].count("\n") > 1000
    assert manifests[0].splitlines() == manifests[1].splitlines()


MANIFEST: Final = """
import hashlib, pathlib
for path in sorted(pathlib.Path("/relay").rglob("*")):
    stat = path.lstat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    print(path, oct(stat.st_mode), stat.st_uid, stat.st_mtime_ns, content)
"""
