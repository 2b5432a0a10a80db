"""Part `rerun` of the explorer's benchmark: does running its cell again and again leave memory and widgets flat?

    python benchmarks/explorer.py rerun [--runs 50] [--team embedded|tiny] [--new-tokens 8]

A kernel of its own runs the cell as JupyterLab does, with the cell's id; every run makes an explorer, writes an answer
with the comparison texts, and shows it. After each, the kernel collects garbage, gives freed memory back, and counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

TESTS = Path(__file__).resolve().parents[1] / "tests"
TEAMS = {
    "embedded": "from fusionlab import Team\nteam = Team.from_pretrained('embedded', say=lambda line: None)",
    "tiny": f"import sys; sys.path.insert(0, {str(TESTS)!r})\nfrom tiny_team import make_team\nteam = make_team()",
}
PROMPTS = {"embedded": "Question: What is the capital of Norway?\nAnswer:", "tiny": "w1 w2 w3"}
CELL = """\
from fusionlab_widgets import Explorer
explorer = Explorer(team, prompt={prompt!r}, max_new_tokens={new_tokens})
explorer.run(wait=True)
explorer
"""
COUNT = """\
import gc, json, threading, psutil, ipywidgets
from fusionlab.allocator import release_freed_memory
gc.collect(); release_freed_memory()
print(json.dumps({
    "megabytes": psutil.Process().memory_info().rss / 1e6,
    "widgets": len(ipywidgets.widgets.widget._instances),
    "threads": threading.active_count(),
}))
"""
MARKS = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100)


def measure_rerun(*, runs: int = 50, team: str = "embedded", new_tokens: int = 8) -> list[dict[str, Any]]:
    """One row a run: run, megabytes (resident set of the kernel), widgets and threads alive in it."""
    cell = CELL.format(prompt=PROMPTS[team], new_tokens=new_tokens)
    rows = []
    with running_kernel() as client:
        execute(client, TEAMS[team])
        for run in range(1, runs + 1):
            execute(client, cell, cell_id="the-explorer-cell")
            rows.append({"run": run, **json.loads(execute(client, COUNT))})
    return rows


@contextmanager
def running_kernel() -> Iterator[Any]:
    """A client of a fresh Python kernel."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def execute(client: Any, code: str, *, cell_id: str = "another-cell") -> str:
    """Run code as the cell of an id; returns what it printed. Raises RuntimeError with the traceback where it fails."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = client.session.msg("execute_request", content, metadata={"cellId": cell_id})
    client.shell_channel.send(message)
    printed = ""
    while True:
        reply = client.get_iopub_msg(timeout=600)
        if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        if reply["msg_type"] == "stream" and reply["content"]["name"] == "stdout":
            printed += reply["content"]["text"]
        elif reply["msg_type"] == "error":
            raise RuntimeError("\n".join(reply["content"]["traceback"]))
        elif reply["msg_type"] == "status" and reply["content"]["execution_state"] == "idle":
            client.get_shell_msg(timeout=60)
            return printed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The part's command line."""
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--team", choices=list(TEAMS), default="embedded")
    parser.add_argument("--new-tokens", type=int, default=8)


def print_rerun(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    rows = measure_rerun(runs=options.runs, team=options.team, new_tokens=options.new_tokens)
    print(f"{options.team} team, {options.new_tokens} new tokens a run, kernel after each run of the cell")
    print("| run | resident MB | widgets | threads |\n| ---: | ---: | ---: | ---: |")
    for row in rows:
        if row["run"] in MARKS or row["run"] == options.runs:
            print(f"| {row['run']} | {row['megabytes']:.1f} | {row['widgets']} | {row['threads']} |")
