from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.unit.observability.runs import rows, searching
from zs_nemo.evaluation.scores import (
    EvaluationName,
    EvaluationRow,
    bootstrap_means,
    compare,
    interval_at_bound,
    macro_scores,
    summarise,
)

NAME = EvaluationName(when="after", engine="bm25", temperature=1.0)


def test_the_interval_is_that_of_all_resamples_enumerated() -> None:
    values = np.array([0.0, 0.1, 0.4, 0.7, 1.0])
    every_mean = [np.mean(resample) for resample in product(values, repeat=len(values))]
    expected = np.percentile(every_mean, [2.5, 97.5])
    means, intervals = bootstrap_means(values[:, None], samples=100_000, seed=3)
    assert means == [pytest.approx(0.44)]
    assert intervals[0] == pytest.approx(expected, abs=0.01)


def test_the_interval_of_many_rows_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).random((4000, 2)) ** [[1, 3]]
    means, intervals = bootstrap_means(values, samples=2000, seed=1)
    errors = 1.96 * values.std(axis=0) / np.sqrt(len(values))
    for mean, interval, error in zip(means, intervals, errors, strict=True):
        assert interval == pytest.approx([mean - error, mean + error], abs=0.1 * error)


def test_resampling_in_chunks_draws_what_one_draw_would(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 2))
    whole = bootstrap_means(values, samples=400, seed=1)
    monkeypatch.setattr("zs_nemo.evaluation.scores.LARGEST_RESAMPLE", 50 * 7)
    assert bootstrap_means(values, samples=400, seed=1) == whole


def test_the_same_seed_gives_the_same_interval() -> None:
    some = rows(list(np.random.default_rng(0).random(60)))
    assert summarise(some, NAME) == summarise(some, NAME)
    assert summarise(some, NAME, seed=1)["f1_ci95"] != summarise(some, NAME, seed=2)["f1_ci95"]


def test_a_summary_counts_every_row_and_every_kind() -> None:
    summary = summarise(rows([1.0, 0.5, 0.0, 0.5], kinds=("capital", "symbol"), searches=2), NAME)
    assert (summary["engine"], summary["decoding"], summary["when"]) == ("bm25", "temperature_1", "after")
    assert (summary["n"], summary["em"], summary["f1"]) == (4, 0.25, 0.5)
    assert summary["searches_per_question"] == 2
    assert summary["by_kind"]["capital"]["f1"] == 0.5
    assert summary["by_kind"]["symbol"] | {"f1_ci95": None} == {
        "n": 2, "em": 0.0, "em_ci95": interval_at_bound(0.0, [2]), "published_em": 1.0,
        "published_em_ci95": interval_at_bound(1.0, [2]), "f1": 0.5, "f1_ci95": None,
    }  # fmt: skip
    assert {hops: part["n"] for hops, part in summary["by_hops"].items()} == {"1": 2, "2": 2}
    assert summary["status"] == {"answered": 1.0}


def test_equal_scores_have_an_interval_without_width() -> None:
    assert summarise(rows([0.6, 0.6, 0.6]), NAME)["f1_ci95"] == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_that_are_all_wrong_or_all_right_have_wilson_s_interval(score: float) -> None:
    summary = summarise(rows([score] * 25), NAME)
    wilson = binomtest(int(25 * score), 25).proportion_ci(0.95, "wilson")
    for measure in ("em", "published_em", "f1"):
        assert summary[f"{measure}_ci95"] == pytest.approx([wilson.low, wilson.high])
    sets = [replace(row, question_id=f"{name}/test/{i}") for name in "ab" for i, row in enumerate(rows([score] * 25))]
    assert summarise(sets, NAME)["macro"]["em_ci95"] == pytest.approx([wilson.low, wilson.high])


def test_what_an_engine_lost_is_counted_apart_and_no_wrong_answer() -> None:
    before, after = rows([1.0, 0.0, 1.0, 0.4]), rows([1.0, 1.0, 0.0, 0.6])
    before[1] = replace(before[1], status="deadline")
    after[2] = replace(after[2], status="search_failed")
    summary = summarise(after, NAME, baseline=before)
    assert (summary["n"], summary["em"], summary["f1"]) == (3, pytest.approx(2 / 3), pytest.approx(2.6 / 3))
    assert summary["unscored"] == {
        "num_questions": 1, "share": 0.25, "question_ids": ["q2"], "failures": {"search_failed": 1},
    }  # fmt: skip
    assert summary["status"] == {"answered": 1.0}
    assert (summary["gain"]["n"], summary["gain"]["f1"]) == (2, pytest.approx(0.1)), "q0 and q3 have a score in both"
    assert summarise(before, NAME)["unscored"]["failures"] == {"deadline": 1}


