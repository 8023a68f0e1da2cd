"""The noise curricula against values worked out by hand."""

import json
import math
from pathlib import Path

import pytest

from tests.unit.observability.runs import group, searching
from zs_nemo.cluster.checkpoints import CheckpointFolder
from zs_nemo.config.rollout import AdaptiveConfig, CurriculumConfig, CurriculumName, StepwiseConfig
from zs_nemo.curriculum import AdaptiveCurriculum, NoiseCurriculum, PublishedCurriculum
from zs_nemo.types.trajectory import TrajectoryGroup


def curriculum(name: str, max_steps: int = 10, **settings: object) -> NoiseCurriculum:
    cfg = CurriculumConfig(name=CurriculumName[name], **settings)  # type: ignore[arg-type]
    return NoiseCurriculum.from_config(cfg, max_steps=max_steps)


def levels(name: str, max_steps: int = 10, **settings: object) -> list[float]:
    built = curriculum(name, max_steps, **settings)
    return [built.noise_at(step) for step in range(max_steps)]


def earning(*rewards: float) -> list[TrajectoryGroup]:
    return [group(*(searching(reward=reward) for reward in rewards))]


def test_the_published_formula_at_its_ends_and_in_the_middle() -> None:
    published = PublishedCurriculum(start_noise=0.25, end_noise=0.5, base=4, max_steps=200)
    assert published.noise_at(0) == 0.25
    assert published.noise_at(100) == pytest.approx(0.25 + (2 - 1) / 3 * 0.25)
    assert published.noise_at(200) == pytest.approx(0.5)


def test_the_default_is_the_published_one_with_the_papers_numbers() -> None:
    built = NoiseCurriculum.from_config(CurriculumConfig(), max_steps=203)
    assert built == PublishedCurriculum(start_noise=0.0, end_noise=0.5, base=4.0, max_steps=203)
    assert built.state() == {}


def test_steps_after_the_last_keep_the_final_noise() -> None:
    assert PublishedCurriculum(start_noise=0.0, end_noise=0.5, base=4, max_steps=10).noise_at(99) == 0.5


def test_base_one_is_the_limit_of_bases_near_one() -> None:
    line = PublishedCurriculum(start_noise=0.0, end_noise=1.0, base=1, max_steps=10)
    nearly = PublishedCurriculum(start_noise=0.0, end_noise=1.0, base=1 + 1e-9, max_steps=10)
    assert line.noise_at(3) == pytest.approx(0.3)
    assert nearly.noise_at(3) == pytest.approx(0.3, rel=1e-6)


def test_a_run_of_no_steps_starts_at_the_start() -> None:
    assert PublishedCurriculum(start_noise=0.1, end_noise=0.5, base=4, max_steps=0).noise_at(0) == 0.1
    assert curriculum("stepwise", max_steps=0).noise_at(0) == 0.0
    assert curriculum("constant", max_steps=0, start_noise=0.1).noise_at(0) == 0.1


