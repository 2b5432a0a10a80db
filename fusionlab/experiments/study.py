"""`make study`: answer what the study needs, analyse it, and leave tables, figures and one page in a folder.

    python -m fusionlab.experiments.study               a few items and the main methods, on two CPU cores in minutes
    python -m fusionlab.experiments.study --full        every cell of `study.plan.FULL`; wants a GPU: --device cuda
    python -m fusionlab.experiments.study --shipped     no models: from the answers of the full study that ship

A study that was stopped goes on where it was. `--pack FOLDER ...` turns evaluations into the files that ship.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlab.atomic_file import write_atomically
from fusionlab.errors import FusionError, MissingFileError
from fusionlab.scores import read_records
from fusionlab.study import shipped
from fusionlab.study.costs import PRICE
from fusionlab.study.measure import Answers
from fusionlab.study.report import (
    ANALYSES,
    Inputs,
    Study,
    analyse,
    main_table,
    put_between_marks,
    verdict_rows,
    write_study,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from fusionlab.tasks import Task
    from fusionlab.team import Team

QUICK_ITEMS, QUICK_TRACES, QUICK_CONTEXTS = 4, 2, 1
FULL_TRACES, FULL_CONTEXTS = 20, 10


@dataclass(frozen=True)
class Settings:
    """What to run.

    items: test items per task (None: all). traces: items per task whose weights are kept. contexts: items per task on whose
    targets changes are compared. price: of a GPU hour.
    """

    full: bool = False
    items: int | None = QUICK_ITEMS
    traces: int = QUICK_TRACES
    contexts: int = QUICK_CONTEXTS
    batch_size: int = 8
    device: str = "cpu"
    dtype: str | None = None
    price: float = PRICE
    tasks: tuple[str, ...] = ("math", "trivia", "truth", "summary", "unseen")

    @classmethod
    def choose(cls, *, full: bool = False, **changes: Any) -> Settings:
        """The quick or the full settings, with fields changed where a value is given."""
        base = cls(full=True, items=None, traces=FULL_TRACES, contexts=FULL_CONTEXTS, batch_size=64) if full else cls()
        return replace(base, **{name: value for name, value in changes.items() if value is not None})


# -- measure -------------------------------------------------------------------------------------


def answer_study(
    settings: Settings, folder: Path, *, team: Team | None = None, tasks: Mapping[str, Task] | None = None
) -> Inputs:
    """Answer what is missing in `folder` with the embedded team, trace some answers and compare changes.

    team, tasks: others than the embedded team and the bundled tasks. Raises FusionError.
    """
    from fusionlab.evaluate import Evaluator
    from fusionlab.methods import find_fault
    from fusionlab.models import device_name
    from fusionlab.study.plan import FULL, QUICK, plan_study
    from fusionlab.tasks import load_task

    tasks = tasks or {name: load_task(name) for name in settings.tasks}
    team = team or load_embedded(settings)
    groups = FULL if settings.full else QUICK
    cells, notes = plan_study(
        tasks, list(team.experts), groups, left_out=[] if find_fault("predicted") is None else ["predicted"]
    )
    evaluator = Evaluator(team, tasks, folder=folder, limit=settings.items, batch_size=settings.batch_size, say=say)
    total = sum(len(evaluator.items[cell.task]) for cell in cells)
    with bar(total, "answer") as advance:
        rows = evaluator.run(cells, progress=lambda cell, done: advance(str(cell), done))
    for note in notes:
        say(note)
    weights, likeness = probe_team(team, tasks, settings, folder)
    about = {"made": today(), "device": device_name(team.large.model.device), "items per task": settings.items or "all",
             "command": "python -m fusionlab.experiments.study" + (" --full" if settings.full else "")}  # fmt: skip
    return Inputs(Answers(rows, read_records()), weights, likeness, None, read_training(), about)


def probe_team(
    team: Team, tasks: Mapping[str, Task], settings: Settings, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames of weights and of likeness, read from `folder` where the same team and settings made them."""
    import hashlib

    from fusionlab.evaluate import sha256_of_member, sha256_of_task
    from fusionlab.study.probe import measure_likeness, measure_weights

    members = ["large", "small", *team.experts]
    weights, items = [sha256_of_member(team, name) for name in members], [sha256_of_task(task) for task in tasks.values()]
    identity = json.dumps([weights, items,
                           settings.traces, settings.contexts])  # fmt: skip
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    frames = []
    with bar(3 * len(tasks), "step") as advance:
        for name, measure, count in ((shipped.WEIGHTS, measure_weights, settings.traces),
                                     (shipped.LIKENESS, measure_likeness, settings.contexts)):  # fmt: skip
            path = folder / f"probe-{key}" / name
            if path.is_file():
                frame = shipped.read_frame(name, path.parent)
            else:
                frame = measure(team, tasks, items=count, progress=lambda text: advance(text, 1))
                shipped.write_frame(frame, path)
            frames.append(frame)
    return frames[0], frames[1]


