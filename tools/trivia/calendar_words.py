"""Days and months in three languages, from CLDR (read through babel), checked against arrow."""

from __future__ import annotations

from collections.abc import Iterator

from trivia.facts import Fact, answer_in_question, ask

from fusionlab.tasks.answers import normalise_answer

LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German"}
WORDINGS = ("What is {{}} called in {language}?", "What is the {language} name of {{}}?")


def calendar_facts() -> Iterator[Fact]:
    """Yield the word for each day and month, unless it is written as in English (April, August)."""
    from arrow.locales import get_locale
    from babel import Locale

    english = Locale("en")
    for code, language in LANGUAGES.items():
        locale, second = Locale(code), get_locale(code)
        rows = [("day-name", "days", day, second.day_names[day + 1]) for day in range(7)]
        rows += [("month-name", "months", month, second.month_names[month]) for month in range(1, 13)]
        for relation, table, index, other in rows:
            word, name = (getattr(each, table)["format"]["wide"][index] for each in (english, locale))
            if normalise_answer(name) != normalise_answer(other):
                raise SystemExit(f"{language} for {word}: {name!r} in CLDR, {other!r} in arrow; settle it in a table")
            entity = f"{language} {word}".lower()
            fact = Fact(
                id=f"{relation}-{code}-{word.lower()}",
                topic="languages",
                relation=relation,
                entity=entity,
                question=ask(tuple(wording.format(language=language) for wording in WORDINGS), word),
                answers=(name,),
                source="CLDR",
                links=(entity, normalise_answer(name)),
            )
            if not answer_in_question(fact):
                yield fact
