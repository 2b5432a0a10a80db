"""The frame holds: packaging agrees with itself, imports go one way, and the tree stays small and clean."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]

Skip = Callable[[ast.AST], bool]

# Lower layers first: a module imports only from earlier rows and its own; imports for type checkers are free.
LAYERS = [
    {"errors"},
    {"allocator", "atomic_file", "constraint", "hub_address", "kl", "nf4", "prompts", "sampling", "vocab"},
    {"joint", "predictor", "search", "solvers"},
    {
        "page_script",
        "trace",
        "trace_fields",
        "trace_file",
        "trace_html",
        "trace_payload",
        "trace_static",
        "trace_text",
        "tasks",
    },
    {"tables"},
    {"adapters", "cached", "embedded", "hub", "key_values", "models", "remote"},
    {"decode", "decode_batch", "likelihood", "record", "speculate"},
    {"loading", "team"},
    {"session"},
    {"baselines", "cells", "evaluate", "methods", "scores", "train"},
    {"study"},
    {"bench", "experiments"},
    {"sweep_cli"},
    {"cli", "doctor"},
]
WIDGETS_MAY_IMPORT = {
    "baselines",
    "constraint",
    "errors",
    "kl",
    "page_script",
    "session",
    "solvers",
    "team",
    "trace",
    "trace_html",
    "trace_payload",
    "trace_text",
}
MAY_IMPORT_WIDGETS = {"experiments", "cli"}  # they draw figures; what lies lower must work without plotly

# Packages that fusionlab needs but never imports by name, and why.
NEVER_IMPORTED = {
    "sqlalchemy": "MLflow's databases",
    "accelerate": "transformers' device_map",
    "gguf": "transformers' gguf_file",
    "rich": "typer's coloured help and errors",
    "ipykernel": "the kernel that papermill and JupyterLab start",
    "ipywidgets": "live plotly figures",
    "jupyterlab": "make lab",
    "nbclient": "executed by papermill",
    "nbconvert": "the executed notebook as a page",
    "nbformat": "the executed notebook as a page",
}

# Imported, but part of something that is declared.
COMES_WITH = {
    "traitlets": "what anywidget's synchronised values are made of",
    "triton": "torch's CUDA build; nothing asks for it elsewhere",
}


# -- packaging -----------------------------------------------------------------------------------


def requirements(*extras: str) -> list[Requirement]:
    """The declared requirements: the base ones, then those of the named extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@cache
def pins() -> dict[str, str]:
    """constraints.txt as normalised name -> version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalise(name): version for name, version in pairs}


def normalise(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_declared_package_is_pinned_within_its_bound() -> None:
    """`make setup` must give what pyproject promises, and the same everywhere."""
    for requirement in requirements("lab", "dev"):
        assert any(bound.operator == ">=" for bound in requirement.specifier), f"{requirement} has no lower bound"
        pinned = pins().get(normalise(requirement.name))
        assert pinned is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{requirement} against the pinned {pinned}"


def test_constraints_fit_every_torch_build() -> None:
    """Pins of CUDA parts or of a local build (+cpu) would break set-up with another build of torch."""
    assert pins()["torch"] == "2.13.0"
    build_parts = [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert build_parts == []
    assert not [version for version in pins().values() if "+" in version]


def test_conda_environment_installs_the_project_with_the_pinned_versions() -> None:
    """The conda way may not drift from `make setup`: same Python bound, same extras, same constraints."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    pip = next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    assert f"python{PROJECT['requires-python']}" in conda
    assert {"git", "make", "pip"} <= set(conda)
    extras = ",".join(PROJECT["optional-dependencies"])
    assert pip == ["-c constraints.txt", f"-e .[{extras}]"]
    assert f'-c constraints.txt -e ".[{extras}]"' in (ROOT / "Makefile").read_text()


def test_version_is_the_newest_one_in_the_changelog() -> None:
    """Users read the changelog to learn what they have."""
    import fusionlab

    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == fusionlab.__version__


def test_every_package_folder_is_listed_for_the_wheel() -> None:
    """A forgotten subpackage is there in a clone and missing after pip install."""
    homes = PYPROJECT["tool"]["setuptools"]["package-dir"]
    found = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in homes.items()
        for path in sources(folder)
    }
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_wheel_carries_every_file_of_the_packages(tmp_path: Path) -> None:
    """Weights, tasks and scripts are found through importlib.resources, so they must be in the wheel."""
    source = tmp_path / "source"
    for name in project_files():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    script = f"import setuptools.build_meta as backend; print(backend.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        carried = set(wheel.namelist())
    homes = PYPROJECT["tool"]["setuptools"]["package-dir"]
    missing = [
        name
        for name in project_files()
        for package, folder in homes.items()
        if name.parts[0] == folder and Path(package, *name.parts[1:]).as_posix() not in carried
    ]
    assert missing == []