def load_embedded(settings: Settings) -> Team:
    """The embedded team on the device of the settings."""
    from fusionlab.bench import check_device
    from fusionlab.loading import load_team

    check_device(settings.device)
    place = None if settings.device == "cpu" else settings.device
    return load_team("embedded", device_map=place, dtype=settings.dtype or "float32", say=say)


def shipped_study(folder: Path | None = None) -> Inputs:
    """The full study's answers, scored by today's rules, without models. Raises MissingFileError, CorruptFileError."""
    rows, other = shipped.answered_as_now(shipped.read_shipped_rows(folder))
    for task in other:
        say(f"{task}: stored answers are left out, as the task is answered in another way now")
    rows = shipped.rescore(rows)
    weights, likeness, bench = (shipped.read_frame(name, folder) for name in shipped.FRAMES)
    return Inputs(Answers(rows, read_records()), weights, likeness, bench, read_training(), shipped.read_about(folder))


def read_training() -> dict[str, Any]:
    """data/training.json; {} where it is not there."""
    from fusionlab.tasks.files import find_data_file

    try:
        return dict(json.loads(find_data_file("training.json").read_text()))
    except MissingFileError:
        return {}


def make_study(settings: Settings | None = None, *, folder: Path, use_shipped: bool = False,
               shipped_folder: Path | None = None) -> Study:  # fmt: skip
    """Run or read the study and analyse it; `folder` keeps the answers. What the notebook calls.

    >>> study = make_study(folder=Path("runs/study"), use_shipped=True)          # doctest: +SKIP
    >>> study.tables["table1"].shown                                             # doctest: +SKIP
    """
    settings = settings or Settings()
    inputs = shipped_study(shipped_folder) if use_shipped else answer_study(settings, folder)
    with bar(len(ANALYSES), "table") as advance:
        return analyse(inputs, price=settings.price, progress=lambda key: advance(key, 1))