def test_without_a_question_that_has_a_score_in_both_there_is_no_gain() -> None:
    before, after = rows([1.0, 0.0]), rows([1.0, 0.0])
    before[0], after[1] = replace(before[0], status="deadline"), replace(after[1], status="deadline")
    assert "gain" not in summarise(after, NAME, baseline=before)


def test_an_evaluation_that_lost_every_question_is_refused() -> None:
    lost = [replace(row, status="deadline") for row in rows([0.0, 0.0])]
    with pytest.raises(RuntimeError, match=r"after_bm25_temperature_1: of 2 questions not one has a score"):
        summarise(lost, NAME)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="without rows"):
        summarise([], NAME)


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(0)
    easy = generator.random(200)
    before, after = rows(list(0.8 * easy)), rows(list(0.8 * easy + 0.1))
    gain = compare(before, after)
    assert gain["f1"] == pytest.approx(0.1)
    assert gain["f1_ci95"] == pytest.approx([0.1, 0.1])
    assert (gain["questions_better"], gain["questions_worse"]) == (200, 0)


def test_pairing_goes_by_question_and_not_by_order() -> None:
    before, after = rows([0.0, 0.2, 0.9]), rows([0.3, 0.5, 1.0])
    assert compare(before, after[::-1]) == compare(before, after)


def test_different_questions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'q2'"):
        compare(rows([0.0, 0.2]), rows([0.3, 0.5, 1.0]))
    with pytest.raises(ValueError, match="more than once"):
        compare(rows([0.5]) * 2, rows([0.5]) * 2)


def test_a_row_survives_the_way_through_json() -> None:
    row = EvaluationRow.of(searching(document="the Paris of old"))
    assert (row.searches, row.hops, row.status, row.prediction) == (1, 1, "answered", "the Paris of old")
    assert (row.em, row.published_em, row.f1) == (0.0, 1.0, pytest.approx(0.5))
    assert EvaluationRow.from_json(row.to_json()) == row


def test_a_row_from_before_containment_was_measured_is_graded_by_it_when_read() -> None:
    row = EvaluationRow.of(searching(document="the Paris of old"))
    old = {name: value for name, value in row.to_json().items() if name != "published_em"}
    assert EvaluationRow.from_json(old) == row


def test_the_macro_average_weighs_sets_alike_however_large() -> None:
    large, small = (
        [replace(row, question_id=f"{name}/test/{i}") for i, row in enumerate(rows(scores))]
        for name, scores in (("nq", [1.0] * 30 + [0.0] * 10), ("bamboogle", [0.0, 1.0]))
    )
    summary = summarise([*large, *small], NAME)
    assert summary["f1"] == pytest.approx(31 / 42)
    assert {name: part["f1"] for name, part in summary["by_set"].items()} == {"nq": 0.75, "bamboogle": 0.5}
    assert summary["macro"]["sets"] == 2 and summary["macro"]["f1"] == pytest.approx(0.625)
    assert "macro" not in summarise(large, NAME)


def test_the_interval_of_the_macro_average_is_that_of_all_resamples_within_the_sets() -> None:
    scores = {"a": [0.0, 0.4, 1.0], "b": [0.2, 0.9]}
    all_rows = [
        replace(row, question_id=f"{name}/test/{i}") for name, own in scores.items() for i, row in enumerate(rows(own))
    ]
    means = [[np.mean(resample) for resample in product(own, repeat=len(own))] for own in scores.values()]
    every_macro = [np.mean(pair) for pair in product(*means)]
    found = macro_scores(all_rows, bootstrap_samples=100_000)
    assert found["f1"] == pytest.approx(np.mean([np.mean(own) for own in scores.values()]))
    assert found["f1_ci95"] == pytest.approx(np.percentile(every_macro, [2.5, 97.5]), abs=0.01)


def test_an_evaluation_is_named_by_time_engine_and_decoding() -> None:
    assert str(EvaluationName(when="before", engine="bm25", temperature=0.0)) == "before_bm25_greedy"
    assert str(EvaluationName(when="after", engine="simulator", temperature=0.7)) == "after_simulator_temperature_0.7"