# -- imports -------------------------------------------------------------------------------------


def test_imports_go_one_way() -> None:
    """Tensor maths at the bottom, models above, decode above those, in every syntax tree."""
    depth = {module: level for level, row in enumerate(LAYERS) for module in row}
    wrong = []
    for path in sources("fusionlab"):
        importer = layer_name(path)
        if importer == "__init__":
            continue  # the public face points at every layer, lazily
        assert importer in depth, f"{path.relative_to(ROOT)}: add the module to LAYERS"
        for imported in imports_within(path, "fusionlab"):
            if imported != importer and (imported not in depth or depth[imported] > depth[importer]):
                wrong.append(f"{path.relative_to(ROOT)} imports fusionlab.{imported}")
    assert wrong == []


def test_modules_do_not_need_each_other_to_be_imported() -> None:
    """A circle works or breaks by which end is imported first; imports inside functions are free of that."""
    graph = {
        layer_name(path): imports_within(path, "fusionlab", runs_after_import) - {layer_name(path)}
        for path in sources("fusionlab")
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_widgets_import_only_traces_and_solves() -> None:
    """The explorer works on a saved trace, so it may not need what loads models."""
    for path in sources("widgets"):
        assert imports_within(path, "fusionlab") <= WIDGETS_MAY_IMPORT, path.relative_to(ROOT)


def test_only_the_top_draws_figures() -> None:
    """The engine installs and runs without plotly and Jupyter."""
    users = {layer_name(path) for path in sources("fusionlab") if "fusionlab_widgets" in imported_roots(path)}
    assert users <= MAY_IMPORT_WIDGETS


def test_nothing_imports_folders_by_their_name_in_the_tree() -> None:
    """`import widgets` from the repository root would load a second copy beside fusionlab_widgets."""
    for path in [*sources("fusionlab"), *sources("widgets"), *sources("tests"), *sources("data")]:
        forbidden = imported_roots(path) & {"widgets", "data", "notebooks", "tests"}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"
    assert "--import-mode=importlib" in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]


@pytest.mark.parametrize("folder", ["widgets", "data"])
def test_a_folder_imported_from_the_root_refuses_to_be_a_second_copy(folder: str) -> None:
    """Python run from the root finds `widgets/`; two copies of one class would fail far from the cause."""
    done = run_python(f"import {folder}")
    assert done.returncode != 0
    assert f"import fusionlab_{folder}" in done.stderr


def test_importing_fusionlab_loads_no_heavy_package() -> None:
    """The command line must answer --help at once, and a notebook's first cell too."""
    heavy = "{'torch', 'numpy', 'transformers', 'pandas', 'pyarrow', 'plotly', 'bitsandbytes'}"
    done = run_python(f"import sys, fusionlab; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_is_there_and_has_one_home() -> None:
    """The lazy table, __all__ and the imports that type checkers read must name the same things."""
    import fusionlab

    tree = ast.parse((ROOT / "fusionlab" / "__init__.py").read_text())
    for_checkers = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fusionlab.")
        for alias in node.names
    }
    assert for_checkers == fusionlab._HOMES
    assert {*fusionlab._HOMES, "__version__"} == set(fusionlab.__all__)
    for name in fusionlab.__all__:
        assert getattr(fusionlab, name) is not None


def test_an_unknown_public_name_lists_the_known_ones() -> None:
    """A typing slip should show the right name."""
    import fusionlab

    with pytest.raises(AttributeError, match="KLConstraint"):
        _ = fusionlab.KLConstrain


def test_every_import_is_declared_and_every_declared_package_is_used() -> None:
    """A package that came along by chance may be gone tomorrow, and one that is not used is only weight."""
    homes = metadata.packages_distributions()
    used = {
        normalise(homes.get(root, [root])[0])
        for path in [*sources("fusionlab"), *sources("widgets")]
        for root in imported_roots(path)
        if root not in sys.stdlib_module_names and root not in PYPROJECT["tool"]["setuptools"]["package-dir"]
    }
    declared = {normalise(requirement.name) for requirement in requirements("lab", "mlflow")}
    assert used - declared - COMES_WITH.keys() == set(), "imported, but not in pyproject's dependencies or lab"
    assert declared - used - NEVER_IMPORTED.keys() == set(), "declared, but nothing imports it"