def pack(
    folders: Sequence[Path], target: Path, *, settings: Settings, conditions: str, probe: bool = True,
    bench: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Write what ships: answers of evaluation folders, and on the embedded team's own weights and likeness.

    folders: of evaluations, or packed before. probe: measure weights and likeness; else those in `target` stay.
    conditions: what the times were measured under, in words. bench: what `fusionlab bench --output` wrote; without one
    that in `target` stays. Raises FusionError.
    """
    rows = shipped.gather_rows(list(folders))
    kept = {} if probe else shipped.read_about(target)
    written = [shipped.pack_rows(rows, target)]
    about = {"made": today(), "answers by": ", ".join(dict.fromkeys(rows["device"])), "conditions": conditions,
             **{name: ", ".join(dict.fromkeys(rows[name])) for name in ("fusionlab", "torch")},
             **{name: text for name, text in kept.items() if name.endswith(" from")}}  # fmt: skip
    if bench is not None:
        measured = shipped.read_frame(bench.name, bench.parent)
        if measured is None:
            raise MissingFileError(f"there is no {bench}", remedy="name what `fusionlab bench --output` wrote")
        written.append(shipped.write_frame(measured, target / shipped.BENCH))
    if probe:
        from fusionlab.tasks import load_task

        tasks = {name: load_task(name) for name in dict.fromkeys(rows["task"])}
        frames = probe_team(load_embedded(settings), tasks, settings, target / ".probe")
        for frame, name in zip(frames, (shipped.WEIGHTS, shipped.LIKENESS), strict=True):
            small = frame.astype({name: "float32" for name in frame.columns if frame[name].dtype == "float64"})
            written.append(shipped.write_frame(small, target / name))
        about |= {
            "weights from": f"{settings.traces} items per task",
            "likeness from": f"{settings.contexts} items per task",
        }
        shutil.rmtree(target / ".probe")  # kept until here, so that a stopped packing goes on
    write_atomically(target / shipped.ABOUT, json.dumps(about, indent=1) + "\n")
    return [*written, target / shipped.ABOUT]


# -- say -----------------------------------------------------------------------------------------


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, file=sys.stderr)


@contextmanager
def bar(total: int, unit: str) -> Iterator[Any]:
    """A progress bar as a function of (description, steps done); silent where nobody watches."""
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=unit, disable=bool(os.environ.get("TQDM_DISABLE")) or not sys.stderr.isatty()) as shown:

        def advance(text: str, done: int) -> None:
            shown.set_description(text, refresh=False)
            shown.update(done)

        yield advance


def today() -> str:
    """The date as text."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 2 with one sentence for a `FusionError`."""
    parser = argparse.ArgumentParser(prog="python -m fusionlab.experiments.study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--full", action="store_true", help="every item and every cell; wants a GPU")
    parser.add_argument("--shipped", nargs="?", const=True, default=False, metavar="FOLDER",
                        help="no models: the shipped answers, or those that --pack wrote to FOLDER")  # fmt: skip
    parser.add_argument("--page", type=Path, help="write study.md here too, e.g. docs/study.md")
    parser.add_argument("--readme", type=Path, help="put the main table between the marks of this file")
    parser.add_argument("--items", type=int, help="test items per task")
    parser.add_argument("--traces", type=int, help="items per task whose weights are kept")
    parser.add_argument("--contexts", type=int, help="items per task on whose targets changes are compared")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--price", type=float, help=f"price of a GPU hour; default {PRICE:g}")
    parser.add_argument("--pack", type=Path, nargs="+", metavar="FOLDER",
                        help="pack evaluations, and what was packed before, into --out, and stop")  # fmt: skip
    parser.add_argument("--conditions", default="", help="with --pack: what the times were measured under")
    parser.add_argument("--no-probe", action="store_true", help="with --pack: answers only; weights and likeness stay")
    parser.add_argument("--bench", type=Path, help="with --pack: the file of `fusionlab bench --output`, to ship too")
    options = vars(parser.parse_args(arguments))
    started = time.perf_counter()
    out: Path = options["out"]
    try:
        names = ("items", "traces", "contexts", "batch_size", "device", "price")
        settings = Settings.choose(full=options["full"] or bool(options["pack"]), **{name: options[name] for name in names})
        if options["pack"]:
            for path in pack(options["pack"], out, settings=settings, conditions=options["conditions"],
                             probe=not options["no_probe"], bench=options["bench"]):  # fmt: skip
                print(f"{path}  {path.stat().st_size:,} bytes")
            return 0
        source = options["shipped"]
        study = make_study(settings, folder=out, use_shipped=bool(source),
                           shipped_folder=Path(source) if isinstance(source, str) else None)  # fmt: skip
        pages = write_study(study, out)
        if options["page"]:
            write_atomically(options["page"], pages[1].read_text(encoding="utf-8"))
        if options["readme"]:
            put_between_marks(options["readme"], main_table(study, page=options["page"] and options["page"].as_posix()))
        print_study(study, pages, time.perf_counter() - started)
    except FusionError as error:
        print(f"fusionlab: {error}", file=sys.stderr)
        return 2
    return 0


def print_study(study: Study, pages: Sequence[Path], seconds: float) -> None:
    """The main tables and the verdicts, and where the rest is."""
    for key in ("table1", "table2"):
        print(study.tables[key].to_markdown())
    print("\n".join(verdict_rows([study.tables["claims"], study.tables["aims"]])))
    print(f"\n{seconds:.0f} seconds. Tables and figures: {pages[0].parent}; the page: {pages[0]}")


if __name__ == "__main__":
    sys.exit(main())
