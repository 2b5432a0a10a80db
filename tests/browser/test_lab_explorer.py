"""The explorer in JupyterLab, with a real browser and a real kernel: a notebook is opened, run, and used."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from lab_pages import ROOT, Lab, Watched
from playwright.sync_api import Locator, Page, expect

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
    page = open_notebook(lab, watched, "error.ipynb", ["from fusionlab_widgets import Explorer\nExplorer('embeded')"])
    explorer = page.locator(".fusionlab-explorer")
    expect(explorer.get_by_role("alert")).to_contain_text("unknown team 'embeded'")  # told before the page was there
    explorer.get_by_label("Large model").fill("./no-such-model")
    explorer.get_by_label("Small model").fill("./no-such-model")
    explorer.get_by_label("Experts, one a line").fill("math = ./no-such-expert")
    explorer.get_by_role("button", name="Load these models").click()
    expect(explorer.get_by_role("alert")).to_contain_text("no-such")
    watched.picture("1_error")
    big = {"name": "big.parquet", "mimeType": "application/octet-stream", "buffer": bytes(8_000_001)}
    explorer.locator("input[type=file]").set_input_files(big)  # type: ignore[arg-type]
    expect(explorer.get_by_role("alert")).to_contain_text("8,000,001 bytes, too many to send")
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


def test_a_drag_runs_no_model_and_a_release_writes_anew(lab: Lab, watched: Watched) -> None:
    """The promise of the explorer: while a slider moves nothing but this page works, and letting go asks the models."""
    page = open_notebook(lab, watched, "drag.ipynb", [TINY_TEAM, EXPLORER, "explorer.run(max_new_tokens=16, wait=True)"])
    explorer = page.locator(".fusionlab-explorer")
    expect(explorer.locator(".run")).to_have_count(1)
    wait_until_idle(explorer)
    passes, counter = explorer.locator(".passes-in-all"), explorer.locator(".passes .counter")
    before, text = passes.inner_text(), explorer.locator("[aria-label=Text]").inner_text()
    slider = explorer.get_by_label("Scale κ")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for share in (0.6, 0.75, 0.9, 0.98):
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
    expect(explorer.get_by_text(re.compile(r"\d+ of 16 tokens would change"))).to_be_visible()
    assert passes.inner_text() == before
    assert counter.inner_text() == "0"
    watched.picture("1_dragging")
    page.mouse.up()
    expect(explorer.locator(".run")).to_have_count(2)
    wait_until_idle(explorer)
    assert passes.inner_text() != before
    assert explorer.locator("[aria-label=Text]").inner_text() != text
    watched.picture("2_released")
    assert watched.left_the_machine == [] and watched.errors == []


def test_what_is_typed_is_kept_while_an_answer_is_steered(lab: Lab, watched: Watched) -> None:
    """The next question is often typed while the last answer is looked at."""
    page = open_notebook(lab, watched, "typed.ipynb", [TINY_TEAM, EXPLORER, "explorer.run(max_new_tokens=8, wait=True)"])
    explorer = page.locator(".fusionlab-explorer")
    expect(explorer.locator(".run")).to_have_count(1)
    wait_until_idle(explorer)
    prompt, ticks = explorer.get_by_label("Prompt"), explorer.get_by_role("group", name="Experts").get_by_role("checkbox")
    prompt.fill("w7 w8")
    ticks.first.uncheck()
    slider = explorer.get_by_label("Scale κ")
    slider.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    expect(explorer.locator(".run")).not_to_have_count(1)
    wait_until_idle(explorer)
    assert prompt.input_value() == "w7 w8" and not ticks.first.is_checked()
    explorer.locator("button.run").last.click()
    expect(prompt).to_have_value("w1 w2 w3")
    expect(ticks.first).to_be_checked()
    assert watched.errors == []


def test_what_if_comparison_and_exports_from_the_panel(lab: Lab, watched: Watched) -> None:
    """A candidate is put in a token's place; two runs are laid side by side; an answer is taken away in three forms."""
    page = open_notebook(lab, watched, "what_if.ipynb", [TINY_TEAM, EXPLORER, "explorer.run(max_new_tokens=12, wait=True)"])
    explorer = page.locator(".fusionlab-explorer")
    expect(explorer.locator(".run")).to_have_count(1)
    wait_until_idle(explorer)
    explorer.locator(".entry:not(.emitted) [data-choice]").first.click()
    expect(explorer.locator(".run")).to_have_count(2)
    wait_until_idle(explorer)
    watched.picture("1_what_if")
    for number in (1, 2):
        explorer.get_by_label(f"compare run {number}").check()
    explorer.get_by_role("button", name="Compare two").click()
    expect(explorer.locator(".runs-compared")).to_contain_text("Run 1 against run 2")
    watched.picture("2_compared")
    for name, ending in (("Trace", ".parquet"), ("Page", ".html")):
        with page.expect_download() as download:
            explorer.get_by_role("button", name=name, exact=True).click()
        assert download.value.suggested_filename.endswith(ending)
        assert Path(download.value.path()).stat().st_size > 1000
    explorer.get_by_role("button", name="Python call").click()
    expect(explorer.locator(".code")).to_contain_text("team.generate(")
    watched.picture("3_code")
    assert watched.left_the_machine == [] and watched.errors == []


def wait_until_idle(explorer: Locator) -> None:
    """Wait until models have written all there is to write, the comparison included."""
    expect(explorer.locator("[data-stage=idle]")).to_be_visible()
