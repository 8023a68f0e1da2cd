"""A cluster as its roles' speeds: what a step is played on."""

from collections.abc import Mapping
from dataclasses import dataclass

from zs_nemo.cluster.simulation.batching_engine import EngineSpeed


@dataclass(frozen=True, kw_only=True)
class EngineRole:
    """Engines of one role, all alike."""

    count: int
    speed: EngineSpeed
    gpus_per_engine: int


@dataclass(frozen=True, kw_only=True)
class ClusterModel:
    """What takes time in a step. Stages are in the order in which the recipe has them."""

    generation: EngineRole
    simulator: EngineRole | None
    max_concurrency: int
    max_staleness: int
    refit_s: float
    stage_s: Mapping[str, float]
    """Seconds of each stage that follows the rollout: the training ranks' and the driver's."""
    num_ranks: int
    num_critic_ranks: int
    is_apart: bool
    """Whether engines and ranks have hardware of their own; if not, neither works while the other does."""
    num_gpus: int
    """0 on CPU."""
