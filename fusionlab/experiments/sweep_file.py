"""A sweep file: a notebook and which parameters to run it with.

    notebook: ../experiments/kl_sweep.ipynb     # relative to this file
    include: base.yaml                          # or a list: their keys are the base of this file's
    parameters: {items: 40}                     # for every run
    grid: {kl_scale: [0.5, 1, 2], budget: [null, 3]}      # every combination
    zip: {shots: [0, 5], traces: [8, 2]}                  # side by side, combined with the grid
    runs: [{method: proxy-1}]                             # single points beside them
    repeat: {seed: [0, 1, 2]}                             # all of it once per value; `repeat: 3` is seed 0, 1, 2
    team: []                                    # parameters that choose the models; default: see run_key.TEAM_PARAMETERS
    resources: {GPU: 1}                         # what a worker must offer
    cell_timeout_seconds: 3600
    code: study-1                               # what stands for the code in the key, in place of its hash

This module reads files and plans runs; it runs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fusionlab.errors import SweepError
from fusionlab.experiments.notebook import Notebook, load_notebook
from fusionlab.experiments.parameters import Value, check_name, check_values, complete_values
from fusionlab.experiments.run_key import (
    TEAM_PARAMETERS,
    Run,
    code_version,
    identity_of,
    key_of,
    model_revisions,
    task_contents,
    team_of,
)  # fmt: skip
from fusionlab.experiments.yaml_text import read_yaml_file

MOST_RUNS = 100_000


class SweepFile(BaseModel):
    """What a sweep file says, checked for form; `plan_runs` checks it against the notebook."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    notebook: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    zip: dict[str, list[Any]] = Field(default_factory=dict)
    runs: list[dict[str, Any]] = Field(default_factory=list)
    repeat: dict[str, list[Any]] = Field(default_factory=dict)
    team: list[str] | None = None
    resources: dict[str, float] = Field(default_factory=dict)
    cell_timeout_seconds: float | None = Field(default=None, gt=0)
    code: str | None = Field(default=None, min_length=1)

    @field_validator("repeat", mode="before")
    @classmethod
    def _count_is_seeds(cls, value: Any) -> Any:
        return {"seed": list(range(value))} if isinstance(value, int) and not isinstance(value, bool) else value


_MERGED = ("parameters", "grid", "zip", "repeat", "resources")  # by key; all else is replaced


def load_sweep_file(path: Path) -> SweepFile:
    """Read a sweep file and what it includes. Raises SweepError with file and key."""
    content = read_with_includes(path)
    try:
        return SweepFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        if first["type"] == "extra_forbidden":
            known = ", ".join(["include", *SweepFile.model_fields])
            raise SweepError(f"{path}: unknown key {place!r}", remedy=f"known: {known}") from None
        received = "" if first["type"] == "missing" else f", received {first['input']!r:.80}"
        raise SweepError(f"{path}: {place}: {first['msg'].lower()}{received}",
                         remedy="see docs/sweeps.md for the form of a sweep file") from None  # fmt: skip


