"""The folder binder/: what repo2docker would install and run says the same as the rest of the project."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
BINDER = ROOT / "binder"
ENVIRONMENT = yaml.safe_load((BINDER / "environment.yml").read_text())
CONDA = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
[PIP] = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned() -> dict[str, Requirement]:
    """constraints.txt by package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {(line := Requirement(text)).name: line for text in lines if text and not text.startswith("#")}


def test_pip_installs_this_project_with_its_lab_extra_under_its_constraints() -> None:
    """Binder runs the versions that the suite runs, from the checkout itself."""
    project, constraints = "-e ..[lab]", "-c ../constraints.txt"
    assert sorted(set(PIP) - {project, constraints}) == [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        str(torch()),
    ]
    assert {project, constraints} < set(PIP)
    assert "lab" in PROJECT["optional-dependencies"]
    assert (BINDER / "../constraints.txt").resolve() == ROOT / "constraints.txt"


def torch() -> Requirement:
    """The line that asks for torch."""
    return next(line for line in map(Requirement, (text for text in PIP if text[0] != "-")) if line.name == "torch")


def test_torch_is_the_cpu_build_of_the_constrained_version() -> None:
    """Without the suffix an unreachable index would be answered by the CUDA build, gigabytes that Binder cannot use."""
    [asked] = torch().specifier
    assert asked.operator == "=="
    assert Version(asked.version).local == "cpu"
    assert Version(asked.version) in pinned()["torch"].specifier


def test_every_package_of_the_lab_extra_is_pinned() -> None:
    """An image that is built next month is the one that was tried."""
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["lab"])]
    names = {name.lower().replace("_", "-") for name in pinned()}
    assert {line.name.lower().replace("_", "-") for line in wanted} - names == set()


def test_conda_gives_a_python_that_the_project_supports() -> None:
    """repo2docker reads the minor version from this line and builds that Python."""
    [python] = [entry for entry in CONDA if entry.startswith("python")]
    version = re.fullmatch(r"python=(\d+\.\d+)", python)
    assert version is not None, python
    assert Version(version[1]) in SpecifierSet(PROJECT["requires-python"])
    assert "pip" in CONDA


def test_repo2docker_copies_the_checkout_before_it_installs() -> None:
    """It installs first, without the files, unless a pip line names a path; an editable install then finds nothing."""
    assert any(re.match(r"-e \.", line) for line in PIP)


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_run_as_programs(name: str) -> None:
    """repo2docker starts them by name."""
    script = BINDER / name
    assert os.access(script, os.X_OK), f"chmod +x binder/{name}"
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", script], check=True)


def test_start_hands_over_to_the_command_with_few_threads_and_no_telemetry() -> None:
    """Torch would take every core of a shared machine, of which a session has two; a choice of the user stays."""
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def seen(environment: dict[str, str]) -> dict[str, str]:
        done = subprocess.run([BINDER / "start", *show], env=environment, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    assert seen(free)["OMP_NUM_THREADS"] == "2"
    assert seen(free)["HF_HUB_DISABLE_TELEMETRY"] == seen(free)["DO_NOT_TRACK"] == "1"
    assert seen(free | {"OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"] == "1"


def test_jupyterlab_knows_every_setting_that_is_overridden() -> None:
    """A setting that JupyterLab renamed would do nothing, without a word."""
    overrides: dict[str, dict[str, Any]] = json.loads((BINDER / "overrides.json").read_text())
    schemas = Path(lab_folder()) / "schemas"
    for plugin, settings in overrides.items():
        extension, name = plugin.split(":")
        properties = json.loads((schemas / extension / f"{name}.json").read_text())["properties"]
        for key, value in settings.items():
            assert key in properties, f"{plugin} has no setting {key}"
            allowed = properties[key].get("enum", [value])
            assert value in allowed


def lab_folder() -> str:
    """Where JupyterLab keeps the schemas of its settings."""
    from jupyterlab.commands import get_app_dir  # type: ignore[import-untyped]

    return str(get_app_dir())


def test_the_documented_link_opens_the_first_notebook() -> None:
    """A path in a badge outlives the file that it names."""
    page = (ROOT / "docs" / "binder.md").read_text()
    paths = re.findall(r"urlpath=lab/tree/(notebooks/\w+\.ipynb)", page)
    assert paths
    for path in paths:
        assert (ROOT / path).is_file(), path