def test_the_linear_one_is_a_straight_line_whatever_the_base() -> None:
    assert levels("linear", 4, start_noise=0.1, end_noise=0.5, base=4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert curriculum("linear", 4, start_noise=0.1, end_noise=0.5).noise_at(7) == pytest.approx(0.5)


def test_a_constant_level_is_the_given_one_also_when_that_is_none_at_all() -> None:
    assert levels("constant", 3, constant_noise=0.2) == [0.2, 0.2, 0.2]
    assert levels("constant", 3, constant_noise=0.0) == [0.0, 0.0, 0.0]


def test_without_a_level_the_constant_one_spreads_the_published_noise_evenly() -> None:
    # base 4 over two steps: growth 0 at step 0 and (4^0.5 - 1) / 3 = 1/3 at step 1.
    assert levels("constant", 2, start_noise=0.0, end_noise=0.6) == pytest.approx([0.1, 0.1])
    assert sum(levels("constant", 22)) == pytest.approx(sum(levels("published", 22)))


def test_the_reverse_one_is_the_published_one_read_backwards() -> None:
    assert levels("reverse", 22) == levels("published", 22)[::-1]
    assert curriculum("reverse", 10, start_noise=0.1).noise_at(99) == 0.1


def test_a_staircase_changes_exactly_at_its_fractions() -> None:
    stairs = StepwiseConfig(fractions=[0.0, 0.3, 0.7], levels=[0.1, 0.0, 0.9])
    assert levels("stepwise", 10, stepwise=stairs) == [0.1] * 3 + [0.0] * 4 + [0.9] * 3
    assert curriculum("stepwise", 10, stepwise=stairs).noise_at(99) == 0.9


def test_the_adaptive_one_moves_by_its_rule() -> None:
    settings = AdaptiveConfig(target_reward=0.5, step_size=0.1, sensitivity=2.0, smoothing=0.5)
    adaptive = AdaptiveCurriculum(settings, start_noise=0.0, end_noise=0.5)
    assert adaptive.noise_at(0) == 0.0
    adaptive.observe(earning(1.0, 0.6))
    # The first step has no past: R = 0.8.
    first = 0.1 * math.tanh(2 * 0.3)
    assert adaptive.noise_at(1) == pytest.approx(first)
    adaptive.observe(earning(0.4, 0.2))
    # R = 0.5 * 0.8 + 0.5 * 0.3 = 0.55: still above the target, though this step alone was below it.
    second = first + 0.1 * math.tanh(2 * 0.05)
    assert adaptive.noise_at(2) == pytest.approx(second)
    adaptive.observe(earning(0.0))
    assert adaptive.noise_at(3) == pytest.approx(second + 0.1 * math.tanh(2 * (0.275 - 0.5)))


def test_the_adaptive_one_counts_trajectories_and_not_groups() -> None:
    adaptive = AdaptiveCurriculum(AdaptiveConfig(smoothing=0.0), start_noise=0.0, end_noise=0.5)
    adaptive.observe([*earning(0.0), *earning(1.0, 1.0, 1.0)])
    assert adaptive.state()["reward"] == 0.75


def test_the_adaptive_one_stays_at_the_target_and_without_a_trajectory() -> None:
    adaptive = AdaptiveCurriculum(AdaptiveConfig(), start_noise=0.1, end_noise=0.5)
    adaptive.observe([])
    assert adaptive.state() == {"noise": 0.1, "reward": None}
    adaptive.observe(earning(0.5))
    assert adaptive.noise_at(1) == 0.1


@pytest.mark.parametrize(("reward", "bound"), [(1.0, 0.4), (0.0, 0.1)])
def test_the_adaptive_one_never_leaves_its_bounds(reward: float, bound: float) -> None:
    adaptive = AdaptiveCurriculum(AdaptiveConfig(step_size=0.2), start_noise=0.1, end_noise=0.4)
    adaptive.observe(earning(1.0))
    seen = []
    for step in range(20):
        adaptive.observe(earning(reward))
        seen.append(adaptive.noise_at(step))
    assert min(seen) >= 0.1 and max(seen) <= 0.4
    assert seen[-1] == bound


def test_noise_that_hurts_settles_where_the_policy_earns_the_target() -> None:
    adaptive = AdaptiveCurriculum(AdaptiveConfig(target_reward=0.5), start_noise=0.0, end_noise=1.0)
    for step in range(200):
        adaptive.observe(earning(0.8 - adaptive.noise_at(step)))
    assert adaptive.noise_at(200) == pytest.approx(0.3, abs=1e-3)


def test_an_adaptive_run_that_goes_on_from_its_checkpoint_meets_the_same_noise(tmp_path: Path) -> None:
    rewards = [0.9, 0.7, 0.3, 0.6, 0.1, 0.8]
    whole = curriculum("adaptive", max_steps=6)
    expected = []
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for step, reward in enumerate(rewards):
        expected.append(whole.noise_at(step))
        whole.observe(earning(reward))
        if step == 2:
            checkpoints.begin(3)
            checkpoints.commit(3, {"curriculum": whole.state()})
    assert len(set(expected)) == 6

    resumed = curriculum("adaptive", max_steps=6)
    _, state = next(checkpoints.newest_first())
    resumed.restore(state["curriculum"])
    seen = []
    for step in range(3, 6):
        seen.append(resumed.noise_at(step))
        resumed.observe(earning(rewards[step]))
    assert seen == expected[3:]


def test_the_state_before_the_first_step_survives_json() -> None:
    adaptive, other = curriculum("adaptive"), curriculum("adaptive")
    other.observe(earning(1.0))
    other.restore(json.loads(json.dumps(adaptive.state())))
    assert other.state() == adaptive.state() == {"noise": 0.0, "reward": None}
