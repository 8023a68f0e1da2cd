from collections import Counter

import pytest

from zs_nemo.qa.sets.mixture import interleave, mix, sample
from zs_nemo.types.question import Question


def questions(name: str, count: int) -> list[Question]:
    return [
        Question(id=f"{name}/train/{i:04d}", text="q", answers=("a",), kind=name, split="train") for i in range(count)
    ]


def test_a_sample_is_drawn_by_seed_and_set_and_keeps_the_order() -> None:
    whole = questions("nq", 1000)
    drawn = sample(whole, 100, 1, "nq:train")
    assert drawn == sample(whole, 100, 1, "nq:train")
    assert [q.id for q in drawn] == sorted({q.id for q in drawn}) and len(drawn) == 100
    assert drawn != sample(whole, 100, 2, "nq:train") and drawn != sample(whole, 100, 1, "hotpotqa:train")
    assert set(sample(whole, 50, 1, "nq:train")) <= set(drawn)
    assert sample(whole, 0, 1, "nq:train") == whole


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"11 questions of 'nq:train' are asked for, and it has 10"):
        sample(questions("nq", 10), 11, 0, "nq:train")


def test_without_weights_every_question_is_there_once() -> None:
    sets = [questions("nq", 30), questions("hotpotqa", 50)]
    assert Counter(mix(sets, [], 0)) == Counter([*sets[0], *sets[1]])


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [0.1, 0.9], [1.0, 0.001]])
def test_an_epoch_has_the_shares_asked_for_and_every_question(weights: list[float]) -> None:
    sets = [questions("nq", 30), questions("hotpotqa", 50)]
    epoch = mix(sets, weights, 0)
    counts = Counter(question.kind for question in epoch)
    share = weights[0] / sum(weights)
    assert counts["nq"] == pytest.approx(share * len(epoch), abs=1)
    times = Counter(epoch)
    for own in sets:
        # Spread as evenly as can be: no question twice more often than another of its set.
        assert {times[question] for question in own} <= {(low := min(times[q] for q in own)), low + 1} and low >= 1
    assert min(max(times[question] for question in own) for own in sets) == 1


def test_what_is_repeated_in_part_is_drawn_by_the_seed() -> None:
    sets = [questions("nq", 30), questions("hotpotqa", 50)]
    assert mix(sets, [1, 1], 0) == mix(sets, [1, 1], 0) != mix(sets, [1, 1], 1)


def test_the_first_questions_of_several_sets_are_spread_over_them() -> None:
    turns = interleave([questions("nq", 5), questions("popqa", 2), questions("musique", 3)])
    assert [question.kind for question in turns[:6]] == ["nq", "popqa", "musique"] * 2
    assert len(turns) == 10 and [q.id for q in turns if q.kind == "nq"] == [q.id for q in questions("nq", 5)]
