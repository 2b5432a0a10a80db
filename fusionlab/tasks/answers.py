"""Where the answer stands in a model's text.

`EXTRACTORS` maps a name to a function (text, choices, letters) -> answer or None: the text up to a stop string,
the options that were shown if the question has any, and whether they were shown with letters. None means that
the text holds no answer; it is counted as such and never guessed at. This module knows nothing of items,
prompts or files.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from fusionlab.tasks.normalise import normalise_answer as normalise_answer  # also found here by older callers

LETTERS = string.ascii_uppercase  # of the options, where a phrasing shows letters: at most 26

_HASHES = re.compile(r"####[^\S\n]*([-\u2212]?)[^\S\n]*[$\u20ac\u00a3]?[^\S\n]*(\d+(?:,\d{3})*(?:\.\d+)?)")
_BULLET = re.compile(r"^(?:[-*\u2022]\s+)?")
_MARK = re.compile(r"^\(?(?P<mark>[A-Za-z]|\d{1,2})\)?\s*[.):]?$")  # B, (b), b), 2.
_MARKED = re.compile(r"^\(?(?P<mark>[A-Za-z]|\d{1,2})(?:\)|\s*[.:])\s+(?P<text>\S.*)$")  # B. text, (b) text, 2: text
# What may follow an option of one word: "Paris, of course" and "Paris is ..." name it, "No one" and "3 million" do not.
_AFTER_ONE_WORD = re.compile(r"^\W*$|^\s*[,.;:!?(\u2013\u2014]|^\s+(?:is|are|was|were|because)\b(?!\s+not\b)")


def extract_first_line(text: str, choices: Sequence[str] = (), letters: bool = False) -> str | None:
    """Return the first line that is not blank, without the full stop that ends it; None if there is none.

    >>> extract_first_line(" Paris.\\nQuestion: ...")
    'Paris'
    """
    line = text.strip().partition("\n")[0].strip().removesuffix(".").rstrip()
    return line or None


def extract_after_hashes(text: str, choices: Sequence[str] = (), letters: bool = False) -> str | None:
    """Return the number after the first `####`, without commas; None where a worked answer never gets there.

    >>> extract_after_hashes(" 12 * 24 = 288. #### 1,288")
    '1288'
    """
    found = _HASHES.search(text)
    if found is None:
        return None
    return ("-" if found.group(1) else "") + found.group(2).replace(",", "")


def extract_whole(text: str, choices: Sequence[str] = (), letters: bool = False) -> str | None:
    """Return all of the text with single spaces between its words; None if there are none.

    >>> extract_whole(" Rain fell\\n on Monday. ")
    'Rain fell on Monday.'
    """
    return " ".join(text.split()) or None


def extract_choice(text: str, choices: Sequence[str] = (), letters: bool = False) -> str | None:
    """Return the option that the first line names, word for word as it was shown; None unless it is exactly one.

    A line names an option that it equals in normal form; else, where letters were shown, the option whose letter
    or number stands alone; else the option that it begins with, or that begins with it.

    >>> extract_choice(" the yellow sea.", ["The Red Sea", "The Yellow Sea"])
    'The Yellow Sea'
    >>> extract_choice(" (b)", ["The Red Sea", "The Yellow Sea"], letters=True)
    'The Yellow Sea'
    >>> extract_choice(" The sea", ["The Red Sea", "The Yellow Sea"]) is None
    True
    """
    line = text.strip().partition("\n")[0].strip()
    options = list(dict.fromkeys(choices))  # the same text twice is one option
    named = _find_equal(line, options)
    if letters:
        named |= _find_marked(line, choices)
    named = named or _find_begun(line, options)
    return named.pop() if len(named) == 1 else None


def _find_equal(line: str, options: Sequence[str]) -> set[str]:
    """The options that the line equals, to the letter if there is one, else in normal form."""
    if line in options:
        return {line}
    line = _BULLET.sub("", line)
    if exact := {option for option in options if option.casefold() == line.casefold()}:
        return exact
    normal = normalise_answer(line)
    return {option for option in options if normal and normalise_answer(option) == normal}


def _find_marked(line: str, choices: Sequence[str]) -> set[str]:
    """The option whose letter or number the line gives, alone or with a text; both options where they disagree."""
    found = _MARK.match(line) or _MARKED.match(line)
    if found is None:
        return set()
    mark, rest = found["mark"], found.groupdict().get("text")
    if mark.isdigit() and any(option[:1].isdigit() for option in choices):
        return set()  # a quantity, not a place in the list
    place = int(mark) - 1 if mark.isdigit() else LETTERS.index(mark.upper())
    if not 0 <= place < len(choices):
        return set()
    if rest is None:
        return {choices[place]}
    named = _find_equal(rest, choices) or _find_begun(rest, choices)
    return named | {choices[place]} if named else set()


def _find_begun(line: str, options: Sequence[str]) -> set[str]:
    """The longest option that the line begins with, and every option that begins with the line."""
    line = _BULLET.sub("", line)
    normal = normalise_answer(line)
    normals = {option: normalise_answer(option) for option in options}
    begun: set[str] = set()
    for word in re.finditer(r"\S+", line):
        start = line[: word.end()].rstrip(string.punctuation)
        prefix = normalise_answer(start)
        long_enough = len(prefix.split()) > 1 or _AFTER_ONE_WORD.search(line[len(start) :])
        matching = {option for option in options if prefix and normals[option] == prefix}
        if matching and long_enough:
            begun = matching
    after = normal + ("" if " " in normal else " ")  # a line cut off in a word must have another before it
    return begun | {option for option in options if normal and normals[option].startswith(after)}


EXTRACTORS: dict[str, Callable[[str, Sequence[str], bool], str | None]] = {
    "first_line": extract_first_line,
    "after_hashes": extract_after_hashes,
    "choice": extract_choice,
    "whole": extract_whole,
}
