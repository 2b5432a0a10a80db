"""Opens pages in a real Chromium for tests, and notes every dialog, error and request they make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusionlab.doctor import find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

INSTALL = "no Chromium for the browser tests; run `make chromium` or `.venv/bin/playwright install chromium`"


@dataclass
class Watch:
    """What a page did besides showing itself."""

    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def quiet(self) -> bool:
        return not (self.dialogs or self.errors or self.requests)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium; where there is none, the test fails with the way to install it."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        pytest.fail(INSTALL, pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, file: Path, *, width: int = 1400, height: int = 900, **options: Any) -> tuple[Page, Watch]:
    """Open a local file and keep watch on it."""
    page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
    watch = Watch()

    def dismiss(dialog: Any) -> None:
        watch.dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("pageerror", lambda error: watch.errors.append(str(error)))
    page.on("console", lambda message: watch.errors.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: watch.requests.append(request.url) if request.url != file.as_uri() else None,
    )
    page.goto(file.as_uri())
    return page, watch
