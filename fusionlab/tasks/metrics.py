"""What an extracted answer is worth against the gold answer.

`METRICS` maps a name to a function (answer, gold answer, aliases) -> score in 0..1. A text without an answer is
scored 0.0 by `Task.score` and never gets here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from fusionlab.tasks.normalise import normalise_answer


def exact_match(answer: str, gold: str, aliases: Iterable[str] = ()) -> float:
    """Score 1.0 if the answer equals the gold answer or one of its aliases in normal form, else 0.0.

    >>> exact_match("the gambia", "Gambia")
    1.0
    """
    normal = normalise_answer(answer)
    return float(bool(normal) and any(normal == normalise_answer(right) for right in (gold, *aliases)))


def accuracy(answer: str, gold: str, aliases: Iterable[str] = ()) -> float:
    """Score 1.0 if the option that was chosen is the right one, else 0.0; options are compared word for word.

    >>> accuracy("The Yellow Sea", "The Yellow Sea")
    1.0
    """
    return float(answer in (gold, *aliases))


def rouge2(answer: str, gold: str, aliases: Iterable[str] = ()) -> float:
    """F1 of ROUGE-2: shared pairs of stemmed words, by the rouge-score package; the best over all references.

    >>> round(rouge2("Rain fell on Monday.", "Rain fell on Monday and Tuesday."), 2)
    0.75
    """
    scorer = _load_rouge_scorer()
    return max(float(scorer.score(reference, answer)["rouge2"].fmeasure) for reference in (gold, *aliases))


@cache
def _load_rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # a second: it imports all of nltk

    return RougeScorer(["rouge2"], use_stemmer=True)


METRICS: dict[str, Callable[[str, str, Iterable[str]], float]] = {
    "exact_match": exact_match,
    "accuracy": accuracy,
    "rouge2": rouge2,
}
