"""Notebook 01 as a newcomer meets it: opened in JupyterLab, run with the embedded team, steered, looked at in the dark."""

from __future__ import annotations

import re
import shutil

import pytest
from lab_pages import ROOT, Lab, Watched
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAME = "01_first_look.ipynb"
LOADING_MILLISECONDS = 120_000
FOCUSED = """() => {
  let node = document.activeElement;
  while (node?.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
  const label = node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent;
  return `${node.tagName.toLowerCase()}.${node.getAttribute('class') ?? ''}: ${label}`;
}"""


def test_notebook_01_is_run_and_steered(lab: Lab, watched: Watched) -> None:
    """All that the notebook's text promises, in the order of the text."""
    shutil.copy(ROOT / "notebooks" / NAME, lab.folder / NAME)
    page = watched.page
    page.goto(lab.address(NAME))
    watched.run_all(NAME)
    recorded = page.locator(".jp-Cell .fusion:visible").first
    expect(recorded.locator("svg.heatmap")).to_be_visible()
    explorer = page.locator(".fusionlab-explorer")
    expect(explorer.locator("svg.heatmap")).to_be_visible(timeout=LOADING_MILLISECONDS)
    expect(explorer.locator("[data-stage=idle]")).to_be_visible(timeout=LOADING_MILLISECONDS)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    recorded.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # JupyterLab attaches what is scrolled to
    watched.picture("1_recorded")

    check_linked_selection(page, recorded)
    check_that_a_drag_repaints(page, recorded)
    watched.picture("2_recorded_steered")

    explorer.scroll_into_view_if_needed()
    watched.picture("3_live")
    check_linked_selection(page, explorer)
    passes, text = explorer.locator(".passes-in-all"), explorer.locator("[aria-label=Text]")
    before, answer = passes.inner_text(), text.inner_text()
    check_that_a_drag_repaints(page, explorer, release=False)
    assert passes.inner_text() == before
    assert explorer.locator(".passes .counter").inner_text() == "0"
    watched.picture("4_live_dragged")
    page.mouse.up()
    expect(explorer.locator(".run")).to_have_count(2)
    expect(explorer.locator("[data-stage=idle]")).to_be_visible(timeout=LOADING_MILLISECONDS)
    assert passes.inner_text() != before
    assert text.inner_text() != answer
    watched.picture("5_live_written_anew")

    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    for frame in page.locator(".fusion:visible").all():
        expect(frame).to_have_attribute("data-theme", "dark")
        assert lightness(frame) < 80
    watched.picture("6_dark")
    assert watched.left_the_machine == [] and watched.errors == [] and watched.dialogs == []


def check_linked_selection(page: Page, views: Locator) -> None:
    """A click in the text and a key in the heatmap: strip, heatmap, curves and inspector name the same token."""

    def everywhere(i: int) -> None:
        expect(views.locator(".inspector").first).to_contain_text(f"token {i + 1} of")
        expect(views.locator(".curves").first).to_contain_text(f"at token {i + 1}:")
        expect(views.locator(".token[aria-selected=true]").first).to_have_attribute("data-token", str(i))
        expect(views.locator("svg.heatmap").first).to_have_attribute("aria-activedescendant", re.compile(rf"-{i}$"))

    views.locator(".token[data-token='3']").first.click()
    everywhere(3)
    views.locator("svg.heatmap").first.focus()
    page.keyboard.press("ArrowRight")
    everywhere(4)


def check_that_a_drag_repaints(page: Page, views: Locator, *, release: bool = True) -> None:
    """The scale is dragged to 0 by the mouse: weights go, and the tokens that would change are marked."""
    heatmap = views.locator("svg.heatmap").first
    cells = "svg => [...svg.querySelectorAll('rect[id^=cell]')].map(cell => cell.outerHTML).join()"
    painted, marked = heatmap.evaluate(cells), views.locator(".token.would").count()
    slider = views.get_by_label("Scale κ").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    for share in (0.4, 0.2, 0.1, 0.0):
        page.mouse.move(box["x"] + box["width"] * share + 1, middle)
    expect(views.get_by_text(re.compile(r"\d+ of \d+ tokens would change")).first).to_be_visible()
    assert heatmap.evaluate(cells) != painted
    assert views.locator(".token.would").count() > marked
    if release:
        page.mouse.up()


def test_the_controls_are_walked_by_keyboard(lab: Lab, watched: Watched) -> None:
    """The tab key alone leaves no control out, and an arrow on a slider solves again."""
    name = "keys.ipynb"
    shutil.copy(ROOT / "notebooks" / NAME, lab.folder / name)
    page = watched.page
    page.goto(lab.address(name))
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    for _ in range(4):  # the title, the parameters, the text and the cell of the recorded trace
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
    views = page.locator(".jp-Cell .fusion:visible").first
    expect(views.locator("svg.heatmap")).to_be_visible()
    slider = views.get_by_label("Scale κ").first
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(views.locator(".field-scale .value").first).to_have_text("0.99")
    page.keyboard.press("Shift+Tab")
    seen = [page.evaluate(FOCUSED)]  # the last of the presets
    slider.focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
        if "svg.heatmap" in seen[-1]:
            break
    assert seen[0].startswith("button."), seen
    joined = "\n".join(seen)
    for wanted in ("Greatest weight", "Budget", "Method", "span.token", "svg.heatmap"):
        assert wanted in joined, joined
    page.keyboard.press("ArrowRight")
    expect(views.locator(".token[aria-selected=true]").first).to_be_visible()
    watched.picture("1_heatmap_by_keyboard")
    assert watched.left_the_machine == [] and watched.errors == []


def lightness(frame: Locator) -> int:
    """The red part of a background."""
    return int(frame.evaluate("node => Number(getComputedStyle(node).backgroundColor.match(/\\d+/)[0])"))
