"""What a simulator's engines by themselves hold, worked out by hand."""

from dataclasses import replace

import pytest

from zs_nemo.cluster import simulator_system
from zs_nemo.cluster.engine_pool import EngineUsage
from zs_nemo.cluster.simulator_system import simulator_roles
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.generation.engine_setup import EngineSetup

USAGE = EngineUsage(num_requests=8, prompt_tokens=70, completion_tokens=30, busy_s=6.0)
ENGINE = EngineSetup(model_path="folder", dtype="float32", threads=2)


@pytest.mark.parametrize(("num_cores", "num_gpus", "held"), [(64, 0, 4.0), (2, 0, 2.0), (64, 2, 2.0), (64, 1, 1.0)])
def test_engines_hold_their_gpus_or_the_cores_of_their_threads_and_no_more_than_there_are(
    num_cores: int, num_gpus: int, held: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = (ENGINE, replace(ENGINE, name="second"))
    monkeypatch.setattr(simulator_system, "derive_simulator", lambda cfg: (engines, num_gpus > 0))
    monkeypatch.setattr(simulator_system, "usable_cores", lambda: num_cores)
    monkeypatch.setattr(simulator_system, "local_gpus", lambda: (num_gpus, 80.0))
    unit = "gpu" if num_gpus else "core"
    assert simulator_roles(RecipeConfig(), USAGE, wall_s=10.0) == {
        "simulator": {
            f"held_{unit}_s": held * 10.0,
            f"busy_{unit}_s": held * 3.0,
            "requests": 8,
            "prompt_tokens": 70,
            "completion_tokens": 30,
        }
    }
