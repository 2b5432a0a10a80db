"""Answers: found in a text or not at all, brought to a normal form, scored as the metrics say."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tasks import choice_item, small_task, task_named

from fusionlab.errors import FusionError
from fusionlab.tasks import Phrasing, metrics, normalise_answer
from fusionlab.tasks.answers import extract_after_hashes, extract_choice, extract_first_line, extract_whole
from fusionlab.tasks.metrics import accuracy, exact_match, rouge2

# -- the normal form ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Paris", "paris"),
        ("  The   GAMBIA. ", "gambia"),
        ("an Apple a day", "apple day"),
        ("Côte d’Ivoire", "cote divoire"),
        ("São Tomé", "sao tome"),
        ("Tromsø, Łódź", "tromso lodz"),
        ("Straße", "strasse"),
        ("Port-au-Prince", "port au prince"),
        ("Guinea–Bissau", "guinea bissau"),
        ("N'Djamena", "ndjamena"),
        ("U.S.", "us"),
        ('"Euro"', "euro"),
        ("1,234", "1234"),
        ("$1,250.00", "1250"),
        ("1,234,567.50", "1234567.5"),
        ("-5", "-5"),
        ("−5", "-5"),
        (".5", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("50 %", "50"),
        ("covid-19", "covid 19"),
        ("3.14 m", "3.14 m"),
        ("The", "the"),
        ("", ""),
        ("...", ""),
    ],
)
def test_normal_form_of_fixed_cases(text: str, normal: str) -> None:
    """These are the rules; a change to any of them changes every score."""
    assert normalise_answer(text) == normal


@given(st.text(max_size=30))
def test_normal_form_is_stable_and_ignores_case_and_outer_space(text: str) -> None:
    """Normalising twice changes nothing, so a normal form compares equal to itself."""
    normal = normalise_answer(text)
    assert normalise_answer(normal) == normal
    assert normalise_answer(f"\t{text}  ") == normal
    assert normalise_answer(unicodedata.normalize("NFD", text)) == normal


# -- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "aliases", "score"),
    [
        ("paris", "Paris", (), 1.0),
        ("Kiev", "Kyiv", ("Kiev",), 1.0),
        ("The Netherlands", "Netherlands", (), 1.0),
        ("1,356", "1356", (), 1.0),
        ("356.0", "356", (), 1.0),
        ("-356", "356", (), 0.0),
        ("3.5", "35", (), 0.0),
        ("Paris France", "Paris", (), 0.0),
        ("Niger", "Nigeria", (), 0.0),
        ("", "", (), 0.0),
        ("?", "!", (), 0.0),
    ],
)
def test_exact_match_of_fixed_cases(answer: str, gold: str, aliases: tuple[str, ...], score: float) -> None:
    """Near is not enough, and an empty answer is never right."""
    assert exact_match(answer, gold, aliases) == score


@pytest.mark.parametrize(
    ("answer", "golds", "score"),
    [
        ("the Eiffel Tower", ("Eiffel Tower",), 1.0),
        ("An apple.", ("apple",), 1.0),
        ("Denver Broncos", ("Denver Broncos", "Denver Broncos", "Denver Broncos"), 1.0),
        ("Santa Clara", ("Santa Clara, California", "Levi's Stadium"), 0.0),
        ("levis stadium", ("Santa Clara, California", "Levi's Stadium"), 1.0),
        ("February 7, 2016", ("February 7 2016",), 1.0),
        ("$1 million", ("1 million",), 1.0),
        ("Gold!!", ("gold",), 1.0),
        ("golden", ("gold",), 0.0),
        ("David   Seville", ("David Seville",), 1.0),
        ("Andrew_Lloyd_Webber", ("Andrew Lloyd Webber",), 1.0),
        ("Mark Twain's", ("Mark Twain\u2019s",), 1.0),
        ("Theodore", ("ore",), 0.0),
        ("1968", ("1,968",), 1.0),
        ("a", ("b",), 0.0),
    ],
)
def test_exact_match_agrees_with_the_official_scripts_of_squad_and_triviaqa(
    answer: str, golds: tuple[str, ...], score: float
) -> None:
    """Case, articles, punctuation and white space as there, underscores and curly quotes as in TriviaQA's."""
    assert exact_match(answer, golds[0], golds[1:]) == score


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("the cat was found under the bed", "the cat was under the bed", 2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5)),
        ("Two boats sank.", "two boats sank", 1.0),
        ("boats sinking", "boat sinks", 1.0),  # stems
        ("boats sank two", "two boats sank", 0.5),
        ("boats", "boats", 0.0),  # no pair of words
        ("rain", "snow fell", 0.0),
        ("a b a b", "a b", 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # a repeated pair counts as often as in the reference
    ],
)
def test_rouge2_of_cases_worked_by_hand(answer: str, gold: str, score: float) -> None:
    """F1 over pairs of stemmed words, clipped counts."""
    assert rouge2(answer, gold) == pytest.approx(score)


def test_rouge2_takes_the_best_reference() -> None:
    """Aliases of a summary are further references."""
    assert rouge2("two boats sank", "it rained all day", ("two boats sank",)) == 1.0


