"""Chemical elements: symbol and atomic number, from periodictable, checked against molmass."""

from __future__ import annotations

from collections.abc import Iterator

from trivia.facts import Fact, ask

from fusionlab.tasks.answers import normalise_answer

NUMBERED = 20  # beyond calcium, hardly anybody knows atomic numbers
NAMED = (*range(1, 57), 74, 77, 78, 79, 80, 82, 83, 84, 86, 88, 90, 92, 93, 94, 95, 96, 99)
SPELLINGS = {"Aluminium": ("Aluminum",), "Caesium": ("Cesium",), "Sulfur": ("Sulphur",)}
WORDINGS = {
    "symbol": ("What is the chemical symbol of {}?", "Which symbol stands for the element {}?"),
    "element": ("Which element has the symbol {}?", "{} is the chemical symbol of which element?"),
    "atomic-number": ("What is the atomic number of {}?", "How many protons does an atom of {} have?"),
    "element-of-number": ("Which element has the atomic number {}?", "Which element has {} protons in its nucleus?"),
}


def load_elements() -> dict[int, tuple[str, str]]:
    """Return name and symbol by atomic number where both packages give the same."""
    import molmass
    import periodictable

    other = {element.number: element for element in molmass.ELEMENTS}
    elements = {}
    for number in NAMED:
        entry, second = periodictable.elements[number], other[number]
        name = entry.name.capitalize()
        spellings = {name, *SPELLINGS.get(name, ()), *(first for first, also in SPELLINGS.items() if name in also)}
        if entry.symbol != second.symbol or second.name.capitalize() not in spellings:
            raise SystemExit(f"element {number}: {name} ({entry.symbol}) in periodictable, {second.name} in molmass")
        elements[number] = next((first for first, also in SPELLINGS.items() if name in also), name), entry.symbol
    return elements


def element_facts() -> Iterator[Fact]:
    """Yield symbol and name of the first hundred elements, and the lower atomic numbers."""
    for number, (name, symbol) in load_elements().items():
        names = (name, *SPELLINGS.get(name, ()))
        rows = [("symbol", name.lower(), (symbol,)), ("element", symbol, names)]
        if number <= NUMBERED:
            rows += [("atomic-number", name.lower(), (str(number),)), ("element-of-number", str(number), names)]
        links = (name.lower(), normalise_answer(symbol), str(number))
        for relation, subject, answers in rows:
            yield Fact(
                id=f"{relation}-{symbol}",
                topic="elements",
                relation=relation,
                entity=name.lower(),
                question=ask(WORDINGS[relation], subject),
                answers=answers,
                source="periodictable",
                links=links,
            )
