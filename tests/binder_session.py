"""What Binder does, as far as it goes without a container engine. Minutes long, so `make binder-test` runs it.

The pip part of binder/environment.yml goes into a fresh virtual environment as conda would have pip install it, postBuild
runs with an empty cache, JupyterLab and notebook 01 run by binder/start. Not tried: conda itself, the base image, and
JupyterHub around it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from memory_watch import MemoryWatch, memory_group, within

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "notebooks/01_first_look.ipynb"
LIMIT_BYTES = 2 * 1024**3  # of a session on mybinder.org
TOKEN = "test"
SETTINGS = "lab/api/settings/@jupyterlab/apputils-extension:notification"


@dataclass(frozen=True)
class Image:
    """What repo2docker would have built."""

    checkout: Path
    environment: dict[str, str]  # of every process in it
    seconds: dict[str, float]  # of each stage

    def run(self, command: list[str], *, cwd: Path) -> str:
        """Run a command to its end; what it wrote. Fails the test with it where the exit code is not 0."""
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The checkout, its environment and its cache, each made from nothing."""
    home = tmp_path_factory.mktemp("home")
    checkout, prefix = home / "checkout", home / "environment"
    copy_checkout(checkout)
    described = yaml.safe_load((checkout / "binder" / "environment.yml").read_text())["dependencies"]
    subprocess.run([python_of(described), "-m", "venv", prefix], check=True)
    machine = {name: value for name, value in os.environ.items()
               if not name.startswith(("JUPYTER", "FUSIONLAB", "PYTHON", "OMP", "XDG", "VIRTUAL_ENV"))}  # fmt: skip
    made = Image(checkout, machine | {
        "HOME": str(home), "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(prefix),
        "FUSIONLAB_CACHE": str(home / "cache"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "PIP_RETRIES": "0",  # a closed network refuses each package's page once and not six times
        **({"PIP_CACHE_DIR": cache} if (cache := pip_cache()) else {}),
    }, {})  # fmt: skip

    started = time.perf_counter()
    [lines] = [entry["pip"] for entry in described if isinstance(entry, dict)]
    requirements = checkout / "binder" / "requirements-of-conda.txt"  # conda writes such a file beside environment.yml
    requirements.write_text("\n".join(lines) + "\n")
    made.run(["python", "-m", "pip", "install", "-U", "-r", str(requirements)], cwd=checkout / "binder")
    requirements.unlink()
    made.seconds["pip part of the environment"] = time.perf_counter() - started

    started = time.perf_counter()
    made.run(["./binder/postBuild"], cwd=checkout)
    made.seconds["postBuild"] = time.perf_counter() - started
    return made


def copy_checkout(target: Path) -> None:
    """The files that a clone would have, as they are now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def python_of(described: list[Any]) -> str:
    """A Python of the version that environment.yml asks for."""
    [version] = [entry.removeprefix("python=") for entry in described if str(entry).startswith("python=")]
    own = ".".join(map(str, sys.version_info[:2]))
    found = sys.executable if own == version else shutil.which(f"python{version}")
    if found is None:
        pytest.fail(f"binder/environment.yml asks for Python {version}, which is not here")
    return found


def pip_cache() -> str:
    """pip's cache of this user, which a new HOME would hide; "" where there is none."""
    done = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True)
    return done.stdout.strip()


def test_the_environment_holds_the_constrained_versions_and_the_cpu_build(image: Image) -> None:
    """What pip resolves is what was pinned, packages that come along included; nvidia's are gigabytes."""
    python = Path(image.environment["VIRTUAL_ENV"], "bin", "python")
    listed = json.loads(image.run([str(python), "-m", "pip", "list", "--format", "json", "--exclude-editable"], cwd=ROOT))
    versions = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in listed}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    assert versions.pop("torch") == f"{pinned['torch']}+cpu"
    versions.pop("pip")
    assert {name: version for name, version in versions.items() if pinned.get(name) != version} == {}


def test_postbuild_leaves_the_team_converted_and_nothing_to_throw_away(image: Image) -> None:
    """The image carries what a session needs: no download at its start, no second copy."""
    left = sorted(path.name for path in Path(image.environment["FUSIONLAB_CACHE"]).iterdir() if path.is_dir())
    assert len(left) == 1, left


def test_notebook_01_runs_in_jupyterlab_within_two_gigabytes(image: Image, tmp_path: Path) -> None:
    """Binder ends a session that needs more. JupyterLab, papermill and the kernel count together."""
    executed = tmp_path / "executed.ipynb"
    watch = MemoryWatch()
    with memory_group(LIMIT_BYTES) as group, watch.watching(), jupyterlab(image, watch, group) as address:
        assert NOTEBOOK in fetch(f"{address}lab/tree/{NOTEBOOK}")
        settings = json.loads(fetch(address + SETTINGS))["schema"]["properties"]
        assert settings["fetchNews"]["default"] == "false"
        assert settings["checkForUpdates"]["default"] is False
        command = ["./binder/start", "python", "-m", "papermill", "--no-progress-bar", NOTEBOOK, str(executed)]
        started = time.perf_counter()
        running = subprocess.Popen(within(group, command), cwd=image.checkout, env=image.environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        watch.add(running.pid)
        written, _ = running.communicate()
        image.seconds["notebook 01"] = time.perf_counter() - started
    assert running.returncode == 0, written[-4000:]
    print_report(image, watch, executed, limited=group is not None)
    assert group is not None or watch.samples_per_second >= 5, "neither limited nor watched closely enough: a busy machine?"
    assert watch.peak_bytes < LIMIT_BYTES


@contextmanager
def jupyterlab(image: Image, watch: MemoryWatch, group: Path | None) -> Iterator[str]:
    """JupyterLab as the image starts it; its address."""
    command = [
        "./binder/start",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--port=0",
        f"--IdentityProvider.token={TOKEN}",
    ]
    server = subprocess.Popen(within(group, command), cwd=image.checkout, env=image.environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    watch.add(server.pid)
    try:
        yield wait_for_address(Path(image.environment["JUPYTER_RUNTIME_DIR"]), server)
    finally:
        server.terminate()
        server.wait()


def wait_for_address(runtime: Path, server: subprocess.Popen[bytes], *, seconds: float = 120) -> str:
    """The address that the server writes down once it listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                return str(json.loads(path.read_text())["url"])
            except (ValueError, KeyError):  # still being written
                pass
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start within {seconds:g} s; exit code {server.poll()}")


def fetch(address: str) -> str:
    """The body of a page."""
    request = urllib.request.Request(address, headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def print_report(image: Image, watch: MemoryWatch, executed: Path, *, limited: bool) -> None:
    """What was measured, for whoever runs this by hand."""
    for stage, seconds in image.seconds.items():
        print(f"{stage:<32}{seconds:8.0f} s")
    limit = "in a control group of 2 GiB" if limited else "no control group could be made"
    rate = f"{watch.samples_per_second:.0f} samples a second"
    print(f"{'peak of JupyterLab and notebook':<32}{watch.peak_bytes / 1e9:8.2f} GB, {rate}, {limit}")
    print(f"{'executed notebook':<32}{executed.stat().st_size / 1e3:8.0f} kB")
