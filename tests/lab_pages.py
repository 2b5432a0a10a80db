"""JupyterLab on a port of its own, and a Chromium that reaches nothing else; the fixtures are named in conftest.py."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_pages import open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[1]
IDLE = """name => {
  const shown = window.jupyterapp?.shell.currentWidget;
  return shown?.context?.path === name && shown.sessionContext.session?.kernel?.status === "idle";
}"""
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"  # no promise that would be waited for
START_SECONDS = 90
PATIENCE_MILLISECONDS = 30_000  # kernels import torch, on machines that do other things too
QUIET_SETTINGS = {  # nothing that asks the network, and no pop-up over what is looked at
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/completer-extension/manager": {"autoCompletion": False},
}


@dataclass
class Lab:
    """A running JupyterLab and the folder that it shows."""

    url: str
    token: str
    folder: Path
    process_id: int

    def address(self, notebook: str) -> str:
        """Where a notebook of the folder opens."""
        name = Path(notebook).stem  # a workspace of its own, so that no other notebook is open beside it
        return f"{self.url}/lab/workspaces/{name}/tree/{notebook}?reset&token={self.token}"

    def shut_down_kernels(self) -> None:
        """End every kernel, and with it the models that it holds."""
        for session in self.ask("GET", "sessions"):
            self.ask("DELETE", f"sessions/{session['id']}")

    def ask(self, method: str, resource: str) -> Any:
        """One request to the server's own interface."""
        request = urllib.request.Request(f"{self.url}/api/{resource}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")


@dataclass
class Watched:
    """A page, and what it did besides showing itself."""

    page: Page
    pictures: Path
    errors: list[str] = field(default_factory=list)
    left_the_machine: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def picture(self, name: str) -> Path:
        """Keep a screenshot among the test's artefacts."""
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def dismiss(self, dialog: Any) -> None:
        """Note a dialog and close it."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def hear(self, message: Any) -> None:
        """Note an error on the console, but for pages of JupyterLab's own that it looks for in vain."""
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def run_all(self, notebook: str) -> None:
        """Run every cell of the notebook that is open, without waiting for them."""
        self.page.wait_for_function(IDLE, arg=notebook)
        self.page.evaluate(RUN_ALL)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a temporary folder."""
    with running_lab(tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("server")) as running:
        yield running


@contextmanager
def running_lab(folder: Path, server_files: Path, *, threads: int = 1) -> Iterator[Lab]:
    """JupyterLab on a folder; its settings and log go to another one. threads: of each kernel's arithmetic."""
    for name, values in QUIET_SETTINGS.items():
        path = server_files / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port, token = free_port(), secrets.token_hex(8)
    log = server_files / "lab.log"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly", "--LabApp.news_url=",
    ]  # fmt: skip
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(server_files), "JUPYTERLAB_WORKSPACES_DIR": str(server_files / "workspaces"),
        "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield Lab(f"http://127.0.0.1:{port}", token, folder, server.pid)
    finally:
        server.terminate()
        server.wait(30)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers; if it ends or stays silent, the test fails with its log."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}", pytrace=False)


@pytest.fixture(scope="session")
def chrome() -> Iterator[Browser]:
    """One Chromium for all tests; where there is none they fail, with the way to install it."""
    with open_browser() as browser:
        yield browser


@pytest.fixture
def watched(lab: Lab, chrome: Browser, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A new page without a network. Screenshots are kept in runs/browser/<test>, the last one when a test fails."""
    pictures = Path(os.environ.get("FUSIONLAB_PICTURES", ROOT / "runs" / "browser")) / request.node.name
    pictures.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import expect

    with closed_context(chrome) as (context, outside):
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        expect.set_options(timeout=PATIENCE_MILLISECONDS)
        found = Watched(page, pictures, left_the_machine=outside)
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        page.on("dialog", found.dismiss)
        page.on("console", found.hear)
        yield found
        found.picture("at_the_end")
        lab.shut_down_kernels()
        if found.errors:
            print("errors of the page:", *found.errors, sep="\n")  # shown when the test fails


@contextmanager
def closed_context(browser: Browser) -> Iterator[tuple[BrowserContext, list[str]]]:
    """A browser context in which every request that would leave 127.0.0.1 is refused and noted."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    outside: list[str] = []

    def refuse(route: Any) -> None:
        outside.append(route.request.url)
        route.abort()

    context.route(lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")), refuse)
    try:
        yield context, outside
    finally:
        context.close()
