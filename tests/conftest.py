"""What every test file shares: the hypothesis profiles and the browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from lab_pages import chrome, lab, watched

__all__ = ["chrome", "lab", "watched"]  # fixtures of the tests in JupyterLab

# The suite is repeatable and quick; HYPOTHESIS_PROFILE=thorough looks longer, and elsewhere each time.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; without one the test is skipped, or fails under continuous integration (CI set)."""
    from fusionlab.doctor import find_chromium

    path = find_chromium()
    if path is None:
        outcome = pytest.fail if os.environ.get("CI") else pytest.skip
        outcome("no Chromium found; see `make chromium`")
    assert path is not None
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: small matrices run faster so, and sums come out the same everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `fusionlab ...` through the installed entry point and return its exit code."""
    from fusionlab import cli

    monkeypatch.setenv("FUSIONLAB_DEBUG", "")  # so that what --debug sets is undone after the test

    def run_main(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fusionlab", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    return run_main
