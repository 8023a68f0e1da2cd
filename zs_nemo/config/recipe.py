"""The whole configuration of each training recipe, with the checks that need more than one group."""

from dataclasses import dataclass, field
from typing import ClassVar

from zs_nemo.config.algorithm import AlgorithmConfig, GrpoConfig, ImportanceLevel, PpoConfig, ReinforcePpConfig
from zs_nemo.config.cost import CostConfig
from zs_nemo.config.critic import CriticConfig
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.experiment import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    ExpManagerConfig,
    TrainerConfig,
    WarmStartConfig,
)
from zs_nemo.config.faults import FaultConfig
from zs_nemo.config.guards import GuardConfig
from zs_nemo.config.policy import PolicyConfig, Precision
from zs_nemo.config.reward import RewardConfig
from zs_nemo.config.rollout import CurriculumConfig, CurriculumName, GenerationConfig, RolloutConfig
from zs_nemo.config.search import NoSearchConfig, SearchConfig, SimulatedSearchConfig
from zs_nemo.config.simulation import SimulationConfig

_SHORTEST_ENGINE_HANG_S = 300.0
"""Of a short deadline for trajectories: loading large weights may take an engine as long."""


@dataclass(kw_only=True)
class RecipeConfig:
    """What all recipes have in common."""

    has_ranks: ClassVar[bool] = True
    """Whether the recipe trains a model on megatron-core ranks."""
    has_engines: ClassVar[bool] = True
    """Whether the recipe samples from models."""
    can_do_without_search: ClassVar[bool] = False
    """Whether ``search=none`` makes sense."""

    seed: int = 1
    api: ApiKind = ApiKind.completions
    """How the policy gets its prompt: ``completions`` as text that it continues, ``chat`` as the user's message in its
    chat template, in which it is to be asked later, too. A server's chat (``endpoint.addresses``) gets the whole
    episode so far as one message, and limits in tokens are then counted as four characters each, as with any endpoint.
    """
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        if isinstance(self.search, NoSearchConfig) and not self.can_do_without_search:
            raise ValueError(
                "search=none answers no search, and this recipe needs an engine; choose search=simulated, bm25, "
                "retriever or web"
            )
        if self.rollout.max_staleness:
            self._check_overlap()
        if self.generation.top_p < 1 and self.algorithm.importance.level is not ImportanceLevel.off:
            raise ValueError(
                f"generation.top_p={self.generation.top_p} must be 1 with algorithm.importance.level="
                f"{self.algorithm.importance.level.name}: the weights compare with the probabilities that tokens were "
                "sampled with, and those of a truncated distribution are larger than the trained ones; set top_p to 1, "
                "or the level to off"
            )
        if self._trains_policy:
            check_simulator_is_told(self.search, self.data, "train")
        if self.has_ranks:
            _check_ranks_hold_models(self.trainer, self.policy)
            _check_tensor_parallel_within_node(self.trainer, self.policy)
        if self.guards.max_ratio and self._trains_policy:
            _check_ratios_can_move(self.guards.max_ratio, self.rollout, self.policy.global_batch_size)
        if self.curriculum.name is CurriculumName.adaptive:
            _check_target_can_be_passed(self.curriculum.adaptive.target_reward, self.reward)
        if isinstance(self.search, SimulatedSearchConfig) and self.search.endpoints:
            deadline_s, pool_s = self.rollout.search_deadline_s, self.search.pool.deadline_s
            if pool_s >= deadline_s:
                raise ValueError(
                    f"search.pool.deadline_s={pool_s:g} must be less than rollout.search_deadline_s={deadline_s:g}, or "
                    "a search ends without the endpoints' last errors; lower it, or raise rollout.search_deadline_s"
                )

    @property
    def _trains_policy(self) -> bool:
        return self.has_ranks and self.has_engines

    def _check_overlap(self) -> None:
        if not self._trains_policy:
            raise ValueError(
                f"rollout.max_staleness={self.rollout.max_staleness} overlaps collecting with training, and this "
                "recipe does not do both; set it to 0"
            )
        if self.algorithm.importance.level is ImportanceLevel.off:
            raise ValueError(
                f"rollout.max_staleness={self.rollout.max_staleness} trains on tokens that older weights have sampled, "
                "which algorithm.importance.level=off does not correct for; set algorithm.importance.level=token (or "
                "sequence), or rollout.max_staleness=0"
            )
        for setting in self.engines_that_sleep:
            raise ValueError(
                f"{setting}=true with rollout.max_staleness={self.rollout.max_staleness}, but engines work while the "
                "ranks train then; set one of the two otherwise"
            )

    @property
    def engines_that_sleep(self) -> list[str]:
        """The settings by which engines sleep while the ranks train."""
        groups = {"generation": self.generation, "search": self.search}
        return [
            f"{name}.sleep_while_training"
            for name, group in groups.items()
            if getattr(group, "sleep_while_training", False)
        ]

    @property
    def engine_hang_timeout_s(self) -> float:
        """Silence after which an engine hangs, in seconds; 0 for never.

        Half of a trajectory's deadline at most: by then no healthy engine is silent, and what the engine was asked has
        the other half for another one to start and to answer.
        """
        hang_s, deadline_s = self.faults.hang_timeout_s, self.rollout.trajectory_deadline_s
        return min(hang_s, max(deadline_s / 2, _SHORTEST_ENGINE_HANG_S)) if deadline_s else hang_s


