"""Settings of the recipe that measures how good a simulator is."""

from dataclasses import dataclass, field

from zs_nemo.config.cost import CostConfig
from zs_nemo.config.experiment import ClusterConfig, DataConfig, TrainerConfig
from zs_nemo.config.search import SearchConfig, SimulatedSearchConfig


@dataclass(kw_only=True)
class EvaluateSimulatorConfig:
    """Everything that ``recipes/evaluate_simulator.py`` depends on. Groups that a training run has mean the same."""

    seed: int = 1
    interactions: str = "runs/interactions_test"
    """Run directory of a ``recipes/collect_interactions.py`` over held-out questions: the queries, and what the real
    engine returned."""
    num_queries: int = 0
    """Different queries that are asked, useful and noisy each; 0 for all whose real documents hold the answer."""
    max_concurrency: int = 96
    """Searches under way at once."""
    max_failed_share: float = 0.02
    """Share of a simulator's searches that may fail; they are told and left out of its measures. With more of them the
    recipe stops."""
    search: SearchConfig = field(default_factory=SimulatedSearchConfig)
    """The simulator."""
    baseline: SearchConfig | None = None
    """Another one to hold it against in the same run: ``+search@baseline=simulated``."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """``accelerator`` is what the simulators' engines run on."""
    data: DataConfig = field(default_factory=DataConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    output: str = "runs/simulator_quality"
    """Folder for ``report.json``, ``report.html``, what every simulator wrote, and logs."""

    def __post_init__(self) -> None:
        for name in ("search", "baseline"):
            settings = getattr(self, name)
            if settings is not None and not isinstance(settings, SimulatedSearchConfig):
                raise ValueError(
                    f"{name} is a real engine, and this recipe measures simulators; choose search=simulated"
                )
        if self.num_queries < 0:
            raise ValueError(f"num_queries={self.num_queries} must be 0 (all) or positive")
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency={self.max_concurrency} must be at least 1")
        if not 0 <= self.max_failed_share < 1:
            raise ValueError(f"max_failed_share={self.max_failed_share} must lie in [0, 1)")
