"""What the explorer costs, measured in Chromium.

    python benchmarks/explorer.py drag [--tokens 200] [--experts 4] [--moves 120]
    python benchmarks/explorer.py rerun [--runs 50] [--team embedded|tiny] [--new-tokens 8]
    python benchmarks/explorer.py open [--repetitions 3]
    python benchmarks/explorer.py tutorials

`drag`: a slider is moved; from the input event to the next frame after the page was solved and painted again, in
milliseconds. The trace is made of random distributions of 400 tokens: what a browser does depends on the numbers of
tokens and experts, not on who made them. The other parts are told in explorer_rerun.py, explorer_open.py and
explorer_tutorials.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import explorer_open
import explorer_rerun
import explorer_tutorials
import numpy as np
import torch

from fusionlab.constraint import KLConstraint
from fusionlab.decode import Distributions, fuse_one_token
from fusionlab.doctor import find_chromium
from fusionlab.record import TraceRecorder
from fusionlab.trace import Trace
from fusionlab.trace_html import traces_to_html

DRAG = """
async ({ control, from, to, moves }) => {
  const root = document.querySelector('.fusion-host').shadowRoot;
  const input = root.querySelector(control);
  const waits = [];
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  for (let i = 0; i < moves; i++) {
    const share = (1 - Math.cos((2 * Math.PI * i) / moves * 3)) / 2;
    input.value = from + (to - from) * share;
    const start = performance.now();
    input.dispatchEvent(new Event('input', { bubbles: true }));
    await frame();
    // a message is handled after the frame was painted
    const channel = new MessageChannel();
    await new Promise((resolve) => { channel.port1.onmessage = resolve; channel.port2.postMessage(0); });
    waits.push(performance.now() - start);
  }
  input.dispatchEvent(new Event('change', { bubbles: true }));
  return waits;
}
"""


def make_trace(tokens: int, experts: int, *, vocabulary: int = 400, method: str = "evidence") -> Trace:
    """A full trace of random but language-like steps, through the recorder of the decode."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"expert {letter}" for letter in "ABCDEFGH"[:experts])
    constraint = KLConstraint()
    recorder = TraceRecorder(prompts=["A random walk"], experts=names, method=method, constraint=constraint, level="full",
                             piece_of=lambda token: f" word{token}", meta={})  # fmt: skip
    evidence = torch.zeros(1, experts, dtype=torch.float64)  # in doubt at first, then for one expert
    for step in range(tokens):
        large = 2.5 * torch.randn(1, vocabulary, generator=generator)
        small = large + torch.randn(1, vocabulary, generator=generator)
        change = torch.randn(experts, 1, vocabulary, generator=generator) * torch.rand(experts, 1, 1, generator=generator)
        log_p, log_q, log_r = (torch.log_softmax(scores, -1) for scores in (large, small, small + change))
        fused = fuse_one_token(Distributions(log_p, log_q, log_r), method=method, constraint=constraint, experts=names,
                               evidence=evidence, step=step)  # fmt: skip
        recorder.add_step(fused, fused.log_fused.argmax(-1), [0])
        evidence[0, 0] += 3
    return recorder.finish([""])[0]


def measure_drags(page: Any, moves: int) -> list[tuple[str, list[float]]]:
    """Milliseconds of every move, for each control that is dragged."""
    controls = [("scale κ", "#control-scale", 0.0, 2.0), ("greatest weight", "#control-alpha_max", 0.1, 2.0)]
    rows = [(name, drag(page, control, low, high, moves)) for name, control, low, high in controls]
    page.locator("#control-bound").check()
    return [*rows, ("budget", drag(page, "#control-budget", 0.0, 1.0, moves))]


def drag(page: Any, control: str, low: float, high: float, moves: int) -> list[float]:
    """Milliseconds from each input event to the painted frame."""
    return list(page.evaluate(DRAG, {"control": control, "from": low, "to": high, "moves": moves}))


def run_drag(options: argparse.Namespace) -> None:
    """Print the table of `drag`."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise SystemExit("no Chromium found; see `make chromium`")
    trace = make_trace(options.tokens, options.experts)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "trace.html"
        traces_to_html([trace], file)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(file.as_uri())
        page.locator(".token").first.wait_for()
        rows = measure_drags(page, options.moves)
        browser.close()
    print(f"{options.tokens} tokens, {options.experts} experts, method evidence, {options.moves} moves a control, {path}")
    print(f"{'dragged':<18}{'median':>8}{'p95':>8}{'slowest':>9}  ms")
    for name, waits in rows:
        median, p95 = np.quantile(waits, [0.5, 0.95])
        print(f"{name:<18}{median:>8.1f}{p95:>8.1f}{max(waits):>9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    dragging = parts.add_parser("drag", help="a slider is dragged over a saved trace")
    dragging.add_argument("--tokens", type=int, default=200)
    dragging.add_argument("--experts", type=int, default=4)
    dragging.add_argument("--moves", type=int, default=120)
    dragging.set_defaults(run=run_drag)
    again = parts.add_parser("rerun", help="the explorer's cell is run again and again")
    explorer_rerun.add_options(again)
    again.set_defaults(run=explorer_rerun.print_rerun)
    opening = parts.add_parser("open", help="notebook 01 is opened in JupyterLab and run")
    explorer_open.add_options(opening)
    opening.set_defaults(run=explorer_open.print_openings)
    tutorials = parts.add_parser("tutorials", help="every tutorial is run and made into a page")
    tutorials.set_defaults(run=explorer_tutorials.print_tutorials)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
