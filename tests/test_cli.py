"""The command line as a user meets it: every fault is one sentence and exit code 2, and cheap faults cost nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionlab import cli, embedded
from fusionlab.errors import PromptError
from fusionlab.solvers import SOLVERS
from fusionlab.trace import Trace

QUESTION = "Question: What is the capital of France?\nAnswer:"
ESCAPE = "\x1b"
SHIPPED = list(embedded.shipped_experts())
EXPERT = SHIPPED[0]

Run = Callable[..., int]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to fetch or load the embedded large model fails the test."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was fetched or loaded before the fault was found")

    monkeypatch.setattr(embedded, "fetch_large", refuse)
    monkeypatch.setattr(embedded, "load_large", refuse)


FAULTS: dict[str, tuple[list[str], list[str]]] = {  # arguments, and what the sentence must hold
    "empty prompt": (["generate", ""], ["empty"]),
    "seed that is no number": (["generate", "Hi", "--seed", "abc"], ["--seed", "integer", "see fusionlab generate --help"]),
    "unknown option": (["generate", "Hi", "--sed", "1"], ["--sed", "--seed"]),
    "unknown command": (["genrate"], ["genrate", "see fusionlab --help"]),
    "no prompt": (["generate"], ["prompt", "see fusionlab generate --help"]),
    "option without value": (["generate", "Hi", "--seed"], ["--seed", "argument"]),
    "limit below one": (["evaluate", "--limit", "0"], ["--limit", "equal to 1"]),
    "unknown method": (["generate", "Hi", "--method", "exactt"], ["'exactt'", *SOLVERS]),
    "negative scale": (["generate", "Hi", "--kl-scale", "-1"], ["scale", "-1"]),
    "unknown expert": (["generate", "Hi", "--experts", f"{EXPERT}s"], [f"did you mean '{EXPERT}'", *SHIPPED]),
    "unwritable trace": (["generate", "Hi", "--trace", "{file}/x.parquet"], ["{file}"]),
    "trace where even root cannot write": (["generate", "Hi", "--trace", "/proc/x.html"], ["/proc/x.html"]),
    "large without small": (["generate", "Hi", "--large", "a/b"], ["both large= and small="]),
    "trace of unknown format": (["generate", "Hi", "--trace", "{folder}/x.txt"], ["x.txt", ".parquet", ".html"]),
    "trace without format": (["generate", "Hi", "--trace", "{folder}/x"], [".parquet", ".html"]),
    "top-p without temperature": (["generate", "Hi", "--top-p", "0.9"], ["--top-p 0.9", "temperature 0", "--temperature"]),
    "top-p out of range": (["generate", "Hi", "--top-p", "1.5", "--temperature", "1"], ["top_p", "1.5"]),
    "negative temperature": (["generate", "Hi", "--temperature", "-1"], ["--temperature", "-1", "0 for greedy"]),
    "temperature that is no number": (["generate", "Hi", "--temperature", "nan"], ["--temperature", "nan"]),
    "negative budget": (["generate", "Hi", "--budget", "-0.5"], ["budget", "-0.5"]),
    "scale that is no number": (["generate", "Hi", "--kl-scale", "nan"], ["scale", "nan"]),
    "unknown direction": (["generate", "Hi", "--direction", "up"], ["'up'", "both", "forward", "reverse"]),
    "prompt that is no text": (["generate", "Hi \udcff"], ["not UTF-8"]),
    "unknown device": (["generate", "Hi", "--device", "abacus"], ["'abacus'", "cpu"]),
    "expert without path": (
        ["generate", "Hi", "--large", "a", "--small", "b", "--experts", "math"], ["'math'", "name=path"],
    ),
    "evaluate, unknown method": (
        ["evaluate", "--methods", "dynamo", "--out", "{folder}/x"], ["'dynamo'", "dynamic", "proxy-1.5"],
    ),
    "evaluate, unknown task": (
        ["evaluate", "--tasks", "poetry", "--out", "{folder}/x"], ["poetry", "math", "trivia"],
    ),
    "evaluate, unknown expert": (
        ["evaluate", "--methods", "evidence", "--experts", "poetry", "--out", "{folder}/x"],
        ["'poetry'", ", ".join(SHIPPED)],
    ),
    "evaluate, unknown field": (
        ["evaluate", "--methods", "dynamic:scal=2", "--out", "{folder}/x"], ["'scal=2'", "scale", "budget"],
    ),
    "evaluate, field out of range": (["evaluate", "--methods", "dynamic:scale=-1", "--out", "{folder}/x"], ["scale", "-1"]),
    "evaluate, no such phrasing": (
        ["evaluate", "--tasks", "trivia", "--phrasings", "0,99", "--out", "{folder}/x"], ["trivia", "99"],
    ),
    "evaluate, shots that are no number": (["evaluate", "--shots", "few", "--out", "{folder}/x"], ["--shots", "few"]),
    "evaluate, unwritable folder": (["evaluate", "--tasks", "trivia", "--out", "{file}/x"], ["{file}"]),
    "evaluate, empty test split": (
        ["evaluate", "--tasks", "{empty}", "--out", "{folder}/x"], ["{empty}", "test split is empty"],
    ),
    "evaluate, nothing to score again": (["evaluate", "--rescore", "{folder}"], ["{folder}", "holds no evaluation"]),
    "bench, unknown format": (["bench", "--output", "{folder}/x.csv"], ["x.csv", ".parquet"]),
    "bench, unwritable output": (["bench", "--output", "{file}/x.parquet"], ["{file}"]),
    "train, unknown setting": (["train", "all", "--set", "math.epoch=3", "--out", "{folder}"], ["epoch"]),
}  # fmt: skip


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_exit_code_2_before_any_model_loads(
    fault: str, run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever mistypes gets the answer at once, and it names what was received and what would do."""
    file = tmp_path / "regular"
    file.write_text("")
    empty = tmp_path_factory.mktemp("tasks") / "untested.jsonl"
    empty.write_text('{"question": "1 + 1?", "answer": "2", "split": "train"}\n')

    def fill(text: str) -> str:
        return text.replace("{file}", str(file)).replace("{folder}", str(tmp_path)).replace("{empty}", str(empty))

    arguments, expected = FAULTS[fault]
    code = run(*map(fill, arguments))

    shown = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in shown.err and shown.out == ""
    assert len(shown.err.splitlines()) == 1, shown.err
    missing = [part for part in map(fill, expected) if part not in shown.err]
    assert not missing, shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["regular"], "a refused command leaves nothing behind"


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--help",), 0), (("bench", "-h"), 0)])
def test_help_is_shown_whole(arguments: tuple[str, ...], code: int, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Only faults become one sentence; `fusionlab` alone shows what there is."""
    assert run(*arguments) == code
    shown = capsys.readouterr()
    assert "Usage: fusionlab" in shown.out and shown.err == ""


def feed(monkeypatch: pytest.MonkeyPatch, received: bytes) -> None:
    """Put bytes on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(received), encoding="ascii"))


