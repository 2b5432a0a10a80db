"""An executed notebook as one HTML page that needs no network, and no kernel.

Figures bring plotly's own script along, once a page, or link to a copy beside the pages where many of them share one.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from fusionlab.atomic_file import write_atomically
from fusionlab.study.page import BODY_STYLE, html_page

PLOTLY_TYPE = "application/vnd.plotly.v1+json"
PLOTLY_FILE = "plotly.min.js"


def write_page(notebook: Path | Any, page: Path, *, plotly: str | None = None, plain: bool = False) -> None:
    """Write the executed notebook (a file or an nbformat node) to `page`.

    plotly: link to the script from the page; None: the page carries it. plain: without JupyterLab's style sheet, 10 kB in
    place of 280. Raises OutputError.
    """
    import nbformat

    content = nbformat.read(notebook, as_version=4) if isinstance(notebook, Path) else nbformat.from_dict(notebook)
    embed_figures(content, plotly=plotly)
    content.metadata.pop("widgets", None)  # a widget state makes nbconvert load its manager from a CDN
    html, _ = exporter(plain).from_notebook_node(content)
    if plain:
        html = html_page(page.parent.name or page.stem, html, style=plain_style())
    write_atomically(page, html)


@functools.cache
def exporter(plain: bool = False) -> Any:
    """nbconvert's HTML exporter without anything remote; made once, as its templates take a second to compile."""
    from nbconvert import HTMLExporter

    made = HTMLExporter(embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True,
                        template_name="basic" if plain else "lab")  # fmt: skip
    for remote in ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"):
        if made.has_trait(remote):
            setattr(made, remote, "")
    made.exclude_anchor_links = True
    return made


def embed_figures(content: Any, *, plotly: str | None = None) -> bool:
    """Replace every plotly output by HTML that draws it; the first one brings the script. Whether there was one."""
    script: bool | str = True if plotly is None else plotly
    found = False
    for cell in content.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get(PLOTLY_TYPE)
            if figure is not None:
                from plotly import io

                figure = {key: figure[key] for key in ("data", "layout") if key in figure}
                html = io.to_html(figure, include_plotlyjs=script, full_html=False, validate=False)
                output["data"] = {"text/html": html}
                script, found = False, True
    return found


def write_plotly(folder: Path) -> Path:
    """Put plotly's script into a folder, for pages that link to it. Raises OutputError."""
    from plotly.offline import get_plotlyjs

    path = folder / PLOTLY_FILE
    if not path.is_file():
        write_atomically(path, get_plotlyjs())
    return path


@functools.cache
def plain_style() -> str:
    """The style sheet of plain pages, with pygments' colours for code."""
    from pygments.formatters import HtmlFormatter

    return STYLE + HtmlFormatter().get_style_defs(".highlight")


STYLE = (
    BODY_STYLE
    + """
main { max-width: 1000px; margin: 0 auto; padding: 24px; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.45 ui-monospace, 'DejaVu Sans Mono', monospace; }
.jp-InputArea, .input_area { background: #f5f6f8; border-left: 3px solid #c3c9d1; padding: 8px 12px; margin: 12px 0 6px; }
.jp-OutputArea-output { margin: 4px 0; overflow-x: auto; }
.jp-RenderedText[data-mime-type$=stderr] { background: #fdeeee; padding: 4px 10px; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: 3px 10px 3px 0; text-align: right; }
.highlight { background: transparent !important; }
.ansi-red-fg, .ansi-red-intense-fg { color: #b3261e; } .ansi-green-fg { color: #17692c; }
.ansi-cyan-fg { color: #0a6a75; } .ansi-blue-fg { color: #1c4ea0; } .ansi-bold { font-weight: 600; }
"""
)
