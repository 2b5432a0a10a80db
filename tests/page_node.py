"""Runs the page's modules in Node, line by line: the Node that Playwright brings, so every machine that tests has one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionlab.page_script import bundle

RESOLVE = """
import { createInterface } from "node:readline";
const traces = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const { payload, more = [], constraints } = JSON.parse(line);
  const trace = more.reduce((held, next) => growTrace(held, next), readTrace(payload));
  const resolver = new Resolver(trace);
  const solved = constraints.map((constraint) => {
    const found = resolver.solve(constraint);
    return { ...found, alpha: [...found.alpha], forward: [...found.forward], reverse: [...found.reverse],
      choice: [...found.choice].map((index) => trace.vocabulary.ids[index] ?? -1), flippedBy: [...found.flippedBy],
      top: Array.from({ length: trace.size }, (_, i) => {
        const e = trace.experts.length;
        return resolver.token(i).top(Float64Array.from(found.alpha.subarray(i * e, (i + 1) * e)), 4)
          .map(({ entry, logprob }) => [trace.vocabulary.ids[entry], logprob]);
      }) };
  });
  console.log(JSON.stringify(solved));
}
"""


class NodeResolver:
    """resolve.js on payloads: `solve(payload, constraints)` gives one dict a constraint."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def solve(
        self, payload: dict[str, Any], constraints: list[dict[str, Any]], *, more: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """The results of `Resolver.solve`, each with the four likeliest tokens of every step as `top`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"payload": payload, "more": more or [], "constraints": constraints}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "node ended; its message is above"
        return list(json.loads(line))


@contextmanager
def open_resolver(folder: Path) -> Iterator[NodeResolver]:
    """A Node process that has resolve.js loaded. folder: where its script may lie."""
    from playwright._impl._driver import compute_driver_executable

    script = folder / "resolve.mjs"
    script.write_text(bundle("resolve.js", module=True) + RESOLVE, encoding="utf-8")
    node = str(compute_driver_executable()[0])
    with subprocess.Popen([node, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield NodeResolver(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=10)
