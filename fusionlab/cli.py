"""The command line: `fusionlab fetch | generate | evaluate | train | bench | doctor`, and the commands of `sweep_cli`.

Every `FusionError` becomes one sentence and exit code 2; `--debug` shows the traceback instead.
"""

from __future__ import annotations

import enum
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionlab import sweep_cli
from fusionlab.errors import FusionError

if TYPE_CHECKING:
    from fusionlab.cells import Cell
    from fusionlab.evaluate import Evaluator
    from fusionlab.sampling import Sampling
    from fusionlab.team import Team

app = typer.Typer(
    help="Steer a large language model with small experts: dynamic logits fusion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sweep_cli.commands)
UsageError: Any = typer.BadParameter.__base__  # of every fault in the arguments; typer does not export it
USER_FAULT = 2  # exit code for everything that the user can mend


class Level(enum.StrEnum):
    """How much a trace keeps."""

    light = "light"
    full = "full"


LargeOption = Annotated[str | None, typer.Option("--large", help="Hub id or folder; default: the embedded team.")]
SmallOption = Annotated[str | None, typer.Option("--small", help="Hub id or folder, with --large.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, or cuda.")]
QuantizationOption = Annotated[str | None, typer.Option("--quantization", help="nf4, or nothing.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True)]


@app.callback()
def set_up(debug: DebugOption = False) -> None:
    """Options for every command."""
    if debug:
        os.environ["FUSIONLAB_DEBUG"] = "1"


@app.command()
def fetch() -> None:
    """Fetch the embedded large model once and convert it into the cache."""
    from fusionlab import embedded

    folder = embedded.fetch_large(say=typer.echo)
    embedded.check_converted(folder, thorough=True)
    typer.echo(f"the embedded large model is in {folder}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from; '-' reads standard input.")],
    experts: Annotated[str | None, typer.Option(help="Names, comma-separated; 'none': the large model alone. "
                                                     "With --large: name=path,name=path.")] = None,
    method: Annotated[str, typer.Option(help="static, average, grid, exact, joint or evidence; default: exact with "
                                             "one expert, evidence with several.")] = "",
    kl_scale: Annotated[float, typer.Option(help="1: the experts' own size of change; 0: the large model.")] = 1.0,
    budget: Annotated[float | None, typer.Option(help="Most nats that one token may move.")] = None,
    direction: Annotated[str, typer.Option(help="Terms of the objective: both, forward or reverse.")] = "both",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 96,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens only; needs --temperature.")] = 1.0,
    seed: Annotated[int, typer.Option()] = 0,
    trace: Annotated[Path | None, typer.Option(help="Write the trace: .parquet, or .html to look at.")] = None,
    trace_level: Annotated[Level, typer.Option()] = Level.light,
    chat: Annotated[bool, typer.Option(help="Write the prompt with the models' chat templates.")] = False,
    color: Annotated[bool | None, typer.Option(help="Colour tokens; default: when writing to a terminal.")] = None,
    large: LargeOption = None,
    small: SmallOption = None,
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Write an answer, token by token, and show which expert moved which token."""
    from fusionlab.prompts import check_prompts
    from fusionlab.solvers import KLConstraint
    from fusionlab.team import check_method
    from fusionlab.trace import ansi_tokens

    set_up(debug)
    text = read_standard_input() if prompt == "-" else prompt
    check_prompts([text])
    constraint = KLConstraint(scale=kl_scale, budget=budget, direction=direction)
    sampling = choose_sampling(temperature, top_p)
    if method:
        check_method(method)
    if trace is not None:
        check_suffix(trace, (".parquet", ".html"))
        check_writable(trace)
    whole: Any = [{"role": "user", "content": text}] if chat else text
    team = load(large, small, experts, quantization, device, prompt=whole, new_tokens=max_new_tokens)
    names = [] if experts == "none" else list(team.experts)
    chosen = method or ("evidence" if len(names) > 1 else "exact")
    live = sys.stdout.isatty()
    ends = team.eos_ids(names)

    def show(token: Any) -> None:
        if live and token.id not in ends:
            typer.echo(printable(token.piece), nl=False)

    result = team.generate(
        [whole], method=chosen, constraint=constraint, experts=names,
        max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, on_token=show, trace=str(trace_level),
    )  # fmt: skip
    if live:
        typer.echo("\n")
    typer.echo(ansi_tokens(result.traces[0], color=live if color is None else color), color=color)
    if trace is not None:
        (result.traces[0].to_html if trace.suffix.lower() == ".html" else result.traces[0].save)(trace)
        typer.echo(f"trace: {trace}", err=True)


@app.command()
def evaluate(
    tasks: Annotated[str, typer.Option(help="Comma-separated task names or paths; 'all': every bundled one.")]
    = "all",
    methods: Annotated[str, typer.Option(help="Comma-separated: names, proxy-<a>, name:field=value; or 'all'.")] = "all",
    shots: Annotated[str, typer.Option(help="Solved examples in the prompt, comma-separated counts.")] = "0",
    phrasings: Annotated[str, typer.Option(help="Comma-separated numbers of a task's phrasings.")] = "0",
    seeds: Annotated[str, typer.Option(help="Seeds that the examples are drawn with, comma-separated.")] = "0",
    orders: Annotated[str, typer.Option(help="Orders of the examples, comma-separated; 0: as drawn, others: seeds.")] = "0",
    experts: Annotated[list[str] | None, typer.Option(help="Comma-separated: which experts the methods for several may "
                                                           "use. Repeat it for more sets; default: all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task; default: the whole test split.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    out: Annotated[Path, typer.Option(help="Folder of answers and tables; what it holds is not done again.")]
    = Path("runs/evaluation"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Do again what the folder holds.")] = False,
    rescore: Annotated[Path | None, typer.Option(help="Only score this folder's answers again; loads no model.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Recorded scores of upper bounds; default: the shipped ones.")] = None,
    team_experts: Annotated[str | None, typer.Option(help="Experts to load: names, or name=path; default: all.")] = None,
    large: LargeOption = None,
    small: SmallOption = None,
    quantization: QuantizationOption = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: by device.")] = None,
    device: DeviceOption = "cpu",
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Answer tasks by methods and score them: tasks x methods x shots x phrasings x seeds x orders, resumable."""
    from fusionlab.cells import rescore_folder
    from fusionlab.scores import read_records, save_table, summarise, to_markdown

    set_up(debug)
    recorded = read_records(scores)
    folder = out if rescore is None else rescore
    if rescore is None:
        from fusionlab.bench import check_device
        from fusionlab.evaluate import Asking, Evaluator, plan_cells
        from fusionlab.methods import choose_methods
        from fusionlab.tasks import TASKS, load_task

        check_device(device)
        names = choose_methods(split_names(methods))
        by_source = {source: load_task(source) for source in (TASKS if tasks == "all" else split_names(tasks))}
        loaded = {task.name: task for task in by_source.values()}
        asking = Asking(split_numbers(shots, "--shots"), split_numbers(phrasings, "--phrasings"),
                        split_numbers(seeds, "--seeds"), split_numbers(orders, "--orders"))  # fmt: skip
        subsets = [split_names(subset) for subset in experts or []]
        cells, notes = plan_cells(list(loaded.values()), names, experts=expert_names(team_experts, large), subsets=subsets,
                                  asking=asking)  # fmt: skip
        check_writable(folder / "table.md")
        team = load(large, small, team_experts, quantization, device, dtype)
        evaluator = Evaluator(team, loaded, folder=folder, limit=limit, batch_size=batch_size, fresh=fresh,
                              sources={task.name: source for source, task in by_source.items()},
                              say=lambda line: typer.echo(line, err=True))  # fmt: skip
        rows = run_with_bar(evaluator, cells)
        for note in notes:
            typer.echo(note, err=True)
    else:
        rows = rescore_folder(folder)
    summary = summarise(rows, recorded)
    save_table(summary, folder)
    typer.echo(to_markdown(summary))
    typer.echo(f"answers: {folder / 'cells'}; table: {folder / 'table.csv'}, .parquet, .md", err=True)


def run_with_bar(evaluator: Evaluator, cells: Sequence[Cell]) -> Any:
    """Run cells under one progress bar, which is silent where nobody watches."""
    from tqdm.auto import tqdm

    total = sum(len(evaluator.items[cell.task]) for cell in cells)
    with tqdm(total=total, unit="answer", disable=not sys.stderr.isatty()) as bar:

        def show(cell: Cell, done: int) -> None:
            bar.set_description(str(cell), refresh=False)
            bar.update(done)

        return evaluator.run(cells, progress=show)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """Train the small model and the experts; `fusionlab train --help` lists the settings."""
    from fusionlab.train.__main__ import main as run_training

    raise typer.Exit(run_training(context.args))


@app.command()
def bench(
    device: DeviceOption = "cpu",
    output: Annotated[Path, typer.Option(help="Parquet file for the rows.")] = Path("runs/bench.parquet"),
    batch: Annotated[int, typer.Option(min=1)] = 1,
    new_tokens: Annotated[int, typer.Option(min=2)] = 48,
    repetitions: Annotated[int, typer.Option(min=1)] = 5,
    debug: DebugOption = False,
) -> None:
    """Time large alone, proxy tuning and dynamic fusion of the embedded team in paired runs."""
    from fusionlab.bench import check_device, run_bench, save_rows

    set_up(debug)
    check_device(device)
    check_suffix(output, (".parquet",))
    check_writable(output)
    team = load(None, None, None, None, device)
    rows = run_bench(team, device=device, batch=batch, new_tokens=new_tokens, repetitions=repetitions,
                     say=lambda line: typer.echo(line, err=True))  # fmt: skip
    save_rows(rows, output)
    typer.echo(
        f"{'method':<38}{'device':>8}{'batch':>7}{'experts':>9}{'ms/token':>10}{'ratio':>8}{'solve %':>9}{'peak MiB':>10}"
    )
    for row in rows:
        share = "" if row.solver_share is None else f"{100 * row.solver_share:.1f}"
        typer.echo(f"{row.method:<38}{row.device:>8}{row.batch:>7}{row.experts:>9}{row.ms_per_token:>10.1f}"
                   f"{row.ratio_to_alone:>8.2f}{share:>9}{row.peak_bytes / 2**20:>10.0f}")  # fmt: skip
    typer.echo(f"rows: {output}", err=True)


@app.command()
def doctor(debug: DebugOption = False) -> None:
    """Check environment, models, cache and GPU: each line is ok, or says what to do."""
    from fusionlab.doctor import render, run_checks

    set_up(debug)
    checks = run_checks()
    text, healthy = render(checks)
    typer.echo(text)
    if not healthy:
        raise typer.Exit(USER_FAULT)


def load(
    large: str | None, small: str | None, experts: str | None, quantization: str | None, device: str,
    dtype: str | None = None, *, prompt: Any = None, new_tokens: int = 0,
) -> Team:  # fmt: skip
    """The team that the options name. prompt: what it will be asked, refused before loading where it is too long."""
    from fusionlab.bench import check_device
    from fusionlab.loading import check_prompt_fits, load_team

    check_device(device)
    names = None if experts is None else [] if experts == "none" else split_names(experts)
    wanted: Any = names
    if large is not None or small is not None or (names and any("=" in name for name in names)):
        wanted = split_pairs(names or [])
    name = "embedded" if large is None and small is None else None
    if prompt is not None:
        check_prompt_fits(name, large=large if small else None, experts=wanted, prompt=prompt, new_tokens=new_tokens)
    return load_team(name, large=large, small=small, experts=wanted, quantization=quantization,
                     device_map=None if device == "cpu" else device, dtype=dtype)  # fmt: skip


def read_standard_input() -> str:
    """Standard input as UTF-8 whatever the locale says. Raises `PromptError` with the place of what is not."""
    from fusionlab.errors import PromptError

    received = sys.stdin.buffer.read()
    try:
        return received.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not UTF-8: byte 0x{received[error.start]:02x} at position {error.start}",
            remedy="convert it, e.g. iconv -f latin1 -t utf-8",
        ) from None


def choose_sampling(temperature: float, top_p: float) -> Sampling:
    """Greedy at temperature 0. Raises `ConstraintError` for values out of range and a top-p that would do nothing."""
    from fusionlab.errors import ConstraintError
    from fusionlab.sampling import Sampling

    if not 0 <= temperature < math.inf:
        raise ConstraintError(f"--temperature is {temperature}", remedy="pass 0 for greedy, or a number > 0")
    drawn = Sampling(do_sample=True, temperature=temperature or 1.0, top_p=top_p)
    if temperature == 0 and top_p != 1:
        raise ConstraintError(
            f"--top-p {top_p:g} does nothing at temperature 0, which is greedy", remedy="pass --temperature too, e.g. 0.8"
        )
    return drawn if temperature else Sampling()


def expert_names(experts: str | None, large: str | None) -> list[str]:
    """The names of the experts that `load` will load."""
    from fusionlab.embedded import shipped_experts

    if experts is None:
        return [] if large is not None else list(shipped_experts())
    return [] if experts == "none" else [entry.partition("=")[0] for entry in split_names(experts)]


def split_names(text: str) -> list[str]:
    """'a, b' -> ['a', 'b']."""
    return [name.strip() for name in text.split(",") if name.strip()]


def split_numbers(text: str, option: str) -> list[int]:
    """'0, 5' -> [0, 5]. Raises `FusionError` for what is not a whole number >= 0, or none at all."""
    names = split_names(text)
    if not names or not all(name.isdecimal() for name in names):
        raise FusionError(f"{option} is {text!r}", remedy="pass whole numbers >= 0, separated by commas")
    return list(dict.fromkeys(map(int, names)))


def split_pairs(names: list[str]) -> dict[str, str]:
    """['math=path'] -> {'math': 'path'}. Raises `FusionError` for an entry without '='."""
    pairs = {}
    for entry in names:
        name, found, path = entry.partition("=")
        if not found or not name or not path:
            raise FusionError(f"expert {entry!r} has no path", remedy="write --experts name=path,name=path")
        pairs[name] = path
    return pairs


def check_suffix(path: Path, known: tuple[str, ...]) -> None:
    """Raise `OutputError` unless the file's name ends in a format that can be written."""
    from fusionlab.errors import OutputError

    if path.suffix.lower() not in known:
        raise OutputError(f"unknown format of {path}", remedy=f"name a file that ends in {' or '.join(known)}")


def check_writable(path: Path) -> None:
    """Raise `OutputError` before hours of work if `path` cannot be written afterwards."""
    import tempfile

    from fusionlab.errors import OutputError

    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}", remedy="choose another folder") from error
    try:
        with tempfile.NamedTemporaryFile(dir=folder):  # to root everything looks writable until it is tried
            writable = not path.is_dir() and (not path.exists() or os.access(path, os.W_OK))
    except OSError:
        writable = False
    if not writable:
        raise OutputError(f"cannot write {path}", remedy="choose a file in a folder you may write to")


def printable(text: str) -> str:
    """Model text without control characters other than line breaks and tabs, so that it cannot drive a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def main() -> None:
    """Entry point: a `FusionError`, or an argument that cannot be, is one sentence and exit code 2."""
    try:
        alone = len(sys.argv) < 2  # then it shows its help
        arguments = sweep_cli.join_pairs(sys.argv[1:])
        raise SystemExit(app(args=arguments, prog_name="fusionlab", standalone_mode=alone))
    except FusionError as error:
        if os.environ.get("FUSIONLAB_DEBUG"):
            raise
        typer.echo(f"fusionlab: {error}", err=True)
        raise SystemExit(USER_FAULT) from None
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fusionlab"
        words = " ".join(error.format_message().split()).rstrip(".?")
        typer.echo(f"fusionlab: {words}; see {command} --help", err=True)
        raise SystemExit(USER_FAULT) from None
    except typer.Abort:
        typer.echo("fusionlab: aborted", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
