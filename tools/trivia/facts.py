"""One fact, and the tables of hand-written facts in `tables/`.

A table is one topic. A row that begins with `=` opens a relation: its name, how its answers are treated, the
reference that its facts can be looked up in, and its wordings, `{}` standing for the subject. Each row below it
is a subject, a tab, the answer and its other accepted spellings with `|` between them. The wording of a
subject is drawn by a hash. The wording `{}` means that each subject is a whole question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusionlab.tasks.answers import normalise_answer

FOLDER = Path(__file__).parent / "tables"
TREATMENTS = {
    "-": "answers as written",
    "surname": "the last word of a name is accepted too, unless the row lists spellings of its own",
    "shared": "answers are classes (a script, a family) that many subjects share, in both splits",
}


@dataclass(frozen=True)
class Fact:
    """One question with its answers, the gold one first; facts that share a link land in one split."""

    id: str
    topic: str
    relation: str
    entity: str
    question: str
    answers: tuple[str, ...]
    source: str
    links: tuple[str, ...]


def hash_text(text: str) -> str:
    """Return a hash that every machine and Python version agrees on."""
    return hashlib.sha256(f"fusionlab-trivia-1:{text}".encode()).hexdigest()


def choose_wording(wordings: tuple[str, ...], subject: str) -> str:
    """Draw one of several wordings for a subject, always the same one.

    >>> choose_wording(("What is the symbol of {}?", "Which symbol does {} have?"), "iron")
    'What is the symbol of {}?'
    """
    return wordings[int(hash_text(f"wording:{subject}"), 16) % len(wordings)]


def ask(wordings: tuple[str, ...], subject: str) -> str:
    """Put the subject into its wording; a question begins with a capital letter and ends without a comma."""
    question = choose_wording(wordings, subject).replace("{}", subject).replace(",?", "?")
    return question[0].upper() + question[1:]


def answer_in_question(fact: Fact) -> bool:
    """Say whether the answer can be read out of its own question (Singapore, Mexico City)."""
    return f" {normalise_answer(fact.answers[0])} " in f" {normalise_answer(fact.question)} "


def read_tables(folder: Path = FOLDER) -> Iterator[Fact]:
    """Yield the hand-written facts of every table."""
    for path in sorted(folder.glob("*.tsv")):
        yield from read_table(path)


def read_table(path: Path) -> Iterator[Fact]:
    """Yield the facts of one table; a malformed row stops the build with its file and line."""
    relation = treatment = reference = ""
    wordings: tuple[str, ...] = ()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cells = line.split("\t")
        if cells[0] == "=" and len(cells) >= 5 and cells[2] in TREATMENTS:
            relation, treatment, reference = cells[1:4]
            wordings = tuple(cells[4:])
            continue
        if len(cells) != 2 or not all(cells) or not wordings:
            raise SystemExit(f"{path}, line {number}: expected subject, tab, answers; got {line!r}")
        subject, answers = cells[0], tuple(cells[1].split("|"))
        if treatment == "surname" and len(answers) == 1 and " " in answers[0]:
            answers += (answers[0].split()[-1],)
        named = normalise_answer(answers[0] if wordings == ("{}",) else subject)
        fact = Fact(
            id=f"{relation}-{hash_text(subject)[:6]}",
            topic=path.stem,
            relation=relation,
            entity=named,
            question=ask(wordings, subject),
            answers=answers,
            source=f"hand-written, {reference}",
            links=(named,) if treatment == "shared" else (named, normalise_answer(answers[0])),
        )
        if answer_in_question(fact):
            raise SystemExit(f"{path}, line {number}: the answer stands in the question {fact.question!r}")
        yield fact
