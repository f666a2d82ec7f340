"""What operators deploy with, in deploy/: each file is read by the program that it is written for.

The image and compose.yaml, which need a Docker engine, are in test_containers.py.
"""

from __future__ import annotations

import functools
import http.client
import json
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from packaging.markers import default_environment
from packaging.requirements import Requirement
from websockets.exceptions import InvalidStatus

import relay
from tests.acceptance.support import RELAY, SECONDS, Client, Daemon, Program, Relays, until
from tests.servers import Database, do_without

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
RULES: Final = DEPLOY / "prometheus" / "alerts.yml"
CONFIG: Final = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARD: Final = DEPLOY / "grafana" / "relay.json"
SERVICE: Final = DEPLOY / "relay.service"
OPERATOR: Final = ROOT / "docs" / "operations.md"

PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGE_PYTHON: Final = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux"}

AT_A_BREAK: Final = {"relay_continuity_lost_total"}
"""Metrics that no test here makes the daemon have."""

EXPOSURE: Final = 15
"""Tenths that systemd-analyze may find: of ten, so that 1.5 is little."""


def program(name: str, package: str) -> str:
    """Find a program."""
    return shutil.which(name) or do_without(f"{name} is not installed: on Debian and Ubuntu, apt install {package}")


def said(*command: str | Path) -> str:
    """Run a program that must succeed and return what it printed."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


# The image


def pinned(lock: str) -> dict[str, str]:
    """Return the version of each package in a lock file; each has its hashes."""
    entries = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE
    )
    assert len(entries) == lock.count("==")
    return {name: version for name, version, _ in entries}


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        (
            "requirements.lock",
            [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["nats"]],
        ),
        ("build.lock", PYPROJECT["build-system"]["requires"]),
    ],
)
def test_locked_versions_satisfy_the_project(lock: str, wanted: list[str]) -> None:
    """Whatever pyproject.toml asks for is pinned at a version that it allows; else: make lock."""
    versions = pinned((DEPLOY / lock).read_text())
    environment = {**{name: str(value) for name, value in default_environment().items()}, **IMAGE_PYTHON}

    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.specifier.contains(versions[requirement.name.replace("_", "-").lower()])
    assert (
        lock != "requirements.lock" or {"psycopg-binary", "cryptography", "nkeys"} <= versions.keys()
    )  # the extras'


def test_image_is_labelled() -> None:
    """The image says what it is, whose, and under which licence, by the names that registries read."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', (ROOT / "Dockerfile").read_text()))
    project = PYPROJECT["project"]

    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": relay.__version__,
        "licenses": project["license"],
        "authors": project["authors"][0]["name"],
        "url": project["urls"]["Homepage"],
        "source": project["urls"]["Source"],
        "documentation": project["urls"]["Documentation"],
        "created": "$CREATED",
        "revision": "$REVISION",
    }


# Prometheus


def test_promtool_finds_each_alert_to_fire_and_keep_quiet() -> None:
    """Prometheus's own checker takes the configuration and the rules, and each rule passes its unit tests."""
    promtool = program("promtool", "prometheus")
    said(promtool, "check", "config", CONFIG)
    said(promtool, "test", "rules", RULES.with_name("alerts_test.yml"))
    tests = RULES.with_name("alerts_test.yml").read_text()

    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    guide = OPERATOR.read_text()
    assert alerts == set(re.findall(r"^\| `(Relay\w+)` \| (?:critical|warning) \|", guide, re.MULTILINE))
    groups = re.findall(r"- name: (\w+).*\n((?:.+\n)+)", tests)
    assert alerts == {name for name, group in groups if f'ALERTS{{alertname="{name}",alertstate="firing"' in group}
    assert alerts <= {name for name, group in groups if "exp_samples: []" in group}
    quiet = "'ALERTS{alertstate=\"firing\"}', eval_time: 15m, exp_samples: []}"
    assert quiet in tests.split("- name: nothing to report")[1].split("- name:")[0]


