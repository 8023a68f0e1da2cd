"""Rewards of whole trajectories."""

from pathlib import Path

import pytest

from zs_nemo.config.reward import RewardConfig
from zs_nemo.rollout.rewards import RewardFailed, build_reward, retrieval_diversity
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchResult
from zs_nemo.types.trajectory import Trajectory, Turn


def trajectory(answer: str | None, queries: list[str] = (), unanswered: str | None = None) -> Trajectory:
    """Return a trajectory that searched for ``queries`` and answered; ``unanswered`` is a search that failed."""
    result = SearchResult(documents=(), source="test", noisy=False)
    turns = [
        Turn(start=0, end=0, text="", query=query, result=found, sampling_seed=0, weight_version=0)
        for query, found in [*((query, result) for query in queries), (unanswered, None)]
    ]
    return Trajectory(
        key=SampleKey(run_seed=0, step=0, prompt=0, member=0),
        question=Question(id="q", text="?", answers=("Paris", "City of Light"), kind="k", split="train"),
        token_ids=[],
        roles=[],
        generation_logprobs=[],
        turns=turns,
        answer=answer,
    )


def reward_of(**settings) -> float:
    """Return the reward of an answer that is half right."""
    return build_reward(RewardConfig(**settings).weights())(trajectory("the light of Paris", ["river b", "river c"]))


def shouting(trajectory: Trajectory) -> float:
    """Reward capital letters: a user's own term."""
    return float((trajectory.answer or "").isupper())


def unsure(trajectory: Trajectory) -> float:
    """Return no number."""
    return float("nan")


def forgetful(trajectory: Trajectory) -> float:  # type: ignore[return]  # that is the mistake
    """Have no return."""


def boundless(trajectory: Trajectory) -> float:
    """Return what no float can hold."""
    return 10**400


def careless(trajectory: Trajectory) -> float:
    """Read what is not there."""
    return {}["title"]


def test_the_default_is_f1_alone_and_a_missing_answer_earns_nothing():
    reward = build_reward(RewardConfig().weights())
    assert reward(trajectory("paris")) == 1.0
    assert reward(trajectory("Paris France")) == pytest.approx(2 / 3)
    assert reward(trajectory(None)) == 0.0


def test_terms_add_up_with_their_weights():
    assert reward_of(f1=0, exact_match=1) == 0.0
    assert reward_of(f1=0.0, retrieval_diversity=0.3) == pytest.approx(0.3 * (1 - 1 / 3))
    assert reward_of(retrieval_diversity=0.3) == pytest.approx(reward_of() + 0.2)


def test_queries_that_repeat_one_another_are_not_diverse():
    assert retrieval_diversity(trajectory(None, ["capital of France"] * 2)) == 0.0
    assert retrieval_diversity(trajectory(None, ["capital France", "rivers Spain"])) == 1.0
    assert retrieval_diversity(trajectory(None, ["one", "two", "one"])) == pytest.approx(2 / 3)
    assert retrieval_diversity(trajectory(None, ["capital France"])) == 0.0
    assert retrieval_diversity(trajectory(None, ["capital France"], unanswered="rivers Spain")) == 0.0


def test_a_term_of_the_user_is_named_by_its_import_path():
    reward = build_reward(RewardConfig(f1=0, function=f"{__name__}.shouting", function_weight=2.0).weights())
    assert reward(trajectory("PARIS")) == 2.0
    assert reward(trajectory("Paris")) == 0.0


@pytest.mark.parametrize("name", ["nowhere", "no.such.module.term", f"{__name__}.missing"])
def test_a_term_that_cannot_be_imported_is_named_with_its_setting(name):
    with pytest.raises(ValueError, match=r"reward\.function=.*package\.module\.function"):
        build_reward(RewardConfig(function=name).weights())


def test_a_term_that_is_no_function_is_refused_before_anything_is_graded() -> None:
    with pytest.raises(ValueError, match=r"^reward\.function='.*\.__name__' is no function but of type str; name one"):
        build_reward(RewardConfig(function=f"{__name__}.__name__").weights())


@pytest.mark.parametrize(
    ("code", "told"), [("def term(:", "SyntaxError: invalid syntax"), ("{}['title']", "KeyError: 'title'")]
)
def test_a_module_that_fails_when_it_is_imported_is_refused_by_the_terms_name(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reward.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^reward\.function='own_reward\.term' cannot .*\({told}.*; mend own_reward$"
    ):
        build_reward(RewardConfig(function="own_reward.term").weights())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("unsure", "returned nan .*finite number"),
        ("forgetful", "returned None .*finite number"),
        ("boundless", "returned 10+ .*finite number"),
        ("careless", "raised KeyError: 'title' .*mend the term"),
    ],
)
def test_a_term_that_raises_or_returns_no_number_is_named_with_the_question(name: str, told: str) -> None:
    reward = build_reward(RewardConfig(function=f"{__name__}.{name}").weights())
    with pytest.raises(RewardFailed, match=rf"{name}' {told}") as failed:
        reward(trajectory("x"))
    assert "for question 'q', trajectory SampleKey(" in str(failed.value)
