"""The version stands in one place, and every copy of it follows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import relay

ROOT: Final = Path(__file__).parents[2]
BUMP: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bumpversion"]
BUMP_MY_VERSION: Final = Path(sys.executable).parent / "bump-my-version"
COPIES: Final = {
    "relay/__init__.py": r'^__version__ = "(.+?)"$',
    "relay/client/js/package.json": r'^  "version": "(.+?)",$',
    "sql/install/schema.sql": r"relay\.version\(\) returns text\n(?:    .*\n)*as \$\$ select '(.+?)'::text \$\$;",
    "deploy/kubernetes/kustomization.yaml": r'newTag: "(.+?)"',
    "Dockerfile": r'image\.version="(.+?)"',
    "docs/monitoring.md": r"^version       (.+?), up",
}


def test_each_copy_of_the_version_is_that_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = {name: re.findall(copy, (ROOT / name).read_text(), re.MULTILINE) for name, copy in COPIES.items()}

    assert found == {name: [version] for name in COPIES}
    assert {file["filename"] for file in BUMP["files"]} == {*COPIES, "pyproject.toml", "CHANGELOG.md"}


def test_a_new_version_reaches_each_copy_and_the_changelog(tmp_path: Path) -> None:
    for file in (file["filename"] for file in BUMP["files"]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    command: list[str | Path] = [BUMP_MY_VERSION, "replace", "--new-version", "98.76.54"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr

    for name, copy in COPIES.items():
        assert re.findall(copy, (tmp_path / name).read_text(), re.MULTILINE) == ["98.76.54"], name
    assert tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["version"] == "98.76.54"
    assert re.search(r"^## \[Unreleased\]\n\n## \[98\.76\.54\] - \d{4}-\d\d-\d\d$", changelog(tmp_path), re.MULTILINE)


def test_the_changelog_has_a_dated_section_of_this_version() -> None:
    sections = re.findall(r"^## \[(.+)\](?: - (\d{4}-\d\d-\d\d))?$", changelog(ROOT), re.MULTILINE)

    assert sections[0] == ("Unreleased", "")
    assert sections[1][0] == relay.__version__
    assert all(date for _, date in sections[1:])
    kinds = set(re.findall(r"^### (.+)$", changelog(ROOT), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_both_packages_say_whose_they_are_and_where_to_find_more() -> None:
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    npm = json.loads((ROOT / "relay/client/js/package.json").read_text())

    assert python["license"] == npm["license"] == "MIT"
    assert python["authors"] == [{"name": npm["author"]}]
    assert npm["name"] == f"{python['name']}-client"
    assert npm["homepage"] == python["urls"]["Homepage"]
    assert (npm["repository"]["url"], npm["bugs"]) == (python["urls"]["Source"], python["urls"]["Issues"])
    assert {"postgres", "change-feed", "websocket"} <= {*python["keywords"]} & {*npm["keywords"]}


def changelog(folder: Path) -> str:
    return (folder / "CHANGELOG.md").read_text()
