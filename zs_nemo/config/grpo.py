"""The whole configuration of ``recipes/grpo.py``, with the checks that need more than one group."""

from dataclasses import dataclass, field

from zs_nemo.config.algorithm import GrpoConfig
from zs_nemo.config.experiment import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    ExpManagerConfig,
    TrainerConfig,
    WarmStartConfig,
)
from zs_nemo.config.policy import PolicyConfig
from zs_nemo.config.rollout import CurriculumConfig, GenerationConfig, RolloutConfig
from zs_nemo.config.search import SearchConfig


@dataclass(kw_only=True)
class GrpoRecipeConfig:
    """Everything that a GRPO run depends on."""

    seed: int = 1
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    algorithm: GrpoConfig = field(default_factory=GrpoConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        ranks = self.trainer.num_nodes * self.trainer.devices
        model_ranks = self.policy.tensor_model_parallel_size * self.policy.pipeline_model_parallel_size
        if ranks % model_ranks:
            raise ValueError(
                f"trainer.num_nodes * trainer.devices = {ranks} must be a multiple of "
                f"policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size = {model_ranks}; "
                "change trainer.devices or the parallel sizes"
            )