def sources(folder: str) -> list[Path]:
    """Every Python file under a folder of the project."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def layer_name(path: Path) -> str:
    """The module or subpackage of fusionlab that a file belongs to: fusionlab/tasks/math.py -> tasks."""
    first = path.relative_to(ROOT / "fusionlab").parts[0]
    return first.removesuffix(".py")


def for_type_checkers(node: ast.AST) -> bool:
    """Whether a node is an `if TYPE_CHECKING:` block, which never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def runs_after_import(node: ast.AST) -> bool:
    """Whether a node's body does not run while its file is imported."""
    return for_type_checkers(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def import_nodes(path: Path, skip: Skip = lambda node: False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements anywhere in a file, apart from those inside nodes to skip."""
    pending: list[ast.AST] = [ast.parse(path.read_text(), filename=str(path))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        if not skip(node):
            pending += ast.iter_child_nodes(node)


def imports_within(path: Path, package: str, skip: Skip = for_type_checkers) -> set[str]:
    """Children of `package` that a file imports: {"kl", "solvers"}; "__init__" stands for the public face."""
    children = set()
    for node in import_nodes(path, skip):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            base = absolute_base(node, path)
            modules = [base] if base != package else [f"{base}.{alias.name}" for alias in node.names]
        children |= {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}
    known = {layer_name(source) for source in sources(package)}
    return {child if child in known else "__init__" for child in children - {"__version__"}}


def absolute_base(node: ast.ImportFrom, path: Path) -> str:
    """The module after `from`, with leading dots resolved against the file's folder."""
    anchor = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
    return ".".join([*anchor, *filter(None, [node.module])])


def imported_roots(path: Path) -> set[str]:
    """Top-level names of what a file imports, apart from its own package by relative imports."""
    roots = set()
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif not node.level and node.module:
            roots.add(node.module.split(".")[0])
    return roots - {"__future__"}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the repository root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


# -- what readers see ----------------------------------------------------------------------------


def test_every_public_piece_has_a_docstring() -> None:
    """Whoever meets a name in a notebook asks for help(name)."""
    bare = []
    for path in [*sources("fusionlab"), *sources("widgets")]:
        tree = ast.parse(path.read_text())
        named = [(path.stem, tree), *public_definitions(tree)]
        bare += [f"{path.relative_to(ROOT)}: {name}" for name, node in named if not ast.get_docstring(node)]
    assert bare == []


def public_definitions(
    parent: ast.Module | ast.ClassDef,
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions and classes of a module, and public methods of its public classes."""
    for node in parent.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", method) for name, method in public_definitions(node))


def test_notebooks_have_one_parameters_cell_and_no_outputs() -> None:
    """Papermill needs the cell; outputs in git hide changes and weigh."""
    notebooks = [ROOT / name for name in project_files() if name.suffix == ".ipynb"]
    assert notebooks, "no notebook found"
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1, f"{path.name} has {len(tagged)} cells tagged parameters"
        stored = [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
        assert not stored, f"{path.name} has outputs"


# -- the tree ------------------------------------------------------------------------------------


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that git holds or would add, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(Path(name) for name in sorted(filter(None, listed.split("\0"))) if (ROOT / name).is_file())


def test_the_tree_stays_small() -> None:
    """A clone and a wheel travel: data/ within 24 MB, everything within 30 MB."""
    sizes = {name: (ROOT / name).stat().st_size for name in project_files()}
    assert sum(size for name, size in sizes.items() if name.parts[0] == "data") <= 24_000_000
    assert sum(sizes.values()) <= 30_000_000


def test_no_file_names_a_path_of_one_machine() -> None:
    """Such a path works for whoever wrote it."""
    machine_path = re.compile(r"/(?:home|Users|root|tmp)/\w|\b[A-Z]:\\\\?Users|" + re.escape(f"{ROOT}/"))
    found = []
    for name in project_files():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:  # text
            found += [f"{name}: {hit[0]}" for hit in machine_path.finditer(content.decode())]
    assert found == []


def test_git_ignores_what_runs_leave_and_nothing_else() -> None:
    """Results must not slip into a commit, and shipped data must not be forgotten."""
    left_behind = [".venv/x", "runs/demo/x", "build/x", "fusionlab.egg-info/x", "tests/__pycache__/x.pyc"]
    shipped = [
        "data/experts/math.safetensors",
        "data/tasks/math.jsonl",
        "notebooks/00_demo.ipynb",
        "tests/data.json",
    ]
    command = ["git", "check-ignore", "--no-index", *left_behind, *shipped]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert ignored == left_behind


def test_makefile_offers_the_promised_targets() -> None:
    """README, CONTRIBUTING and CI name these."""
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    offered = {line.split()[1] for line in listed.splitlines()}
    assert {"setup", "demo", "study", "test", "lint", "lab", "bench", "clean"} <= offered


def test_setup_refuses_an_old_python_in_words(tmp_path: Path) -> None:
    """The usual system Python may be too old, and a syntax error from pip explains nothing."""
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "Python 3.9.2" in done.stdout
    assert not (tmp_path / "venv").exists()
