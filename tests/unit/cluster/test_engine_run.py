from pathlib import Path

import pytest

from zs_nemo.cluster import engine_run
from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.reward import RewardConfig
from zs_nemo.config.rollout import RolloutConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("reward.function", {"reward": RewardConfig(function="no.such.thing")}),
        ("rollout.callback", {"rollout": RolloutConfig(callback="no.such.thing")}),
    ],
)
def test_code_of_the_users_own_that_is_not_there_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, settings: dict
) -> None:
    for name in ("load_facts_world", "System"):
        monkeypatch.setattr(engine_run, name, None)
    cfg = GrpoRecipeConfig(search=SimulatedSearchConfig(), **settings)
    told = f"{setting}='no.such.thing' cannot be imported"
    with RunDir(tmp_path, cfg) as run_dir, Progress("run") as progress, pytest.raises(ValueError, match=told):
        EngineRun(cfg, run_dir, progress)
