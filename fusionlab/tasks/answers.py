"""What a model's text is worth: take the answer out of it, bring it to a normal form, compare.

`EXTRACTORS` maps a name to a function text -> answer or None; `METRICS` maps a name to a function
(extracted answer, gold answer, aliases) -> score in 0..1. This module knows nothing of items, prompts or
files. The normal form follows the one of SQuAD and TriviaQA (lower case, no articles, no punctuation), to
which it adds accents, hyphens and numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"(?<![\w.,])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?!\w|[.,]\d)")
_HASHES = re.compile(r"####[^\S\n]*([-\u2212]?)[^\S\n]*[$\u20ac\u00a3]?[^\S\n]*(\d+(?:,\d{3})*(?:\.\d+)?)")
# Letters that Unicode does not decompose into a base letter and an accent, and the minus sign.
_PLAIN_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "\u2212": "-"}
)


def normalise_answer(text: str) -> str:
    """Bring an answer to the form in which two spellings of it are the same string.

    Case, accents, the articles a/an/the, punctuation and runs of white space do not count; a hyphen counts as
    a space; a number loses its thousands commas and the zeros that end its fraction.

    >>> normalise_answer("  The Côte-d’Ivoire. ")
    'cote divoire'
    >>> normalise_answer("$1,250.00")
    '1250'
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    text = "".join(mark for mark in text if not unicodedata.combining(mark)).translate(_PLAIN_LETTERS)
    words: list[str] = []
    end = 0
    for number in _NUMBER.finditer(text):  # a number keeps its sign and point, other text loses punctuation
        words += _plain_words(text[end : number.start()])
        words.append(_canonical_number(number.group()))
        end = number.end()
    words += _plain_words(text[end:])
    # An answer that is nothing but an article keeps it, so that "A" is not the empty answer.
    return " ".join(words) or " ".join(re.findall(r"[^\W_]+", text))


def _plain_words(text: str) -> list[str]:
    text = re.sub(r"[-\u2010-\u2015/_]", " ", text)
    text = "".join(sign for sign in text if sign.isalnum() or sign.isspace())
    return _ARTICLES.sub(" ", text).split()


def _canonical_number(digits: str) -> str:
    sign = "-" if digits.startswith("-") else ""
    whole, _, fraction = digits.lstrip("-").replace(",", "").partition(".")
    fraction = fraction.rstrip("0")
    whole = whole.lstrip("0") or "0"
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value


def extract_first_line(text: str) -> str | None:
    """Return the first line that is not blank, without the full stop that ends it; None if there is none.

    >>> extract_first_line(" Paris.\\nQuestion: ...")
    'Paris'
    """
    line = text.strip().partition("\n")[0].strip().removesuffix(".").rstrip()
    return line or None


def extract_after_hashes(text: str) -> str | None:
    """Return the number after the first `####`, without commas; None where a worked answer never gets there.

    >>> extract_after_hashes(" 12 * 24 = 288. #### 1,288")
    '1288'
    """
    found = _HASHES.search(text)
    if found is None:
        return None
    return ("-" if found.group(1) else "") + found.group(2).replace(",", "")


def exact_match(answer: str, gold: str, aliases: Iterable[str] = ()) -> float:
    """Score 1.0 if the answer equals the gold answer or one of its aliases in normal form, else 0.0.

    >>> exact_match("the gambia", "Gambia")
    1.0
    """
    normal = normalise_answer(answer)
    return float(bool(normal) and any(normal == normalise_answer(right) for right in (gold, *aliases)))


EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "first_line": extract_first_line,
    "after_hashes": extract_after_hashes,
}
METRICS: dict[str, Callable[[str, str, Iterable[str]], float]] = {"exact_match": exact_match}
