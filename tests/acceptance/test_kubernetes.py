"""deploy/kubernetes, as kubectl renders it: held to Kubernetes' schemas, and its settings and probes to a relay."""

from __future__ import annotations

import base64
import http.client
import importlib
import shlex
import shutil
import subprocess
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.acceptance.support import SECONDS, Relays, until
from tests.acceptance.test_docs import KUBERNETES, commands, examples
from tests.servers import Database, do_without

ROOT: Final = Path(__file__).parents[2]
BASE: Final = ROOT / "deploy" / "kubernetes"
VERSIONS: Final = [f"1.{minor}.0" for minor in range(30, 38)]
MORE_SECONDS: Final = 25
"""What a stop may take beside the pause before it and WS_DRAIN: see docs/deployment.md."""

Manifest = dict[str, Any]


def kubectl(*arguments: str | Path, folder: Path = ROOT) -> list[Manifest]:
    """Return the manifests that kubectl prints."""
    program = shutil.which("kubectl") or do_without(
        "kubectl is not installed: on Debian and Ubuntu, apt install kubernetes-client"
    )
    finished = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return list(yaml.safe_load_all(finished.stdout))


@pytest.fixture(scope="module")
def rendered() -> dict[str, Manifest]:
    """Return what would be applied, by kind."""
    return by_kind(kubectl("kustomize", BASE))


def by_kind(manifests: list[Manifest]) -> dict[str, Manifest]:
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    assert len(kinds) == len(manifests)
    return kinds


@pytest.fixture(scope="module")
def kubernetes() -> Any:
    """Return the package with the schemas, which takes a second to import: nobody else waits for it."""
    return importlib.import_module("kubernetes_validate")


def pod(rendered: dict[str, Manifest]) -> Manifest:
    spec: Manifest = rendered["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_fit_the_schemas_of_kubernetes(
    kubernetes: Any, rendered: dict[str, Manifest], version: str
) -> None:
    assert len(rendered) == len(list(BASE.glob("*.yaml")))  # the map in place of the kustomization
    for manifest in rendered.values():
        kubernetes.validate(manifest, version, strict=True)


def test_a_misspelt_field_does_not_fit(kubernetes: Any, rendered: dict[str, Manifest]) -> None:
    budget = rendered["PodDisruptionBudget"]
    misspelt = {**budget, "spec": {**budget["spec"], "maxUnavailabel": 1}}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(misspelt, VERSIONS[-1], strict=True)


def test_service_budget_and_policy_select_the_pods(rendered: dict[str, Manifest]) -> None:
    deployment = rendered["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    [container] = pod(rendered)["containers"]

    assert deployment["selector"]["matchLabels"] == labels
    assert rendered["Service"]["spec"]["selector"] == labels
    assert rendered["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert rendered["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert deployment["replicas"] > rendered["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in rendered["Service"]["spec"]["ports"]} == ports
    allowed = [rule["ports"][0]["port"] for rule in rendered["NetworkPolicy"]["spec"]["ingress"]]
    assert set(allowed) == set(ports)


def test_pods_may_do_as_little_as_the_image(rendered: dict[str, Manifest]) -> None:
    spec = pod(rendered)
    [container] = spec["containers"]
    user = spec["securityContext"]["runAsUser"]

    assert f"\nUSER {user}:{spec['securityContext']['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    [mount] = container["volumeMounts"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/run/secrets", True)


async def test_a_relay_with_these_settings_answers_the_probes(
    rendered: dict[str, Manifest], database: Database, relay: Relays, tmp_path: Path
) -> None:
    """The database's address comes from a file, as from the mounted secret; ports are this machine's free ones."""
    settings = dict(rendered["ConfigMap"]["data"])
    [container] = pod(rendered)["containers"]
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert (settings.pop("WS_PORT"), settings.pop("HEALTH_PORT")) == (ports["websocket"], ports["health"])
    (tmp_path / "DATABASE_URL").write_text(database.dsn)
    daemon = await relay("", CREDENTIALS_DIRECTORY=str(tmp_path), **settings)

    await until(lambda: daemon.ask("/ready")[0] == HTTPStatus.OK, "its readiness")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        with closing(http.client.HTTPConnection("127.0.0.1", daemon.health_port, timeout=SECONDS)) as link:
            link.request("GET", asked["path"])
            assert (asked["port"], link.getresponse().status) == ("health", 200)
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = pause + int(settings["WS_DRAIN"]) / 1000 + MORE_SECONDS
    assert pod(rendered)["terminationGracePeriodSeconds"] >= needed


def test_commands_of_the_page_do_what_they_say(rendered: dict[str, Manifest], tmp_path: Path) -> None:
    """Without a cluster: what they would send is right."""
    create, review, apply = (shlex.split(line)[1:] for line in commands(KUBERNETES))
    [secrets] = examples(KUBERNETES, "ini")
    (tmp_path / "relay.env").write_text(secrets)
    [secret] = kubectl(*create, "--dry-run=client", "--output=yaml", folder=tmp_path)

    assert secret["metadata"]["name"] == pod(rendered)["volumes"][0]["secret"]["secretName"]
    given = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert [f"{name}={value}" for name, value in given.items()] == secrets.splitlines()
    assert by_kind(kubectl(*review)) == rendered
    assert apply == ["apply", "--kustomize", *review[1:]]


def test_the_overlay_of_the_page_builds(kubernetes: Any, tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "pg-change-relay" / "deploy" / "kubernetes")
    (tmp_path / "overlay").mkdir()
    [overlay] = examples(KUBERNETES, "yaml")
    (tmp_path / "overlay" / "kustomization.yaml").write_text(overlay)
    rendered = by_kind(kubectl("kustomize", "overlay", folder=tmp_path))

    for manifest in rendered.values():
        kubernetes.validate(manifest, VERSIONS[-1], strict=True)
        assert manifest["metadata"]["namespace"] == "realtime"
    [container] = pod(rendered)["containers"]
    assert container["image"].startswith("registry.example.com/pg-change-relay:")
    assert rendered["Deployment"]["spec"]["replicas"] == 4
    settings = rendered["ConfigMap"]["data"]
    assert (settings["WS_PORT"], settings["WS_ORIGINS"]) == ("4002", "https://app.example.com")
    assert container["envFrom"] == [{"configMapRef": {"name": rendered["ConfigMap"]["metadata"]["name"]}}]
