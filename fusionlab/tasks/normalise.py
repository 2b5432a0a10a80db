"""The form in which two spellings of an answer are the same string.

It follows the one of SQuAD and TriviaQA (lower case, no articles, no punctuation), to which it adds accents,
hyphens and numbers.
"""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"(?<![\w.,])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?!\w|[.,]\d)")
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
