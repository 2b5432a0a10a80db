"""The tutorial notebooks: they run, they stay small, and a saved one can be read without a kernel or a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fusionlab.experiments.pages import write_page

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
TUTORIALS = sorted(path.stem for path in NOTEBOOKS.glob("0[1-9]_*.ipynb"))
MOST_CODE_CELLS, MOST_LINES, MOST_BYTES = 14, 20, 1_000_000

# What the cells do stays the same, for few tokens.
PARAMETERS: dict[str, dict[str, Any]] = {
    "01_first_look": {"max_new_tokens": 4},
    "02_constraint": {"max_new_tokens": 6, "scales": [0.0], "directions": ["forward"], "budgets": [0.1]},
    "03_experts": {"max_new_tokens": 5},
    "04_context_and_arithmetic": {"max_new_tokens": 4, "items": 1, "shots": [0, 1]},
    "05_your_models": {"max_new_tokens": 3},
    "06_experiments": {"max_new_tokens": 4, "items": 3, "scales": [0.0, 1.0]},
}


def cells_of(name: str, kind: str) -> list[dict[str, Any]]:
    """The code or markdown cells, as git holds them."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def prose_of(name: str) -> str:
    """All markdown of a notebook."""
    return "\n".join("".join(cell["source"]) for cell in cells_of(name, "markdown"))


# -- as git holds them -----------------------------------------------------------------------------


def test_tutorials_are_numbered_without_a_gap() -> None:
    """Whoever reads them in order must not look for a missing one, and each is run here."""
    assert [int(name[:2]) for name in TUTORIALS] == list(range(1, len(TUTORIALS) + 1))
    assert sorted(PARAMETERS) == TUTORIALS


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_short(name: str) -> None:
    """A cell that does not fit half a screen is code for the package."""
    cells = cells_of(name, "code")
    assert len(cells) <= MOST_CODE_CELLS
    assert {cell["id"]: lines for cell in cells if (lines := len(cell["source"])) > MOST_LINES} == {}


@pytest.mark.parametrize("name", TUTORIALS)
def test_parameters_are_plain_values_before_all_other_code(name: str) -> None:
    """Papermill puts its values below this cell, and they travel as JSON."""
    first, *others = cells_of(name, "code")
    assert first["metadata"].get("tags") == ["parameters"]
    assert not any(cell["metadata"].get("tags") for cell in others)
    values: dict[str, Any] = {}
    exec("".join(first["source"]), values)
    del values["__builtins__"]
    json.dumps(values)
    assert PARAMETERS[name].keys() <= values.keys()


@pytest.mark.parametrize("name", TUTORIALS)
def test_links_between_notebooks_lead_somewhere(name: str) -> None:
    """A renamed notebook leaves a dead link behind."""
    for target in re.findall(r"\]\((\w+\.ipynb)\)", prose_of(name)):
        assert (NOTEBOOKS / target).is_file(), target


@pytest.mark.parametrize("name", TUTORIALS)
def test_formulas_need_no_script(name: str) -> None:
    """TeX is drawn by MathJax, which an exported page would have to fetch."""
    assert not re.search(r"\$|\\\(|\\\[", prose_of(name))


# -- executed ----------------------------------------------------------------------------------------


class WarmKernel:
    """One kernel that runs notebooks one after the other, from an empty namespace each: imports are paid once."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(cwd=str(NOTEBOOKS))

    def execute(self, name: str, parameters: dict[str, Any], executed: Path) -> None:
        """Run a notebook with papermill's parameters and save it, widget states included."""
        import nbformat
        from nbclient import NotebookClient
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook

        notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOKS / f"{name}.ipynb")), parameters)
        self.client.execute("%reset -f\nimport gc; gc.collect(); del gc", silent=True, reply=True, timeout=60)
        runner = NotebookClient(notebook, km=self.manager, timeout=300)
        runner.kc = self.client
        try:
            runner.execute(cleanup_kc=False)
        finally:
            nbformat.write(notebook, executed)

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[WarmKernel]:
    """The kernel of this file."""
    warm = WarmKernel()
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def executed(kernel: WarmKernel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every tutorial, executed from top to bottom; a cell that fails fails here, with its traceback."""
    folder = tmp_path_factory.mktemp("executed")
    paths = {name: folder / f"{name}.ipynb" for name in TUTORIALS}
    for name, path in paths.items():
        kernel.execute(name, PARAMETERS[name], path)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_and_shows_something(name: str, executed: dict[str, Path]) -> None:
    """From top to bottom, with the embedded team and no network."""
    cells = [cell for cell in json.loads(executed[name].read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells if cell["source"])
    kinds = {kind for cell in cells for output in cell["outputs"] for kind in output.get("data", {})}
    assert kinds & {"text/html", "image/svg+xml"}, "nothing to look at"


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_an_executed_tutorial_stays_below_a_megabyte(name: str, executed: dict[str, Path]) -> None:
    """Views bring their script along, once each; a plotly figure would bring five megabytes."""
    assert executed[name].stat().st_size < MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_an_executed_tutorial_tells_no_trouble(name: str, executed: dict[str, Path]) -> None:
    """Warnings in a tutorial make a learner look for a fault of theirs."""
    outputs = [output for cell in json.loads(executed[name].read_text())["cells"] for output in cell.get("outputs", [])]
    assert ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_the_page_of_a_tutorial_fetches_nothing(name: str, executed: dict[str, Path], tmp_path: Path) -> None:
    """It is read without a kernel, by mail or on a train."""
    page = tmp_path / "page.html"
    write_page(executed[name], page)
    reader = RemoteReader()
    reader.feed(page.read_text())
    assert reader.remote == []
    assert reader.tags > 20


class RemoteReader(HTMLParser):
    """Collects what a browser would fetch for a page: scripts, styles, pictures and frames, those inside frames too."""

    def __init__(self) -> None:
        super().__init__()
        self.remote: list[str] = []
        self.tags = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note an address, or read the page inside a frame."""
        self.tags += 1
        for name, value in attributes:
            if name == "srcdoc" and value:
                inner = RemoteReader()
                inner.feed(value)
                self.remote += inner.remote
            elif name in ("src", "href", "data", "poster", "srcset") and tag != "a" and remote(value):
                self.remote.append(f"<{tag} {name}={value}>")
            elif name == "style" and re.search(r"url\(\s*['\"]?(https?:)?//", value or ""):
                self.remote.append(f"<{tag} style={value}>")

    def handle_data(self, data: str) -> None:
        """Style sheets can import others."""
        if self.cdata_elem == "style":
            self.remote += re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^'\")]+", data)


def remote(address: str | None) -> bool:
    """Whether an address is fetched from somewhere."""
    return bool(re.match(r"\s*(\w+:)?//", address or "")) and not (address or "").startswith("data:")


def test_the_reader_finds_what_would_be_fetched() -> None:
    """The test above passes on any page if this one does not hold."""
    reader = RemoteReader()
    reader.feed(
        '<script src="https://cdn.test/a.js"></script><link href="//cdn.test/b.css"><a href="https://ok.test">x</a>'
        '<img src="data:image/png;base64,//8="><style>@import "https://cdn.test/c.css";</style>'
        '<iframe srcdoc="&lt;img src=&quot;http://cdn.test/d.png&quot;&gt;"></iframe>'
    )
    found = " ".join(reader.remote)
    assert len(reader.remote) == 4
    assert all(name in found for name in ("a.js", "b.css", "c.css", "d.png"))
