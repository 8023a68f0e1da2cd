import pytest

from zs_nemo.config.faults import FaultConfig
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.config.rollout import RolloutConfig


@pytest.mark.parametrize("name", ["max_engine_restarts", "max_group_restarts", "max_deaths_per_node", "hang_timeout_s"])
def test_a_negative_budget_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"faults\.{name}=-1 must be 0"):
        FaultConfig(**{name: -1})


def test_a_trajectory_has_more_time_than_one_of_its_searches() -> None:
    with pytest.raises(ValueError, match=r"rollout\.trajectory_deadline_s=60 must be 0 \(none\) or more than"):
        RolloutConfig(trajectory_deadline_s=60.0, search_deadline_s=60.0)
    assert RolloutConfig(trajectory_deadline_s=0.0).trajectory_deadline_s == 0
    with pytest.raises(ValueError, match=r"rollout\.max_deadline_share=2"):
        RolloutConfig(max_deadline_share=2.0)


@pytest.mark.parametrize(
    ("hang_s", "deadline_s", "limit_s"),
    [(1800, 1200, 600), (1800, 7200, 1800), (1800, 0, 1800), (0, 1200, 0), (20, 1200, 20), (1800, 100, 300)],
)
def test_an_engine_that_hangs_is_found_while_its_trajectories_have_time_for_another_one(
    hang_s: float, deadline_s: float, limit_s: float
) -> None:
    rollout = RolloutConfig(trajectory_deadline_s=deadline_s)
    assert RecipeConfig(faults=FaultConfig(hang_timeout_s=hang_s), rollout=rollout).engine_hang_timeout_s == limit_s
