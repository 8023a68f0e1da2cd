import math
from dataclasses import replace

import pytest

from zs_nemo.evaluation.simulator_quality import (
    SimulatedAnswer,
    answer_recall,
    classifier_accuracy,
    diversity,
    likeness,
    quality,
    separation_auc,
)

USEFUL = SimulatedAnswer(
    question_id="q",
    answers=("New Delhi",),
    query="capital of India",
    noisy=False,
    documents=("The capital of India is New Delhi.",),
    real_documents=("New Delhi is the capital of India.",),
)
NOISY = replace(USEFUL, noisy=True, documents=("India has many rivers.",))


def test_shares_count_what_supports_and_what_leaks():
    missed = replace(USEFUL, documents=("Its capital is large.",))
    leaking = replace(NOISY, documents=("Rivers.", "Many trains leave New Delhi."), leaks=3)
    silent = replace(NOISY, documents=())
    found = quality([USEFUL, USEFUL, missed, NOISY, leaking, silent])
    assert (found["num_useful"], found["num_noisy"]) == (3, 3)
    assert found["support_share"] == pytest.approx(2 / 3)
    assert found["leak_share"] == pytest.approx(1 / 4), "of four documents, the one that was not written included"
    assert found["leaks_per_noisy_search"] == pytest.approx(3 / 3), "two of them were drawn again"
    assert found["real_support_share"] == 1.0
    assert found["empty_share"] == pytest.approx(1 / 6)


def test_the_slow_searches_of_a_queue_are_told_beside_the_median():
    found = quality([replace(USEFUL, latency_s=float(number)) for number in range(101)])
    assert (found["latency_s_median"], found["latency_s_p95"]) == (50.0, 95.0)


def test_a_search_is_not_supported_by_all_of_its_documents_because_one_holds_the_answer():
    five = replace(USEFUL, documents=(*USEFUL.documents, *["Rivers."] * 4), real_documents=("New Delhi.", "Rivers."))
    found = quality([five, NOISY])
    assert (found["support_share"], found["supported_searches"]) == (pytest.approx(1 / 5), 1.0)
    assert found["real_support_share"] == 0.5


def test_separation_is_the_chance_that_the_useful_one_holds_more_of_the_answer():
    half = replace(NOISY, documents=("Delhi has rivers.",))
    assert answer_recall(half.text, half.answers) == 0.5
    assert separation_auc([USEFUL, NOISY]) == 1.0
    assert separation_auc([USEFUL, replace(NOISY, documents=USEFUL.documents)]) == 0.5
    # Of the four pairs two are won, one is lost and one is a tie.
    assert separation_auc([USEFUL, replace(half, noisy=False), half, replace(USEFUL, noisy=True)]) == 0.5
    assert separation_auc([half, USEFUL]) == 1.0
    assert math.isnan(separation_auc([USEFUL]))


def test_a_simulator_that_returns_the_real_documents_cannot_be_told_apart():
    names = [f"name{number}" for number in range(60)]
    real = [(name, f"{name} lies in the north of its country") for name in names]
    assert classifier_accuracy(real, real) <= 0.55
    other = [(name, f"well, {name} is said to be there") for name in names]
    assert classifier_accuracy(other, real) >= 0.95


def test_the_classifier_does_not_learn_the_names_of_the_questions():
    # Every text is a name alone: a fold that held it on both sides would be told apart by heart.
    texts = [(f"q{number}", f"name{number}") for number in range(40)]
    assert classifier_accuracy(texts[:20], texts[20:]) <= 0.6


def test_a_simulator_that_answers_one_question_alone_is_measured_without_the_classifier():
    silent = [replace(USEFUL, question_id=f"q{number}", documents=()) for number in range(20)]
    found = quality([*silent, replace(USEFUL, documents=USEFUL.documents * 5)])
    assert math.isnan(found["likeness"]["classifier_accuracy"])
    assert found["likeness"]["words"] == 7 and found["empty_share"] == pytest.approx(20 / 21)


def test_likeness_measures_lengths_and_words():
    found = likeness([USEFUL])
    assert (found["words"], found["real_words"], found["length_distance"]) == (7, 7, 0)
    assert found["overlap"] == 1.0
    longer = likeness([replace(USEFUL, documents=("one two three four five six seven eight",))])
    assert longer["length_distance"] == 1.0 and longer["overlap"] == 0.0
    assert math.isnan(likeness([replace(USEFUL, documents=())])["overlap"])


def test_diversity_compares_what_was_written_for_the_same_query():
    again = replace(USEFUL, documents=("The capital of India is New Delhi.", "New Delhi."))
    found = diversity([again, NOISY])
    assert found["distinct"] == 1.0
    # "capital of india is new delhi" and "new delhi": two words of six.
    assert found["self_overlap"] == pytest.approx(2 / 6)
    assert diversity([USEFUL, USEFUL])["distinct"] == 0.5