class Prometheus(Program):
    """A real server, on a daemon instead of compose.yaml's."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        settings = CONFIG.read_text().replace("relay:4001", f"127.0.0.1:{daemon.health_port}")
        (folder / CONFIG.name).write_text(settings.replace("_interval: 10s", "_interval: 1s"))
        shutil.copy(RULES, folder)
        server = program("prometheus", "prometheus")
        options = ("--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0")
        super().__init__([server, f"--config.file={CONFIG.name}", *options], folder, {})
        self._port = 0

    async def listens(self) -> None:
        """Wait until it answers, and learn its port."""
        found = await until(lambda: re.findall(r'Listening on".*address=\S+:(\d+)', self.output), "Prometheus's port")
        self._port = int(found[0])
        await until(lambda: self._get("/-/ready")[0] == http.client.OK, "a ready Prometheus")

    def _get(self, path: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)) as link:
            link.request("GET", path)
            response = link.getresponse()
            return response.status, response.read()

    def api(self, path: str) -> Any:
        """Return what its interface answers."""
        answer = json.loads(self._get(f"/api/v1/{path}")[1])
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.api(f"query?query={quote(expression)}&time={time.time()}")["result"]
        return result


def panels() -> Iterator[tuple[str, str]]:
    """Yield each query of the dashboard with its panel's title, as Grafana fills in its variables."""
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {"$__rate_interval": "1m", "$instance": ".+"}
    sources = [
        (panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    for title, expression in [*sources, *((a["name"], a["expr"]) for a in dashboard["annotations"]["list"])]:
        filled = expression
        for variable, value in variables.items():
            filled = filled.replace(variable, value)
        assert "$" not in filled
        yield title, filled


def named(expressions: str) -> set[str]:
    """Return the metrics that expressions name, a histogram's by its name alone."""
    return {name.removesuffix("_bucket") for name in re.findall(r"\b(?:relay|process)_[a-z_]+", expressions)}


async def test_prometheus_watches_a_daemon(database: Database, relay: Relays, tmp_path: Path) -> None:
    """A real Prometheus takes up the rules and finds nothing to report; every panel of the dashboard has data."""
    program("prometheus", "prometheus")
    daemon = await relay(database.dsn, WS_MAX_CONNECTIONS="2")
    async with Client.to(daemon) as client, Client.to(daemon):
        await client.subscribe()
        with pytest.raises(InvalidStatus):
            async with Client.to(daemon):
                pass
    prometheus = Prometheus(tmp_path, daemon)
    try:
        await prometheus.listens()
        await until(lambda: [t["health"] for t in prometheus.api("targets")["activeTargets"]] == ["up"], "the target")
        await expect_quiet_rules(prometheus)
        for title, expression in panels():
            if not named(expression) & AT_A_BREAK and title != "Starts":
                await until(functools.partial(prometheus.query, expression), f"data for {title}: {expression}")
        expect_known_metrics(prometheus, await metrics_of(prometheus))
    finally:
        prometheus.end()


async def expect_quiet_rules(prometheus: Prometheus) -> None:
    """See that each rule was evaluated without an error, says all that it should, and does not fire."""

    def rules() -> list[dict[str, Any]]:
        found = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
        # Before the daemon was asked for the first time, it counts as away.
        return [] if any(rule["health"] == "unknown" or rule["state"] == "pending" for rule in found) else found

    for rule in await until(rules, "the evaluation of all rules"):
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
        assert rule["state"] == "inactive", rule
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} == rule["annotations"].keys()
        assert all(rule["annotations"].values())


async def metrics_of(prometheus: Prometheus) -> set[str]:
    """Return what it knows of the daemon's metrics, those without a sample included."""
    metadata = await until(lambda: prometheus.api("metadata"), "the metadata")
    kinds = {name: entries[0]["type"] for name, entries in metadata.items()}
    return {name for name in kinds if name.startswith(("relay_", "process_"))}


PUBLISHERS = {"relay_publisher_active"}
"""What no relay that serves clients has."""


def expect_known_metrics(prometheus: Prometheus, served: set[str]) -> None:
    """See that rules and dashboard name no metric that there is not, and the dashboard all of the relay's own."""
    rules = " ".join(rule["query"] for group in prometheus.api("rules")["groups"] for rule in group["rules"])
    shown = named(" ".join(expression for _, expression in panels()))

    assert (named(rules) | shown) - PUBLISHERS <= served
    assert {name for name in served if name.startswith("relay_")} <= shown


# Grafana


def test_dashboard_is_of_grafanas_schema() -> None:
    """Read into Grafana's own types and written again, the dashboard has lost nothing: it knows every field."""
    register_default_plugins()
    original = json.loads(DASHBOARD.read_text())
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(original)))

    assert list(lost(original, again)) == []


def lost(original: object, again: object, path: str = "") -> Iterator[str]:
    """Yield the paths at which something is missing or other; what has a default may have come."""
    if isinstance(original, dict) and isinstance(again, dict):
        for key, value in original.items():
            yield from lost(value, again.get(key), f"{path}/{key}")
    elif isinstance(original, list) and isinstance(again, list) and len(original) == len(again):
        for number, (one, other) in enumerate(zip(original, again, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif original != again:
        yield path


# systemd


@pytest.mark.parametrize("command", ["serve", "publish"])
def test_systemd_takes_the_unit_and_finds_it_confined(command: str, tmp_path: Path) -> None:
    """systemd's own checker has no word to say about the unit, nor a publisher's, and finds little that it may do."""
    analyze = program("systemd-analyze", "systemd")
    unit = tmp_path / SERVICE.name
    if command == "publish":
        (change,) = re.findall(r"^sed .* > relay-publisher.service$", OPERATOR.read_text(), re.MULTILINE)
        subprocess.run(change.replace("> ", f"> {tmp_path}/"), shell=True, cwd=ROOT, check=True)
        unit = tmp_path / "relay-publisher.service"
    else:
        shutil.copy(SERVICE, unit)
    assert f"/etc/pg-change-relay/{'publisher' if command == 'publish' else 'relay'}.env\n" in unit.read_text()
    start = rf"^ExecStart=\S+ {command}$"
    text, count = re.subn(start, f"ExecStart={RELAY} {command}", unit.read_text(), flags=re.MULTILINE)
    assert count == 1
    unit.write_text(text)

    finished = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr.strip()) == (0, "", "")
    said(analyze, "security", "--offline=true", f"--threshold={EXPOSURE}", unit)
