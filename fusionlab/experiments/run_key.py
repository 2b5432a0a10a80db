"""What a run is and what it is known by: the hash of notebook, parameters, model revisions, code and tasks.

Equal keys mean equal work, so a finished run is never repeated and a change of any of them is. Versions of other
packages are in the manifest only: an upgrade of a plotting package should not void a week's results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from fusionlab.experiments.notebook import Notebook
from fusionlab.experiments.parameters import Value, canonical

KEY_CHARS = 20  # hexadecimal, 80 bits

# What carries runs and shows results takes no part in what a run computes; of `experiments` only these modules do.
NOT_IN_A_RUN = ("cli.py", "sweep_cli.py", "doctor.py", "bench.py")
EXPERIMENTS_IN_A_RUN = ("__init__", "answering", "comparison", "kernel_state", "recording", "study", "teams")

TEAM_PARAMETERS = ("team", "large", "small", "experts", "team_experts", "quantization", "dtype", "device", "device_map")


@dataclass(frozen=True)
class Run:
    """One execution of a notebook, ready to be sent to a worker.

    given: the parameters that the sweep sets. values: those and the notebook's defaults. team: runs with equal teams load
    the same models. index: its place in the sweep.
    """

    key: str
    index: int
    notebook: str  # its name
    source: str = field(repr=False)  # the notebook file's text
    kernel: str = "python3"
    given: Mapping[str, Value] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    team: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    cell_timeout_seconds: float | None = None

    def label(self) -> str:
        """A line for people: what the sweep sets."""
        from fusionlab.experiments.parameters import show

        return ", ".join(f"{name}={show(value)}" for name, value in self.given.items()) or "defaults"


def key_of(identity: Mapping[str, Any]) -> str:
    """The key: only letters and digits, whatever the parameters hold, so that it can name a folder.

    >>> key_of({"parameters": {"path": "../../etc"}}) == key_of({"parameters": {"path": "../../etc"}})
    True
    """
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:KEY_CHARS]


def identity_of(notebook: Notebook, values: Mapping[str, Value], models: Mapping[str, str], code: str,
                tasks: Mapping[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    """The things that a key is made of. models: name -> revision. tasks: path -> content of the user's own."""
    known = {"notebook": notebook.sha256, "parameters": dict(values), "models": dict(models), "code": code}
    return known | ({"tasks": dict(tasks)} if tasks else {})


def team_of(values: Mapping[str, Value], names: Iterable[str] = TEAM_PARAMETERS) -> str:
    """One text per set of models that a run loads: the values of the parameters that choose them."""
    return canonical({name: values[name] for name in sorted(names) if name in values})


# -- code ----------------------------------------------------------------------------------------


def code_version() -> str:
    """Version and a hash of what of fusionlab takes part in a run: its sources, the bundled tasks and the predictor.

    E.g. "0.1.0+1f3c9a7e2b4d". Weights that ship are told by `embedded_revision`.
    """
    import fusionlab

    digest = hashlib.sha256()
    for package in ("fusionlab", "fusionlab_widgets"):
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if package != "fusionlab" or takes_part(name):
                digest.update(f"{package}/{name}\0".encode() + path.read_bytes() + b"\0")
    data = Path(str(resources.files("fusionlab_data")))
    for path in [data / "predictor.json", *sorted((data / "tasks").iterdir())]:
        if path.is_file():
            digest.update(f"fusionlab_data/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"{fusionlab.__version__}+{digest.hexdigest()[:12]}"


def takes_part(name: str) -> bool:
    """Whether a module of fusionlab, by its path in the package, can change what a run computes."""
    folder, _, module = name.rpartition("/")
    if folder == "experiments":
        return module.removesuffix(".py") in EXPERIMENTS_IN_A_RUN
    return name not in NOT_IN_A_RUN


# -- tasks of the user's -------------------------------------------------------------------------


def task_contents(values: Mapping[str, Value], cache: dict[str, str] | None = None) -> dict[str, str]:
    """Path -> hash of the content of every task file or folder that a run's parameters name.

    Looked at are text and lists of text under names that end in `task` or `tasks`. cache: as in `model_revisions`.
    """
    from fusionlab.tasks.benchmarks import BENCHMARKS
    from fusionlab.tasks.bundled import TASKS

    known: dict[str, str] = {} if cache is None else cache
    found: dict[str, str] = {}
    for name, value in sorted(values.items()):
        for text in (value if isinstance(value, list) else [value]) if name.endswith(("task", "tasks")) else []:
            if isinstance(text, str) and text and text not in TASKS and text not in BENCHMARKS:
                key = f"task {text}"
                known[key] = known[key] if key in known else hash_content(Path(text))
                found |= {text: known[key]} if known[key] else {}
    return found


def hash_content(place: Path) -> str:
    """A hash over a file, or over the names and contents of a folder's files; "" where there is nothing."""
    digest = hashlib.sha256()
    try:
        if not place.exists():
            return ""
        for path in [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(place).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    except (OSError, ValueError):  # no path, or one that may not be read, which the run will say
        return ""
    return digest.hexdigest()[:12]


# -- models --------------------------------------------------------------------------------------


def model_revisions(values: Mapping[str, Value], cache: dict[str, str] | None = None) -> dict[str, str]:
    """Name -> revision of every model that a run's parameters name, and of the embedded team.

    Text under `large`, `small`, `team` and the values of a mapping `experts` are taken for models: "embedded" is what
    ships, a folder is told by the names, sizes and times of its files, a hub id by the commit in the local cache ("not
    cached" where there is none: the run will fetch it). cache: looked-up revisions, shared between runs.
    """
    known: dict[str, str] = {} if cache is None else cache
    named = [values.get(name) for name in ("large", "small", "team")]
    experts = values.get("experts")
    named += list(experts.values()) if isinstance(experts, dict) else []
    wanted = {"embedded", *(name for name in named if isinstance(name, str) and name)}
    for name in wanted - known.keys():
        known[name] = find_revision(name)
    return {name: known[name] for name in sorted(wanted)}


def find_revision(name: str) -> str:
    """The revision of one model; see `model_revisions`."""
    if name == "embedded":
        return embedded_revision()
    folder = Path(name).expanduser()
    try:
        files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
        if folder.exists():
            facts = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
            return "files:" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    except OSError:  # a name that is too long for a path is none
        pass
    return cached_commit(name)


def embedded_revision() -> str:
    """The large model's pin and a hash over the shipped files' sha256s."""
    from fusionlab import embedded

    manifest = embedded.shipped_manifest()
    shipped = {name: entry.get("sha256") for name, entry in manifest.items()}
    return f"{embedded.REVISION}+{hashlib.sha256(canonical(shipped).encode()).hexdigest()[:12]}"


def cached_commit(model_id: str) -> str:
    """The commit of `main` in the hub's local cache, without a network."""
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE) / f"models--{model_id.replace('/', '--')}" / "refs" / "main"
    try:
        return "commit:" + reference.read_text().strip()[:12]
    except (OSError, ValueError):
        return "not cached"