def read_with_includes(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A sweep file's content over what it includes; `notebook` becomes a path that holds from anywhere."""
    if path.resolve() in above:
        raise SweepError(f"{path} includes itself", remedy="remove one `include`")
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise SweepError(f"{path} holds no mapping", remedy="write `notebook: path.ipynb` and `grid: {name: [values]}`")
    included = content.pop("include", [])
    included = [included] if isinstance(included, str) else included
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise SweepError(f"{path}: include is {included!r}", remedy="name one file, or a list of files")
    if isinstance(content.get("notebook"), str):
        content["notebook"] = str(path.parent / content["notebook"])
    whole: dict[str, Any] = {}
    for part in [*(read_with_includes(path.parent / name, (*above, path.resolve())) for name in included), content]:
        for key, value in part.items():
            both = key in _MERGED and isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = whole[key] | value if both else value
    return whole


# -- plan ----------------------------------------------------------------------------------------


def plan_sweep(path: Path, *, overrides: Mapping[str, str] | None = None) -> tuple[SweepFile, list[Run]]:
    """The runs of a sweep file, in its order, each once.

    >>> plan_sweep(Path("notebooks/sweeps/kl_scale.yaml"))[1][0].given             # doctest: +SKIP
    {'kl_scale': 0.0, 'items': 20}

    overrides: -p name value, fixed for every run. Raises SweepError, NotebookError, UnknownNameError.
    """
    from fusionlab.experiments.parameters import read_values

    sweep = load_sweep_file(path)
    notebook = load_notebook(Path(sweep.notebook))
    fixed = read_values(notebook.parameters, overrides or {})
    if fixed:
        clash = [name for part in (sweep.grid, sweep.zip, sweep.repeat) for name in part if name in fixed]
        if clash:
            raise SweepError(f"-p {clash[0]} is what {path} varies", remedy="leave it out, or change the file")
        sweep = sweep.model_copy(update={"parameters": sweep.parameters | fixed})
    return sweep, plan_runs(sweep, notebook, where=str(path))


def plan_runs(sweep: SweepFile, notebook: Notebook, *, where: str) -> list[Run]:
    """Every run of a sweep over a notebook. Raises SweepError, NotebookError, UnknownNameError."""
    check_names(sweep, notebook, where=where)
    code = sweep.code or code_version()
    revisions: dict[str, str] = {}
    planned: dict[str, Run] = {}
    for given in points(sweep, where=where):
        run = make_run(notebook, check_values(notebook.parameters, given, where=where), code=code, revisions=revisions,
                       sweep=sweep, index=len(planned))  # fmt: skip
        planned.setdefault(run.key, run)
    if not planned:
        raise SweepError(f"{where}: the sweep holds no run", remedy="fill `grid`, `zip` or `runs`; an empty list of "
                         "values leaves nothing to combine")  # fmt: skip
    return list(planned.values())


def make_run(notebook: Notebook, given: Mapping[str, Value], *, code: str | None = None,
             revisions: dict[str, str] | None = None, sweep: SweepFile | None = None, index: int = 0) -> Run:  # fmt: skip
    """One run of a notebook. given: checked values."""
    values = complete_values(notebook.parameters, given)
    identity = identity_of(notebook, values, model_revisions(values, revisions), code or code_version(),
                           task_contents(values, revisions))  # fmt: skip
    names = TEAM_PARAMETERS if sweep is None or sweep.team is None else sweep.team
    return Run(
        key=key_of(identity), index=index, notebook=notebook.name, source=notebook.text, kernel=notebook.kernel,
        given=dict(given), values=values, identity=identity, team=team_of(values, names),
        resources=dict(sweep.resources) if sweep else {},
        cell_timeout_seconds=sweep.cell_timeout_seconds if sweep else None,
    )  # fmt: skip


def points(sweep: SweepFile, *, where: str) -> Iterator[dict[str, Value]]:
    """The parameters of every run before they are checked: (grid x zip, then runs), each once per repeat.

    With nothing but a repeat, the notebook's defaults are what is repeated.
    """
    lengths = {name: len(values) for name, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        raise SweepError(f"{where}: the lists under zip have {lengths} values", remedy="give them one length")
    combined = sweep.grid or sweep.zip or (sweep.repeat and not sweep.runs)
    sides: list[dict[str, Value]] = [{}]
    if sweep.zip:
        sides = [dict(zip(sweep.zip, row, strict=True)) for row in zip(*sweep.zip.values(), strict=True)]
    total = (count_of(sweep.grid) * len(sides) if combined else 0) + len(sweep.runs)
    total *= count_of(sweep.repeat)
    if total > MOST_RUNS:
        raise SweepError(f"{where}: the sweep holds {total:,} runs", remedy=f"at most {MOST_RUNS:,}; split it")
    for again in combinations(sweep.repeat):
        if combined:
            for point in combinations(sweep.grid):
                yield from ({**sweep.parameters, **point, **side, **again} for side in sides)
        yield from ({**sweep.parameters, **single, **again} for single in sweep.runs)


def combinations(axes: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Every combination of the axes' values, the last axis fastest; one empty one where there are no axes."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def count_of(axes: Mapping[str, Sequence[Value]]) -> int:
    """How many combinations there are."""
    count = 1
    for values in axes.values():
        count *= len(values)
    return count


def check_names(sweep: SweepFile, notebook: Notebook, *, where: str) -> None:
    """Every name is a parameter and is varied in one place. Raises UnknownNameError, SweepError."""
    places: dict[str, str] = {}
    for part in ("parameters", "grid", "zip", "repeat"):
        for name in getattr(sweep, part):
            check_name(notebook.parameters, name, where=f"{where}: {part}")
            if name in places:
                raise SweepError(f"{where}: {name!r} stands under {places[name]} and under {part}", remedy="keep one")
            places[name] = part
    for number, single in enumerate(sweep.runs, start=1):
        for name in single:
            check_name(notebook.parameters, name, where=f"{where}: runs, entry {number}")
            if places.get(name) == "repeat":
                raise SweepError(f"{where}: {name!r} stands under repeat and in runs, entry {number}", remedy="keep one")
    for name in sweep.team or []:
        check_name(notebook.parameters, name, where=f"{where}: team")
