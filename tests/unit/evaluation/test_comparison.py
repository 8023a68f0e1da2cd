"""Two evaluations of the same questions, against all resamples and signs enumerated, and by known tests."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from recipes.compare import main
from tests.unit.observability.runs import rows
from zs_nemo.evaluation.comparison import (
    MACRO,
    Difference,
    compare_evaluations,
    comparison_table,
    read_evaluation,
    sign_flip_p_value,
)
from zs_nemo.evaluation.manifest import EvaluationManifest, manifest_file
from zs_nemo.evaluation.scores import EvaluationRow
from zs_nemo.observability.files import write_json_lines


def of_set(name: str, f1: list[float]) -> list[EvaluationRow]:
    return [replace(row, question_id=f"{name}/test/{i:04d}", kind=name) for i, row in enumerate(rows(f1))]


def f1_of(differences: list[Difference]) -> dict[str, Difference]:
    return {each.set_name: each for each in differences if each.measure == "f1"}


def p_value_of_all_signs(parts: list[float]) -> float:
    sums = [abs(np.dot(signs, parts)) for signs in product((-1, 1), repeat=len(parts))]
    return float(np.mean([each >= abs(sum(parts)) - 1e-12 for each in sums]))


def test_the_interval_is_that_of_all_resamples_and_the_p_value_that_of_all_signs_enumerated() -> None:
    first, second = [0.0, 0.1, 0.5, 0.2, 1.0], [0.4, 0.1, 0.9, 0.1, 1.0]
    gains = np.subtract(second, first)
    every = np.array([np.mean(resample) for resample in product(gains, repeat=len(gains))])
    found = f1_of(compare_evaluations(of_set("nq", first), of_set("nq", second), bootstrap_samples=100_000))["nq"]
    assert (found.first, found.second) == (pytest.approx(0.36), pytest.approx(0.5))
    assert found.difference == pytest.approx(0.14)
    assert found.ci95 == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.011)
    assert found.p_value == p_value_of_all_signs(list(gains))
    assert not found.is_significant


def test_with_many_questions_the_p_value_is_that_of_the_paired_z_test() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(900)
    second = np.clip(first + generator.normal(0.012, 0.2, 900), 0, 1)
    gains = second - first
    z = gains.mean() / (gains.std() / math.sqrt(len(gains)))
    expected = math.erfc(abs(z) / math.sqrt(2))
    assert 0.01 < expected < 0.5
    found = f1_of(compare_evaluations(of_set("nq", list(first)), of_set("nq", list(second))))["nq"]
    assert found.p_value == pytest.approx(expected, abs=0.02)


def test_under_no_difference_five_percent_of_comparisons_are_significant() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        first, second = generator.random((2, 80))
        found = compare_evaluations(of_set("nq", list(first)), of_set("nq", list(second)), bootstrap_samples=400)
        hits += f1_of(found)["nq"].is_significant
    assert 2 <= hits <= 20


def test_sets_are_compared_each_and_in_their_unweighted_mean() -> None:
    first = [*of_set("nq", [0.0] * 40), *of_set("bamboogle", [0.5] * 4)]
    second = [*of_set("nq", [0.0] * 20 + [1.0] * 20), *of_set("bamboogle", [0.5, 0.5, 0.5, 0.1])]
    found = f1_of(compare_evaluations(first, second))
    assert list(found) == ["bamboogle", "nq", MACRO]
    assert found["nq"].difference == pytest.approx(0.5) and found["bamboogle"].difference == pytest.approx(-0.1)
    assert found[MACRO].difference == pytest.approx(0.2)
    assert (found["nq"].num_questions, found[MACRO].num_questions) == (40, 44)
    assert found["nq"].is_significant and not found["bamboogle"].is_significant


def test_the_macro_average_s_interval_is_that_of_all_resamples_within_the_sets() -> None:
    gains = {"a": [0.0, 0.4, -0.21, 0.13], "b": [0.3, 0.11, -0.06]}
    first = [row for name, own in gains.items() for row in of_set(name, [0.5] * len(own))]
    second = [row for name, own in gains.items() for row in of_set(name, [0.5 + gain for gain in own])]
    means = [[np.mean(resample) for resample in product(own, repeat=len(own))] for own in gains.values()]
    every = np.array([np.mean(pair) for pair in product(*means)])
    found = f1_of(compare_evaluations(first, second, bootstrap_samples=100_000))[MACRO]
    observed = np.mean([np.mean(own) for own in gains.values()])
    assert found.ci95 == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.01)
    assert found.difference == pytest.approx(observed)
    assert found.p_value == p_value_of_all_signs([gain / len(own) for own in gains.values() for gain in own])


def test_no_difference_has_a_p_value_of_one_and_pairing_goes_by_question() -> None:
    some = of_set("nq", [0.1, 0.7, 0.3, 1.0])
    for each in compare_evaluations(some, some[::-1]):
        assert (each.difference, each.p_value, each.ci95) == (0.0, 1.0, (0.0, 0.0))


@pytest.mark.parametrize(("num_questions", "p_value"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (9, 2 / 512)])
def test_a_difference_that_every_question_shows_is_as_sure_as_their_number_allows(
    num_questions: int, p_value: float
) -> None:
    first, second = (of_set("nq", [score] * num_questions) for score in (0.1, 0.3))
    found = f1_of(compare_evaluations(first, second))["nq"]
    assert found.p_value == p_value and found.ci95 == pytest.approx((0.2, 0.2))


def test_questions_without_a_difference_do_not_change_the_p_value() -> None:
    first = of_set("nq", [0.0] * 6 + [1.0] * 90)
    second = of_set("nq", [1.0] * 5 + [0.0] + [1.0] * 90)
    assert f1_of(compare_evaluations(first, second))["nq"].p_value == 2 / 2**5


def test_drawn_signs_give_what_the_binomial_does_and_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = np.array([1.0] * 24 + [-1.0] * 12) / 36
    whole = sign_flip_p_value(parts, 20_000, seed=5)
    assert whole == pytest.approx(binomtest(24, 36).pvalue, abs=0.005)
    monkeypatch.setattr("zs_nemo.evaluation.comparison.LARGEST_RESAMPLE", 36 * 700)
    assert sign_flip_p_value(parts, 20_000, seed=5) == whole
    assert sign_flip_p_value(np.ones(200), 999, seed=5) == 1 / 1000, "what was seen is among the choices"


def test_different_questions_are_refused_by_name() -> None:
    some = of_set("nq", [0.5] * 6)
    with pytest.raises(ValueError, match=r"the first alone has nq/test/0004, nq/test/0005; compare evaluations of"):
        compare_evaluations(some, some[:4])
    with pytest.raises(ValueError, match=r"the second alone has popqa/test/0000, .*0002 and 3 more questions"):
        compare_evaluations(some, [*some, *of_set("popqa", [0.5] * 6)])
    with pytest.raises(ValueError, match=r"holds nq/test/0000 more than once"):
        compare_evaluations([*some, some[0]], some)
    with pytest.raises(ValueError, match="without rows"):
        compare_evaluations(some, [])


def test_the_same_identifier_with_other_gold_answers_is_another_question() -> None:
    some = of_set("nq", [0.5] * 3)
    with pytest.raises(ValueError, match=r"different gold answers for nq/test/0001"):
        compare_evaluations(some, [some[0], replace(some[1], answers=("London",)), some[2]])


def write_evaluation(run_dir: Path, name: str, f1: list[float], *, engine: str = "bm25") -> Path:
    path = run_dir / "evaluations" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, [row.to_json() for row in of_set("nq", f1)])
    EvaluationManifest(
        sets={},
        policy=str(run_dir),
        engine=engine,
        num_documents=1,
        max_turns=3,
        max_turn_tokens=48,
        max_document_tokens=160,
        max_sequence_tokens=768,
        temperature=0.0,
        seed=1,
        prompt_sha256="00",
        versions={},
    ).write(manifest_file(path))
    return path


def test_the_command_prints_a_table_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(tmp_path / "a", "after_bm25_greedy", [0.0] * 20)
    write_evaluation(tmp_path / "b", "after_bm25_greedy", [0.0] * 8 + [1.0] * 12)
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--samples", "2000"]) == 0
    printed = capsys.readouterr().out
    assert "| nq | 20 | EM as published (containment) | 0.0 | 60.0 | +60.0* | [+" in printed
    assert printed.count("| nq |") == 3 and "2,000 resamples" in printed and "conditions differ" not in printed


def test_the_command_names_what_differs_in_the_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_evaluation(tmp_path / "a", "before_bm25_greedy", [0.0] * 4)
    second = write_evaluation(tmp_path / "a", "after_simulator_greedy", [0.5] * 4, engine="simulator")
    assert main([str(first), str(second)]) == 0
    assert "conditions differ besides the policy:\n- engine: bm25 -> simulator" in capsys.readouterr().out


def test_an_evaluation_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path, "before_bm25_greedy", [0.0])
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert "no evaluation that has ended; there are before_bm25_greedy" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path), "--evaluation", "before_bm25_greedy", "--samples", "0"]) == 1
    assert "--samples=0 must be at least 1" in capsys.readouterr().err


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_json_lines(path, [{"question_id": "q"}])
    with pytest.raises(ValueError, match=r"x\.jsonl does not hold the rows of an evaluation"):
        read_evaluation(path)


def test_a_small_p_value_is_not_printed_as_zero() -> None:
    line = Difference(
        set_name="nq", measure="em", num_questions=1000, first=0.1, second=0.4, ci95=(0.28, 0.32), p_value=0.00001
    )
    assert comparison_table([line], ("A", "B")).splitlines()[-1] == (
        "| nq | 1,000 | EM | 10.0 | 40.0 | +30.0* | [+28.0, +32.0] | < 0.0001 |"
    )
