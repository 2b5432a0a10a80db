"""Parameters: what a notebook declares, what a value may be, and what reaches the kernel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator
from stub_notebooks import DECLARED, write_notebook

from fusionlab.errors import FusionError, NotebookError, SweepError, UnknownNameError
from fusionlab.experiments.notebook import load_notebook
from fusionlab.experiments.parameters import (
    Parameter,
    canonical,
    check_values,
    complete_values,
    describe_kind,
    kind_of,
    read_parameters,
    read_values,
)
from fusionlab.experiments.yaml_text import read_yaml

SOURCE = """
scale: float = 1  # of the targets
text = "a=b"
names = [
    "math",
]
budget: "float | None" = None
anything = None
choice: Literal["up", "down"] = "up"
flag = True
count = 3
path = os.environ["HOME"]  # only the kernel knows
weights: list[float] = []
"""
JSONABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3), max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def declared() -> dict[str, Parameter]:
    return read_parameters(SOURCE, where="n.ipynb")


def test_every_assignment_is_a_parameter_with_type_default_and_comment(declared: dict[str, Parameter]) -> None:
    """papermill's own reading loses `"a=b"` and `float | None`, so a sweep over them would be refused."""
    assert {name: describe_kind(parameter.kind) for name, parameter in declared.items()} == {
        "scale": "float", "text": "str", "names": "list[str]", "budget": "float | None", "anything": "Any",
        "choice": "Literal['up', 'down']", "flag": "bool", "count": "int", "path": "Any", "weights": "list[float]",
    }  # fmt: skip
    assert declared["scale"].help == "of the targets" and declared["names"].default == ["math"]
    assert not declared["path"].known and declared["budget"].known


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [("scale", 2, 2.0), ("budget", None, None), ("budget", 3, 3.0), ("choice", "down", "down"),
     ("weights", [1, 0.5], [1.0, 0.5]), ("anything", {"a": [1, None]}, {"a": [1, None]}), ("path", "/x", "/x")],
)  # fmt: skip
def test_a_fitting_value_is_held_as_its_type(name: str, value: Any, held: Any, declared: dict[str, Parameter]) -> None:
    """2 for a float is 2.0, so that 2 and 2.0 in two sweep files are one run."""
    checked = declared[name].check(value)
    assert checked == held and type(checked) is type(held)


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", "1"), ("scale", True), ("count", 0.5), ("count", True), ("flag", 1), ("text", 3), ("names", "math"),
     ("names", [1]), ("budget", "none"), ("choice", "left"), ("weights", ["a"])],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_both(name: str, value: Any, declared: dict[str, Parameter]) -> None:
    """A wrong type would surface in the hundredth run, in the middle of the notebook."""
    with pytest.raises(NotebookError) as caught:
        declared[name].check(value, where="sweep.yaml")
    message = str(caught.value)
    assert "sweep.yaml" in message and repr(name) in message and repr(value) in message
    assert describe_kind(declared[name].kind) in message


def test_what_yaml_could_smuggle_in_is_refused(declared: dict[str, Parameter]) -> None:
    """Only what a notebook can be given and JSON can hold: the key and the injected cell must mean the same."""
    for value in ({1: "a"}, {"a": object()}, [b"x"]):
        with pytest.raises(NotebookError, match="anything"):
            declared["anything"].check(value)


def test_an_unknown_name_comes_with_the_nearest(declared: dict[str, Parameter]) -> None:
    """papermill only warns, and the run goes on with the default."""
    with pytest.raises(UnknownNameError, match=r"unknown parameter 'scales'; did you mean 'scale'\? known: scale, text"):
        check_values(declared, {"scales": 1}, where="sweep.yaml")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("scale", "1e-4", 1e-4), ("count", "7", 7), ("flag", "true", True), ("text", "1", "1"), ("text", "a: [", "a: ["),
     ("names", "[a, b]", ["a", "b"]), ("budget", "null", None), ("budget", "2", 2.0), ("choice", "up", "up"),
     ("path", "../x: y", "../x: y"), ("scale", "-1", -1.0)],
)  # fmt: skip
def test_text_of_the_command_line_becomes_what_the_parameter_takes(
    name: str, text: str, value: Any, declared: dict[str, Parameter]
) -> None:
    """-p has no types of its own."""
    read = read_values(declared, {name: text})[name]
    assert read == value and type(read) is type(value)


