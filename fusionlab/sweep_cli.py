"""The commands for experiments: `fusionlab run | sweep | results | report | compare`.

Exit codes: 0 everything in order; 1 a run failed, or B is worse than allowed; 2 the user can mend it; 130 Ctrl-C.
"""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()
FAILED, INTERRUPTED = 1, 130
MOST_LISTED = 20  # failures and changed items that are printed


class Format(enum.StrEnum):
    """How a table is written."""

    table = "table"
    csv = "csv"
    json = "json"


ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--parameter", "-p", metavar="NAME VALUE", help="A parameter of the notebook; repeat it for more."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True)]


def set_debug(debug: bool) -> None:
    """--debug after the command does what it does before it."""
    if debug:
        os.environ["FUSIONLAB_DEBUG"] = "1"


def say(line: str) -> None:
    """A line for whoever watches."""
    typer.echo(line, err=True)


def join_pairs(arguments: list[str]) -> list[str]:
    """`-p NAME VALUE`, two words as papermill has it, as the one word NAME=VALUE that the parser can read.

    >>> join_pairs(["run", "a.ipynb", "-p", "scale", "-1", "-p", "seed=2"])
    ['run', 'a.ipynb', '-p', 'scale=-1', '-p', 'seed=2']
    """
    joined: list[str] = []
    rest = list(arguments)
    ours = next((word for word in rest if not word.startswith("-")), "") in ("run", "sweep")
    while rest:
        word = rest.pop(0)
        joined.append(word)
        if ours and word in ("-p", "--parameter") and rest:
            name = rest.pop(0)
            joined.append(f"{name}={rest.pop(0)}" if "=" not in name and rest else name)
    return joined


def split_pairs(pairs: list[str] | None) -> dict[str, str]:
    """["scale=1"] as {"scale": "1"}. Raises `NotebookError` for a name without a value, or one that is given twice."""
    from fusionlab.errors import NotebookError

    found: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise NotebookError(f"-p {name} has no value", remedy="write -p NAME VALUE")
        if name in found:
            raise NotebookError(f"-p {name} is given twice", remedy="keep one; a sweep file varies a parameter")
        found[name] = value
    return found