def test_rouge2_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stemmer is code; no nltk data is looked for, so scoring works with no network and no home folder."""
    import nltk

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("nltk data was asked for")

    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk.data, "find", refuse)
    monkeypatch.setattr(nltk.data, "load", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    metrics._load_rouge_scorer.cache_clear()
    assert rouge2("Rivers were rising quickly", "rivers rise quickly") > 0


def test_accuracy_is_of_the_option_itself() -> None:
    """Extraction gives options word for word, so that options alike in normal form stay apart."""
    assert (accuracy("x^2", "x^2"), accuracy("x2", "x^2")) == (1.0, 0.0)


# -- extractors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 12 * 24 = 288. #### 288", "288"),
        ("####356", "356"),
        ("#### 1,288 dollars", "1288"),
        ("#### $1,200.50.", "1200.50"),
        ("#### -7", "-7"),
        ("#### − 7", "-7"),
        ("#### 5\n#### 6", "5"),
        ("#### apples", None),
        ("####\n12", None),
        ("the answer is 288", None),
        ("### 288", None),
        ("", None),
    ],
)
def test_number_after_hashes_in_fixed_cases(text: str, answer: str | None) -> None:
    """A worked answer that never ends has no answer; guessing its last number would flatter the model."""
    assert extract_after_hashes(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris.\nQuestion: next", "Paris"),
        ("\n\n Paris", "Paris"),
        (" St. John's", "St. John's"),
        (" \n ", None),
        (" . ", None),
        ("", None),
    ],
)
def test_first_line_in_fixed_cases(text: str, answer: str | None) -> None:
    """Base models run on to a next question; only the first line is the answer."""
    assert extract_first_line(text) == answer


def test_a_missing_answer_is_none_and_scores_zero() -> None:
    """It can be counted as missing, and is never an error or a half mark."""
    task = task_named("math")
    unfinished = task.target(task.test[0]).partition("####")[0]
    assert task.extract(unfinished, task.test[0]) is None
    assert task.score(unfinished, task.test[0]) == 0.0
    run_on = f"no idea\nQuestion: next\nAnswer: 1 + 1 = 2. #### {task.test[0].answer}"
    assert task.extract(run_on, task.test[0]) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [(" Rain fell.\n It stopped. ", "Rain fell. It stopped."), (" \n", None), ("", None)],
)
def test_whole_text_in_fixed_cases(text: str, answer: str | None) -> None:
    """A summary may run over lines; only its stop string ends it."""
    assert extract_whole(text) == answer


SEAS = ("The Red Sea", "The Yellow Sea", "Sea of Marmara", "Sea of Marmara and the straits", "No")


@pytest.mark.parametrize(
    ("text", "choices", "answer"),
    [
        (" The Yellow Sea", SEAS, "The Yellow Sea"),
        ("\n yellow sea.\nQuestion: The Red Sea", SEAS, "The Yellow Sea"),
        ("- The Red Sea", SEAS, "The Red Sea"),
        ("The Red Sea, which is salty", SEAS, "The Red Sea"),
        ("Red Sea coasts are hot", SEAS, "The Red Sea"),
        ("The Yel", SEAS, None),  # one word, cut
        ("Yellow", SEAS, "The Yellow Sea"),  # one whole word, of one option alone
        ("Yellow Se", SEAS, "The Yellow Sea"),  # cut after two words
        ("Sea of Marm", SEAS, None),  # two options begin so
        ("Sea of Marmara", SEAS, "Sea of Marmara"),
        ("Sea of Marmara.", SEAS, "Sea of Marmara"),
        ("Sea of Marmara and the straits of Turkey", SEAS, "Sea of Marmara and the straits"),
        ("Sea of Marmara and", SEAS, None),  # either of two
        ("Sea", SEAS, None),
        ("It is the Red Sea", SEAS, None),
        ("The Red Sea or the Yellow Sea", ("Red Sea or lake", "Yellow Sea"), None),
        ("No", SEAS, "No"),
        ("No, never", SEAS, "No"),
        ("No one knows", SEAS, None),
        ("Paris is the capital of France", ("Paris", "Rome"), "Paris"),
        ("Paris is not the capital of Spain", ("Paris", "Rome"), None),
        ("3 million", ("3", "4"), None),
        ("3.0", ("3", "4"), "3"),
        ("-3", ("3", "-3"), "-3"),
        ("x2", ("x^2", "x2", "2x"), "x2"),
        ("X-2", ("x^2", "x 2", "2x"), None),  # two options of one normal form
        ("B", ("Vitamin B", "Vitamin C"), None),
        ("B", ("Rome", "Paris"), None),  # no letters were shown
        ("(b)", ("Rome", "Paris"), None),
        ("2.", ("Rome", "Paris"), None),
        ("+", ("+", "-"), "+"),
        ("...", ("Rome", "Paris"), None),
        ("", ("Rome", "Paris"), None),
        ("Paris", (), None),
    ],
)
def test_choice_by_text_in_fixed_cases(text: str, choices: tuple[str, ...], answer: str | None) -> None:
    """The one option that the first line names; two or none are no answer, never the likelier of them."""
    assert extract_choice(text, choices) == answer


@pytest.mark.parametrize(
    ("text", "choices", "answer"),
    [
        ("B", ("Rome", "Paris"), "Paris"),
        (" b.\nC", ("Rome", "Paris", "Oslo"), "Paris"),
        ("(b)", ("Rome", "Paris"), "Paris"),
        ("B)", ("Rome", "Paris"), "Paris"),
        ("B:", ("Rome", "Paris"), "Paris"),
        ("2", ("Rome", "Paris"), "Paris"),
        ("2.", ("Rome", "Paris"), "Paris"),
        ("C", ("Rome", "Paris"), None),  # there is no such option
        ("0", ("Rome", "Paris"), None),
        ("2", ("10", "20"), None),  # a quantity
        ("20", ("10", "20"), "20"),
        ("Paris", ("Rome", "Paris"), "Paris"),
        ("B. Paris", ("Rome", "Paris"), "Paris"),
        ("(B) Paris, of course", ("Rome", "Paris"), "Paris"),
        ("2. Paris", ("Rome", "Paris"), "Paris"),
        ("B. Rome", ("Rome", "Paris"), None),  # letter and text disagree
        ("B. because it is so", ("Rome", "Paris"), None),
        ("A", ("B", "A"), None),  # the first option, or the one that reads A
        ("A", ("A", "B"), "A"),
        ("B or A", ("Rome", "Paris"), None),
        ("Be careful", ("Rome", "Paris"), None),
    ],
)
def test_choice_by_letter_in_fixed_cases(text: str, choices: tuple[str, ...], answer: str | None) -> None:
    """Where letters were shown, one alone is an answer; where letter and text disagree, there is none."""
    assert extract_choice(text, choices, True) == answer


@given(
    st.lists(
        st.text(min_size=1, max_size=12).filter(lambda t: t == " ".join(t.split())), min_size=2, max_size=5, unique=True
    )
)
def test_an_option_word_for_word_is_always_found(choices: list[str]) -> None:
    """Whatever the options look like, giving one exactly as it was shown names it."""
    for choice in choices:
        assert extract_choice(f" {choice}", choices) == choice


def test_a_choice_without_an_answer_scores_zero_and_is_counted() -> None:
    """`extract` tells no answer from a wrong one; both score 0."""
    item = choice_item("a", "Which is a metal?", "iron", "wool")
    task = small_task([], [item], extractor="choice", metric="accuracy")
    assert (task.extract(" wool", item), task.score(" wool", item)) == ("wool", 0.0)
    assert (task.extract(" glass", item), task.score(" glass", item)) == (None, 0.0)
    assert (task.extract(" Iron.", item), task.score(" Iron.", item)) == ("iron", 1.0)


# -- by likelihood -------------------------------------------------------------------------------


def test_options_of_an_item_are_the_targets_it_could_have() -> None:
    """What is compared are the texts that training taught, letters where the phrasing shows letters."""
    task = task_named("unseen")
    item = task.test[0]
    assert task.options(item) == [f" {choice}" for choice in item.choices]
    assert task.options(item, phrasing=3) == [" A", " B", " C", " D"]
    assert task.target(item) in task.options(item)


def test_an_option_is_its_own_answer_where_likelihood_chooses() -> None:
    """Nothing is extracted from it: here each option would name the other, or its letter another one."""
    item = choice_item("i", "Which letter?", "B", "A", "first line\nsecond line")
    chosen = small_task([], [item], extractor="choice", metric="accuracy", answering="likelihood",
                        phrasings=(Phrasing("{question}", letters=True),))  # fmt: skip
    assert [chosen.extract(choice, item) for choice in item.choices] == list(item.choices)
    assert [chosen.score(choice, item) for choice in item.choices] == [1.0, 0.0, 0.0]
    written = small_task([], [item], extractor="choice", metric="accuracy", phrasings=chosen.phrasings)
    assert [written.extract(choice, item) for choice in item.choices[:2]] == [None, None]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [({"answering": "guessing"}, "unknown way of answering: 'guessing'; use one of writing, likelihood"),
     ({"answering": "likelihood"}, "extractor first_line does not choose an option"),
     ({"answering": "likelihood", "extractor": "choice", "target_field": "why"}, "has target_field 'why'")],
)  # fmt: skip
def test_likelihood_needs_options_to_choose_from(fields: dict[str, str], fault: str) -> None:
    """A spec that could not be measured is refused when it is made."""
    with pytest.raises(FusionError, match=re.escape(fault)):
        small_task([], [], **fields)


@pytest.mark.parametrize("name", ["truth", "unseen"])
def test_bundled_choice_tasks_are_answered_by_likelihood(name: str) -> None:
    """Written answers name an option in 2 to 4 % of cases without an expert: no measure of what a model knows."""
    assert task_named(name).by_likelihood
    assert not any(task_named(other).by_likelihood for other in ("math", "trivia", "summary"))
