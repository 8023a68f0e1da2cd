import pytest

from zs_nemo.config.faults import FaultConfig
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