@pytest.mark.usefixtures("no_models")
def test_standard_input_that_is_not_utf8_is_refused_with_its_place(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to end in a traceback of the codec."""
    feed(monkeypatch, "Straße".encode("latin1"))
    assert run("generate", "-") == 2
    shown = capsys.readouterr()
    assert "standard input is not UTF-8: byte 0xdf at position 4" in shown.err
    assert len(shown.err.splitlines()) == 1 and shown.out == ""


def test_standard_input_is_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the locale is often C, and would read an umlaut as two characters or as none."""
    feed(monkeypatch, "Straße\n".encode())
    assert cli.read_standard_input() == "Straße\n"


@pytest.mark.parametrize("option", ["prompt", "new tokens"])
def test_a_prompt_longer_than_the_context_is_refused_before_the_weights_are_read(
    option: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 13B model takes minutes to load; the tokenizer tells in a second."""
    folder = embedded.fetch_large()
    monkeypatch.setattr(embedded, "fetch_large", lambda **_: folder)
    monkeypatch.setattr(embedded, "load_large", lambda **_: pytest.fail("weights were read"))
    arguments = ["word " * 10_000] if option == "prompt" else ["Hi", "--max-new-tokens", "9000"]
    assert run("generate", *arguments) == 2
    shown = capsys.readouterr()
    assert "exceeds the context of 8,192 tokens" in shown.err and "shorten the prompt" in shown.err
    assert len(shown.err.splitlines()) == 1, shown.err


@pytest.mark.usefixtures("no_models", "run")
@pytest.mark.parametrize("arguments", [["--debug", "generate", ""], ["generate", "", "--debug"]])
def test_debug_raises_the_error_itself(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """--debug is for the traceback, so nothing may turn the error into a sentence; before and after the command."""
    monkeypatch.setattr(sys, "argv", ["fusionlab", *arguments])
    with pytest.raises(PromptError, match="empty"):
        cli.main()


@pytest.mark.slow
def test_generate_writes_plain_text_into_a_pipe_and_saves_the_trace(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escapes in a pipe would spoil `fusionlab generate | grep`, and a trace is worth having only whole."""
    path = tmp_path / "x.parquet"
    assert run("generate", QUESTION, "--experts", EXPERT, "--max-new-tokens", "6", "--trace", str(path)) == 0
    piped = capsys.readouterr()
    trace = Trace.load(path)
    assert ESCAPE not in piped.out and str(path) in piped.err
    assert 1 <= len(trace) <= 6 and trace.prompt == QUESTION
    assert trace.experts == (EXPERT,) and trace.method == "exact"
    written = piped.out.replace("▲A", "")  # the marks of flipped tokens stand between the pieces
    assert trace.text.strip() and trace.text.strip().splitlines()[0] in written


@pytest.mark.slow
def test_color_writes_escapes_even_into_a_pipe(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """`fusionlab generate --color | less -R` is the reason that the option exists."""
    assert run("generate", QUESTION, "--experts", EXPERT, "--max-new-tokens", "2", "--color") == 0
    assert ESCAPE in capsys.readouterr().out


def test_control_characters_of_a_model_cannot_drive_the_terminal() -> None:
    """A model may write any character; an escape sequence printed live could retitle or wipe the terminal."""
    assert cli.printable("a\tb\n\x1b[2J\x07é") == "a\tb\n\ufffd[2J\ufffdé"
