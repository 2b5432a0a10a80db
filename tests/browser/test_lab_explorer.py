"""The explorer in JupyterLab, with a real browser and a real kernel: a notebook is opened, run, and used."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from lab_pages import ROOT, Lab, Watched
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TINY_TEAM = f"""\
import sys
import time
sys.path.insert(0, {str(ROOT / "tests")!r})
from tiny_team import make_team
from fusionlab.cached import CachedModel
from fusionlab_widgets import Explorer

read, pause = CachedModel.read, 0.0
def slow_read(self, *args):
    time.sleep(pause)
    return read(self, *args)
CachedModel.read = slow_read
team = make_team()
"""
EXPLORER = "explorer = Explorer(team, prompt='w1 w2 w3', max_new_tokens=100)\nexplorer"


def open_notebook(lab: Lab, watched: Watched, name: str, cells: list[str]) -> Page:
    """Write a notebook of code cells, open it, run it."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.folder / name)
    page = watched.page
    page.goto(lab.address(name))
    watched.run_all(name)
    return page


def test_a_prompt_is_typed_written_on_and_stopped(lab: Lab, watched: Watched) -> None:
    """The whole way: browser, kernel, worker, models and back, in words and numbers that can be read."""
    page = open_notebook(lab, watched, "stop.ipynb", [TINY_TEAM, EXPLORER, "pause = 0.05"])
    explorer = page.locator(".fusionlab-explorer")
    explorer.wait_for()
    prompt = explorer.get_by_label("Prompt")
    prompt.fill("w5 w6 w7")
    watched.picture("1_ready")
    explorer.get_by_role("button", name="Run", exact=True).click()
    expect(explorer.locator(".progress-words")).to_have_text(re.compile(r"Token \d+ of at most 100"))
    watched.picture("2_writing")
    explorer.get_by_role("button", name="Stop", exact=True).click()
    expect(explorer.locator(".progress-words")).to_have_text(re.compile(r"Stopped after \d+ of 100 tokens"))
    written = int(re.findall(r"\d+", explorer.locator(".progress-words").inner_text())[0])
    assert 0 < written < 100
    watched.picture("3_stopped")
    explorer.get_by_role("button", name="Continue").click()
    expect(explorer.locator(".progress-words")).not_to_have_text(re.compile("Stopped"))
    assert watched.left_the_machine == [] and watched.errors == [] and watched.dialogs == []


def test_letters_typed_into_the_panel_do_not_command_the_notebook(lab: Lab, watched: Watched) -> None:
    """In JupyterLab's command mode "d d" deletes a cell and "b" adds one; in a prompt they are letters."""
    page = open_notebook(lab, watched, "letters.ipynb", [TINY_TEAM, EXPLORER])
    prompt = page.locator(".fusionlab-explorer").get_by_label("Prompt")
    prompt.click()
    prompt.press_sequentially(" abbxddm")
    assert prompt.input_value().endswith(" abbxddm")
    assert page.locator(".jp-Notebook .jp-Cell").count() == 2


def test_an_error_is_read_in_the_panel(lab: Lab, watched: Watched) -> None:
    """A wrong model id is the first thing that goes wrong for everybody."""
    page = open_notebook(lab, watched, "error.ipynb", ["from fusionlab_widgets import Explorer\nExplorer()"])
    explorer = page.locator(".fusionlab-explorer")
    explorer.get_by_label("Large model").fill("./no-such-model")
    explorer.get_by_label("Small model").fill("./no-such-model")
    explorer.get_by_label("Experts, one a line").fill("math = ./no-such-expert")
    explorer.get_by_role("button", name="Load these models").click()
    expect(explorer.get_by_role("alert")).to_contain_text("no-such")
    watched.picture("1_error")
    assert watched.left_the_machine == [] and watched.errors == []


def test_a_notebook_without_a_kernel_still_shows_the_answer(lab: Lab, watched: Watched) -> None:
    """Saved, shut down and opened again: the views are there and say what to do."""
    run = "explorer.run(max_new_tokens=12, wait=True)"
    page = open_notebook(lab, watched, "saved.ipynb", [TINY_TEAM, EXPLORER, run])
    page.locator(".fusionlab-explorer .run").first.wait_for()
    expect(page.locator(".fusionlab-saved-view")).to_be_hidden()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    banner = page.locator(".fusionlab-explorer .banner")
    expect(banner).to_contain_text("kernel is gone or was restarted")
    explorer = page.locator(".fusionlab-explorer")
    explorer.get_by_label("Scale κ").fill("0.4")
    expect(explorer.get_by_text(re.compile(r"of 12 tokens would change"))).to_be_visible()
    expect(banner).to_contain_text("kernel is gone or was restarted")
    watched.picture("1_kernel_restarted")
    lab.shut_down_kernels()
    page.goto("about:blank")
    page.goto(lab.address("saved.ipynb"))
    saved = page.locator(".fusionlab-saved-view")
    saved.wait_for()
    expect(saved).to_contain_text("run the cell again")
    watched.picture("2_opened_again")
    size = Path(lab.folder / "saved.ipynb").stat().st_size
    assert size < 1_000_000
    assert watched.left_the_machine == [] and watched.errors == []
