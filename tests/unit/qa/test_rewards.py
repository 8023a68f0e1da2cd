"""Hard cases of the answer rewards."""

import pytest

from zs_nemo.qa.rewards import exact_match, normalise, token_f1


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