@commands.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="A notebook with a cell tagged `parameters`.")],
    parameter: ParameterOption = None,
    out: Annotated[str | None, typer.Option(help="Folder or fsspec URL; default: runs/<name of the notebook>.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Do it again if the same run has finished before.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run a notebook once with checked parameters, and keep the executed copy, a page and its results."""
    from fusionlab.experiments.notebook import load_notebook
    from fusionlab.experiments.parameters import read_values
    from fusionlab.experiments.remote_store import open_store
    from fusionlab.experiments.single import run_single

    set_debug(debug)
    loaded = load_notebook(notebook)
    given = read_values(loaded.parameters, split_pairs(parameter))
    store = open_store(out or f"runs/{loaded.name}")
    try:
        done = run_single(loaded, given, store, again=again, progress=sys.stderr.isatty(), say=say)
    except KeyboardInterrupt:
        say("stopped; nothing of this run was kept")
        raise typer.Exit(INTERRUPTED) from None
    if done.repeated:
        say("this run has finished before; --again does it again")
    for name, value in done.fields.items():
        typer.echo(f"{name} = {value}")
    say(f"{'failed: ' + str(done.error) if done.failed else 'finished'}; files: {store}/{done.folder}")
    if done.failed:
        raise typer.Exit(FAILED)


@commands.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML); see docs/sweeps.md.")],
    out: Annotated[str | None, typer.Option(help="Folder or fsspec URL; default: runs/<name of the file>. "
                                                 "What it holds is not done again.")] = None,
    parameter: ParameterOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine, each with a warm kernel.")] = 2,
    scheduler: Annotated[str | None, typer.Option(help="An existing Dask scheduler, e.g. tcp://host:8786.")] = None,
    connect_seconds: Annotated[float, typer.Option(min=0.1, help="Until a silent scheduler is an error.")] = 10.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Most runs to do now.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do again what failed before.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="A new kernel for every run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and an estimate, and do nothing.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Run a notebook over many parameters; finished runs are kept, so the same command goes on where it was."""
    from fusionlab.experiments.remote_store import open_store
    from fusionlab.experiments.sweep import SweepOptions, describe_plan, make_plan, run_sweep
    from fusionlab.experiments.sweep_file import plan_sweep

    set_debug(debug)
    loaded, runs = plan_sweep(file, overrides=split_pairs(parameter))
    store = open_store(out or f"runs/{file.stem}")
    options = SweepOptions(workers, scheduler, limit, retry_failed, fresh, connect_seconds)
    if dry_run:
        typer.echo(describe_plan(make_plan(runs, store, options), options))
        return
    try:
        account = run_sweep(runs, store, options, notebook=Path(loaded.notebook), sweep_file=file,
                            repeat=list(loaded.repeat), check_code=loaded.code is None, say=say)  # fmt: skip
    except KeyboardInterrupt:
        kept = len(store.finished() & {run.key for run in runs})
        say(f"stopped: {kept} of {len(runs)} runs have finished and are kept; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    by_key = {run.key: run for run in runs}
    for key, message in list(account.failed.items())[:MOST_LISTED]:
        say(f"failed  {key[:8]}  {by_key[key].label()}  {message}")
    left = f", {account.left} left" if account.left else ""
    say(f"{account.ok} done, {account.already} were done before, {len(account.failed)} failed{left}; results: {store}")
    if report and account.ok + account.already:
        write_quietly(store)
    if account.failed:
        raise typer.Exit(FAILED)


def write_quietly(store: object) -> None:
    """The report at the end of a sweep: what keeps it from being written is said, and spoils nothing."""
    from fusionlab.errors import FusionError
    from fusionlab.experiments.report import write_report

    try:
        say(f"report: {write_report(store)[0]}")  # type: ignore[arg-type]
    except FusionError as error:
        say(f"no report: {error}")


@commands.command()
def results(
    place: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a sweep.")],
    sql: Annotated[str, typer.Argument(help="A query over `runs` (a row per run, a column per parameter and result) "
                                            "and `sessions`.")] = "SELECT * FROM runs",
    form: Annotated[Format, typer.Option("--format", help="How the answer is written.")] = Format.table,
    mlflow: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Write the runs into this MLflow store instead, "
                                               "e.g. sqlite:///mlflow.db; needs the extra `mlflow`.")] = None,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Query a sweep's results with SQL (DuckDB), or hand them to MLflow."""
    from fusionlab.experiments.remote_store import open_store
    from fusionlab.experiments.results import query

    set_debug(debug)
    if mlflow is not None:
        from fusionlab.experiments.mlflow_export import export_runs

        written, before = export_runs(open_store(place), mlflow)
        typer.echo(f"{written} runs written to {mlflow}, {before} were there before")
        return
    frame = query(open_store(place), sql)
    if form == Format.csv:
        typer.echo(frame.to_csv(index=False), nl=False)
    elif form == Format.json:
        typer.echo(frame.to_json(orient="records", force_ascii=False))
    else:
        typer.echo(frame.to_string(index=False, max_colwidth=60))


@commands.command()
def report(
    place: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of a sweep.")],
    metric: Annotated[str | None, typer.Option(help="The recorded field to judge by; default: score.")] = None,
    cost: Annotated[str | None, typer.Option(help="The field for time; default: seconds_per_item, else seconds.")] = None,
    baseline: Annotated[str | None, typer.Option(help='Runs to compare with, e.g. "method=static,kl_scale=1".')] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Smaller values of the metric are better.")] = False,
    items: Annotated[str | None, typer.Option(help="Items whose weights are drawn, comma-separated.")] = None,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Write report.html (one file, no network) and report.csv into the sweep's folder."""
    from fusionlab.experiments.remote_store import open_store
    from fusionlab.experiments.report import write_report
    from fusionlab.experiments.report_data import ReportOptions

    set_debug(debug)
    chosen = [name.strip() for name in items.split(",")] if items else []
    options = ReportOptions(metric=metric, cost=cost, baseline=baseline, items=tuple(chosen), lower=lower)
    for path in write_report(open_store(place), options):
        typer.echo(path)


@commands.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder or URL of a sweep: what is.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of a sweep: what would be.")],
    where_a: Annotated[str | None, typer.Option(help="SQL condition on A's runs, e.g. \"method = 'static'\".")] = None,
    where_b: Annotated[str | None, typer.Option(help="SQL condition on B's runs.")] = None,
    metric: Annotated[str | None, typer.Option(help="The recorded field to judge by; default: score.")] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Smaller values of the metric are better.")] = False,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of the metric that B may be worse by.")] = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Fail unless B is shown not to be worse than that.")] = False,
    changed: Annotated[Path | None, typer.Option(help="Write the items that changed to this CSV file.")] = None,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Compare two sweeps pair by pair: verdict, interval, changed items; exit code 1 if B is worse than --max-drop."""
    from fusionlab.experiments.compare import compare_stores, write_changes
    from fusionlab.experiments.remote_store import open_store

    set_debug(debug)
    found = compare_stores(open_store(a), open_store(b), where_a=where_a, where_b=where_b, metric=metric, lower=lower)
    typer.echo(found.describe(max_drop=max_drop, strict=strict, most_listed=MOST_LISTED))
    if changed is not None:
        write_changes(found, changed)
        say(f"{len(found.changed)} changed items: {changed}")
    if not found.passes(max_drop=max_drop, strict=strict):
        raise typer.Exit(FAILED)
