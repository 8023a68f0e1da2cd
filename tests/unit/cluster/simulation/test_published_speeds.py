"""The model of a GPU beside what others have measured."""

from pathlib import Path

from zs_nemo.cluster.simulation.gpu_model import GpuClusterBuilder
from zs_nemo.cluster.simulation.published_speeds import published_speeds
from zs_nemo.cluster.simulation.quantities import Sources
from zs_nemo.config.recipe import RecipeConfig
from zs_nemo.weights.families import read_architecture

SHAPES = Path(__file__).parents[3] / "data" / "models"


def test_engines_are_as_fast_as_was_measured_on_an_a100() -> None:
    models = {name: read_architecture(SHAPES / name) for name in ("Qwen2.5-7B", "Qwen2.5-14B", "Qwen3-14B")}
    # Of layout and lengths a lone engine's speed does not depend.
    builder = GpuClusterBuilder(RecipeConfig(), None, None, Sources())  # type: ignore[arg-type]
    *lone, per_token, whole = published_speeds(builder, models, spread=0.6)
    errors = [abs(each.simulated / each.published - 1) for each in (*lone, per_token, whole)]
    assert [each.is_fitted for each in lone] == [True, True, False, False] and max(errors[:4]) < 0.02
    assert errors[4] < 0.1 and errors[5] < 0.2
