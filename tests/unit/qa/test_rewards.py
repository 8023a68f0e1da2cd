"""Hard cases of the answer rewards."""

import pytest

from zs_nemo.qa.rewards import (
    Grades,
    exact_match,
    grade,
    normalise,
    pattern_containment,
    pattern_match,
    published_exact_match,
    token_f1,
)
from zs_nemo.types.question import Question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Hague. ", "hague"),
        ("Washington, D.C.", "washington dc"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("Côte d'Ivoire", "côte divoire"),
        ("...", ""),
    ],
)
def test_normalisation_drops_case_punctuation_articles_and_space(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match_is_not_containment() -> None:
    assert exact_match("Paris", ("Paris",)) == 1.0
    assert exact_match("Paris, France", ("Paris",)) == 0.0
    assert exact_match("Pari", ("Paris",)) == 0.0


def test_the_best_of_several_gold_answers_counts() -> None:
    assert exact_match("kiev", ("Kyiv", "Kiev")) == 1.0
    assert token_f1("Kiev", ("Kyiv", "Kiev")) == 1.0
    assert token_f1("Humphry Davy", ("Sir Humphry Davy", "Davy")) == pytest.approx(0.8)


def test_f1_counts_repeated_tokens_once_each() -> None:
    assert token_f1("Paris Paris Paris", ("Paris",)) == pytest.approx(0.5)
    assert token_f1("Paris Paris", ("Paris Paris",)) == 1.0


def test_f1_weighs_precision_against_recall() -> None:
    # Four predicted tokens, one of them right, out of two gold tokens: p = 1/4, r = 1/2.
    assert token_f1("new city of france", ("New Delhi",)) == pytest.approx(2 * 0.25 * 0.5 / 0.75)


@pytest.mark.parametrize("prediction", [None, "", "   ", "the", "?!"])
def test_a_missing_or_empty_prediction_scores_nothing(prediction: str | None) -> None:
    assert exact_match(prediction, ("Paris",)) == 0.0
    assert token_f1(prediction, ("Paris",)) == 0.0


def test_yes_and_no_match_whole_or_not_at_all() -> None:
    assert token_f1("yes", ("Yes.",)) == 1.0
    assert token_f1("yes it is", ("yes",)) == 0.0
    assert token_f1("no", ("no man's land",)) == 0.0


def test_a_gold_answer_of_articles_alone_is_never_matched() -> None:
    assert token_f1("the", ("The",)) == 0.0
    assert token_f1("a", ()) == 0.0


HARD_CASES = [
    # (prediction, gold answers, strict, as published)
    ("Paris", ("Paris",), 1, 1),
    ("The Paris.", ("paris",), 1, 1),
    ("Paris, France", ("Paris",), 0, 1),
    ("It is not Paris but London", ("Paris",), 0, 1),
    ("Paris or London or Rome or Berlin", ("Rome",), 0, 1),
    ("Bart Simpson", ("art",), 0, 1),
    ("1984", ("198",), 0, 1),
    ("Iran", ("Iraq", "Ira"), 0, 1),
    ("Pari", ("Paris",), 0, 0),
    ("New York", ("New York City",), 0, 0),
    ("York New", ("New York",), 0, 0),
    ("Washington D.C.", ("Washington DC",), 1, 1),
    ("U.S.A.", ("USA",), 1, 1),
    ("twenty-one", ("twenty one",), 0, 0),
    ("twenty-one", ("twentyone",), 1, 1),
    ("Côte d'Ivoire", ("Cote d'Ivoire",), 0, 0),
    ("yes it is", ("yes",), 0, 1),
    ("I do not know", ("no",), 0, 1),
    ("theatre", ("atre",), 0, 1),
    ("cat in the hat", ("cat in hat",), 1, 1),
    ("a", ("A",), 0, 1),
    ("whatever", ("...",), 0, 1),
    ("whatever", ("The", "Paris"), 0, 1),
    ("...", ("Paris",), 0, 0),
    ("", ("Paris",), 0, 0),
    ("", ("A+",), 0, 1),
    ("Paris", ("London", "City of Paris", "Paris France"), 0, 0),
    ("one\ntwo  three", ("two three",), 0, 1),
]


@pytest.mark.parametrize(("prediction", "answers", "strict", "published"), HARD_CASES)
def test_containment_is_what_was_published_as_exact_match_and_strict_is_not(
    prediction: str, answers: tuple[str, ...], strict: int, published: int
) -> None:
    question = Question(id="q", text="?", answers=answers, kind="k", split="test")
    grades = grade(prediction, question)
    assert (grades.em, grades.published_em) == (strict, published)
    assert (exact_match(prediction, answers), published_exact_match(prediction, answers)) == (strict, published)


def test_a_missing_answer_is_right_by_no_measure() -> None:
    for answers in (("Paris",), ("The",)):
        question = Question(id="q", text="?", answers=answers, kind="k", split="test")
        assert grade(None, question) == Grades(em=0.0, published_em=0.0, f1=0.0)


@pytest.mark.parametrize(
    ("prediction", "pattern", "matches", "contains"),
    [
        ("drug abuse", "drug abuse|heart attack", 1, 1),
        ("a heart attack", "drug abuse|heart attack", 0, 1),
        ("Heart Attack in 1995", "drug abuse|heart attack", 1, 1),
        (" 20,320 feet", r"20\s?,?\s?(32|40)0\s?-?\s?f(ee|oo)t", 1, 1),
        ("20320 foot", r"20\s?,?\s?(32|40)0\s?-?\s?f(ee|oo)t", 1, 1),
        ("about 2,500 feet", r"\b2,?[4567][0-9][0-9]\b", 0, 1),
        ("12,500 feet", r"\b2,?[4567][0-9][0-9]\b", 0, 0),
        ("the drug abuse|heart attack", r"drug abuse\|", 0, 1),
        ("", ".*", 0, 0),
        (None, ".*", 0, 0),
    ],
)
def test_a_pattern_is_matched_from_the_beginning_and_contained_anywhere(
    prediction: str | None, pattern: str, matches: int, contains: int
) -> None:
    assert pattern_match(prediction, (pattern,)) == matches
    assert pattern_containment(prediction, ("no such thing", pattern)) == contains
    question = Question(id="q", text="?", answers=(pattern,), kind="k", split="test", answers_are_patterns=True)
    assert grade(prediction, question) == Grades(em=matches, published_em=contains, f1=matches)
