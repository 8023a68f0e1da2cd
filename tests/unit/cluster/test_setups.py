from pathlib import Path

import pytest

from zs_nemo.cluster.setups import Layout, rank_builder
from zs_nemo.config.recipe import GrpoRecipeConfig


@pytest.mark.parametrize(("hang_timeout_s", "waits_s"), [(0.0, 3600.0), (1800.0, 3600.0), (7200.0, 7200.0)])
def test_ranks_wait_for_a_slow_file_system_longer_than_the_watchdog_does(hang_timeout_s: float, waits_s: float) -> None:
    cfg = GrpoRecipeConfig()
    cfg.faults.hang_timeout_s = hang_timeout_s
    layout = Layout(
        num_ranks=1,
        num_critic_ranks=0,
        policy_folder=Path("policy"),
        policy_engines=(),
        simulator_engines=(),
        use_gpu=False,
        has_reference=False,
        has_critic=False,
    )
    assert rank_builder(cfg, layout, 0, ("127.0.0.1", 1)).keywords["collective_timeout_s"] == waits_s