@dataclass(kw_only=True)
class GrpoRecipeConfig(RecipeConfig):
    """Everything that a GRPO run depends on."""

    algorithm: GrpoConfig = field(default_factory=GrpoConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_group_size(self.rollout, needed_by="GRPO compares the samples of a prompt")


@dataclass(kw_only=True)
class ReinforcePpRecipeConfig(RecipeConfig):
    """Everything that a REINFORCE++ run depends on."""

    algorithm: ReinforcePpConfig = field(default_factory=ReinforcePpConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm.group_baseline:
            _check_group_size(self.rollout, needed_by="algorithm.group_baseline=true compares the samples of a prompt")


@dataclass(kw_only=True)
class PpoRecipeConfig(RecipeConfig):
    """Everything that a PPO run depends on."""

    algorithm: PpoConfig = field(default_factory=PpoConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_critic(self.critic, self.policy)
        if 0 < self.trainer.max_steps <= self.algorithm.critic_warmup_steps:
            raise ValueError(
                f"algorithm.critic_warmup_steps={self.algorithm.critic_warmup_steps} must be below trainer.max_steps="
                f"{self.trainer.max_steps}: the policy would never be updated; lower the one or raise the other"
            )

    @property
    def critic_batch_size(self) -> int:
        """Trajectories per optimizer update of the critic."""
        return self.critic.global_batch_size or self.policy.global_batch_size


def check_simulator_is_told(search: SearchConfig, data: DataConfig, role: str) -> None:
    """Refuse a simulator that would be shown no answer to any of the questions that it is asked for."""
    others = data.beyond_facts(role)
    if others and isinstance(search, SimulatedSearchConfig) and search.knows_facts_alone:
        raise ValueError(
            f"search.template={search.template!r} with search.off_target={search.off_target.name} shows the simulator "
            f"an answer for the facts world's questions alone, and data.{role} names {', '.join(others)}, for which it "
            "would write nothing that helps; set search.template=open and search.off_target=auto"
        )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must lie in [0, 2**32), what all generators of random numbers take")


def _check_ratios_can_move(max_ratio: float, rollout: RolloutConfig, global_batch_size: int) -> None:
    episodes = rollout.num_prompts_per_step * rollout.num_generations_per_prompt
    if global_batch_size >= episodes:
        raise ValueError(
            f"guards.max_ratio={max_ratio:g} looks at how far a step's later updates have moved from its start, but "
            f"policy.global_batch_size={global_batch_size} makes one update of a step's {episodes} episodes, whose "
            f"ratios are all 1; set policy.global_batch_size below {episodes}, or guards.max_ratio=0"
        )


def _check_critic(critic: CriticConfig, policy: PolicyConfig) -> None:
    """Refuse what the critic has from its own settings and from the policy's and cannot have together."""
    if policy.stochastic_rounding and critic.pipeline_model_parallel_size > 1:
        raise ValueError(
            f"critic.pipeline_model_parallel_size={critic.pipeline_model_parallel_size} must be 1 with "
            "policy.stochastic_rounding=true, by which the critic's weights are rounded as well; set one of the two "
            "otherwise"
        )
    if policy.precision is Precision.fp32 and critic.optim.optimizer_cpu_offload:
        raise ValueError(
            "critic.optim.optimizer_cpu_offload=true needs policy.precision=bf16, which is the critic's too: with fp32 "
            "the master weights are the weights that compute; set one of the two otherwise"
        )


def _check_ranks_hold_models(trainer: TrainerConfig, policy: PolicyConfig) -> None:
    ranks, model_ranks = trainer.num_nodes * trainer.devices, policy.model_parallel_size
    if ranks % model_ranks:
        raise ValueError(
            f"trainer.num_nodes * trainer.devices = {ranks} must be a multiple of "
            "policy.tensor_model_parallel_size * policy.pipeline_model_parallel_size * "
            f"policy.context_parallel_size = {model_ranks}; change trainer.devices or the parallel sizes"
        )


def _check_tensor_parallel_within_node(trainer: TrainerConfig, policy: PolicyConfig) -> None:
    size, devices = policy.tensor_model_parallel_size, trainer.devices
    if trainer.num_nodes > 1 and devices % size and not policy.tensor_parallel_across_nodes:
        raise ValueError(
            f"policy.tensor_model_parallel_size={size} does not divide trainer.devices={devices}, so that with "
            f"trainer.num_nodes={trainer.num_nodes} tensor parallelism would span nodes, whose network is much slower; "
            "lower it and cut by policy.pipeline_model_parallel_size instead, raise trainer.devices, or say so with "
            "policy.tensor_parallel_across_nodes=true"
        )


def _check_target_can_be_passed(target: float, reward: RewardConfig) -> None:
    if reward.function:
        # Nothing is known of the range of a user's own term.
        return
    largest = sum(max(weight, 0.0) for weight in reward.weights().values())
    if target >= largest:
        raise ValueError(
            f"curriculum.adaptive.target_reward={target} must be below {largest:g}, the largest reward that the "
            "weights in reward allow, or the noise could never rise; lower it"
        )


def _check_group_size(rollout: RolloutConfig, *, needed_by: str) -> None:
    size = rollout.num_generations_per_prompt
    if size < 2:
        raise ValueError(
            f"rollout.num_generations_per_prompt={size}: {needed_by}, and one sample alone has nothing to be compared "
            "with; set it to 2 or more (the paper uses 5)"
        )
