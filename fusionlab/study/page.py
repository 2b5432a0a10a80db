"""The frame of HTML pages that stand alone: one file, no script of its own, no network."""

from __future__ import annotations

from html import escape

NO_REQUESTS = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""
BODY_STYLE = """
body { margin: 0; color: #1d2129; background: #fff;
  font: 15px/1.5 system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
"""
REPORT_STYLE = f""":root {{ color-scheme: light; }}{BODY_STYLE}
a {{ color: #0072B2; }} .scroll {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: 13px; }}
"""


def html_page(title: str, body: str, *, style: str, head: str = "") -> str:
    """A whole page. body, head: markup; title: text."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{escape(title)}</title>
<style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""


def anchor(heading: str) -> str:
    """The id of a heading."""
    return heading.lower().replace(" ", "-")