def test_text_that_fits_nothing_is_an_error(declared: dict[str, Parameter]) -> None:
    """-p scale abc must not become a string in a place for numbers."""
    with pytest.raises(NotebookError, match=r"'scale' is 'abc' \(str\)"):
        read_values(declared, {"scale": "abc"})


def test_a_default_that_is_given_and_one_that_is_left_out_are_the_same(declared: dict[str, Parameter]) -> None:
    """Else writing down a default would repeat a finished run."""
    assert complete_values(declared, {}) == complete_values(declared, check_values(declared, {"scale": 1}, where=""))
    assert "path" not in complete_values(declared, {})


@given(value=JSONABLE)
def test_what_is_injected_reads_back_the_same(value: Any) -> None:
    """Quotes, backslashes, `..` and every other character pass through papermill's source code unharmed."""
    source = PythonTranslator.translate(value)
    assert eval(source, {"__builtins__": {}, "float": float}) == value


@given(value=JSONABLE, other=JSONABLE)
def test_canonical_text_tells_values_apart(value: Any, other: Any) -> None:
    """The key is made of it: what differs must differ, 1 and true and 1.0 included."""
    if canonical(value) == canonical(other):
        assert value == other
    assert canonical(1) != canonical(True) and canonical(1) != canonical(1.0)
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("value", "kind"), [([1, 2.5], list[float]), ([], list), ([1, "a"], list), ({}, dict), (None, Any)]
)
def test_a_default_stands_for_a_type(value: Any, kind: Any) -> None:
    """What is not annotated is told by its default, no more narrowly than that shows."""
    assert kind_of(value) == kind


# -- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-1E5", -1e5), (".5", 0.5), ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("010", 10), ("0o10", 8),
     ("2024-01-01", "2024-01-01"), ("~", None), ("true", True), (".inf", math.inf), ("'1'", "1"),
     ("1_000", "1_000"), ("", None)],
)  # fmt: skip
def test_yaml_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    """YAML 1.1 makes 1e-4 a string, no false and 12:30 the number 750."""
    read = read_yaml(f"[{text}]" if text else "a: ", where="t")
    read = read[0] if text else read["a"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{a: 1, a: 2}", "'a' stands twice"), ("a: [1", "line 1"), ("!!python/object/apply:os.getcwd []", "constructor")],
)
def test_bad_yaml_names_the_place(text: str, complaint: str) -> None:
    """A key that stands twice would silently win; a tag could run code."""
    with pytest.raises(SweepError, match=f"sweep.yaml.*{complaint}"):
        read_yaml(text, where="sweep.yaml")


# -- notebooks -----------------------------------------------------------------------------------

FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "no parameters cell": ({"parameters": None}, "has no cell tagged `parameters`"),
    "another language": ({"language": "R"}, "written in R"),
    "no Python in the cell": ({"parameters": "a = = 1"}, "not Python"),
    "a name twice": ({"parameters": "a = 1\na = 2"}, "'a' twice"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_notebook_that_cannot_be_an_experiment_is_refused(fault: str, tmp_path: Path) -> None:
    """Before anything runs, with the file's name."""
    options, complaint = FAULTY[fault]
    path = write_notebook(tmp_path / "faulty.ipynb", "1 + 1", **options)
    with pytest.raises(NotebookError, match=complaint) as caught:
        load_notebook(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"nbformat": 4}', "\udcff"])
def test_a_file_that_is_no_notebook_is_refused(content: str, tmp_path: Path) -> None:
    """A folder, a text or half a download, named by mistake."""
    path = tmp_path / "x.ipynb"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(FusionError, match="x.ipynb"):
        load_notebook(path)
    with pytest.raises(FusionError, match="cannot read"):
        load_notebook(tmp_path)


def test_only_code_counts_for_the_hash(tmp_path: Path) -> None:
    """Outputs and metadata change whenever a notebook is opened; a word in a text cell changes no result."""
    before = load_notebook(write_notebook(tmp_path / "a.ipynb", "1 + 1"))
    text = before.text.replace('"outputs": []', '"outputs": [{"output_type": "stream", "name": "stdout", "text": "2"}]')
    (tmp_path / "b.ipynb").write_text(text)
    assert load_notebook(tmp_path / "b.ipynb").sha256 == before.sha256
    assert load_notebook(write_notebook(tmp_path / "c.ipynb", "1 + 2")).sha256 != before.sha256
    assert set(before.parameters) == set(read_parameters(DECLARED, where=""))
