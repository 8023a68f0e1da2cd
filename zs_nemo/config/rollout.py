"""Settings of generation, of the episode and of the curriculum."""

import math
from dataclasses import dataclass, field
from enum import Enum

from zs_nemo.config.policy import check_engines


class RefitTransport(Enum):
    """The way of the policy's weights into its engines after an update."""

    shared_memory = "shared_memory"
    """One file, in memory on one machine and in the run directory on several."""
    cuda_ipc = "cuda_ipc"
    """Handles to the memory of the training rank on the same GPU: the engines are put on the GPUs of the ranks."""
    nccl = "nccl"
    """A broadcast from the first training rank, to engines on other GPUs than its own; without GPUs by gloo."""


@dataclass(kw_only=True)
class GenerationConfig:
    """``generation``: the vLLM engines that sample from the policy."""

    num_engines: int = 1
    tensor_model_parallel_size: int = 1
    dtype: str = "auto"
    """``auto`` follows ``policy.precision``; or bfloat16, float32."""
    kv_cache_gib: float = 0.5
    """Memory for keys and values of each tensor-parallel rank of an engine on CPU, in GiB."""
    gpu_memory_utilization: float = 0.4
    """Share of a GPU that one engine may take, weights included; not used on CPU."""
    enforce_eager: bool = False
    """Start at once on a GPU, without compiled kernels and CUDA graphs, and generate more slowly; a CPU always does."""
    sleep_while_training: bool = False
    """Give the GPU's memory up while the ranks train, weights to the host's memory, and take it up again for the next
    episodes. For engines that share GPUs with ranks, and steps that do not overlap (``rollout.max_staleness=0``)."""
    max_num_seqs: int = 64
    """Requests that one engine runs at once."""
    refit_transport: RefitTransport = RefitTransport.shared_memory
    refit_bucket_mib: int = 256
    """Weights that ``refit_transport=nccl`` or ``cuda_ipc`` sends at a time, in MiB."""
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_engines("generation", self)
        if self.refit_bucket_mib < 1:
            raise ValueError(f"generation.refit_bucket_mib={self.refit_bucket_mib} must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"generation.temperature={self.temperature} must be positive: training needs samples that differ. "
                "Greedy decoding is chosen by evaluation.temperatures"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generation.top_p={self.top_p} must lie in (0, 1]")


@dataclass(kw_only=True)
class RolloutConfig:
    """``rollout``: the shape of a step and the limits of an episode."""

    num_prompts_per_step: int = 8
    num_generations_per_prompt: int = 4
    """Samples of one prompt: the group that GRPO compares; REINFORCE++ and PPO also work with 1."""
    max_turns: int = 4
    """Generations of the policy in one episode. A search is only run when a turn is left to read its documents."""
    max_turn_tokens: int = 96
    """New tokens of the policy in one turn."""
    max_document_tokens: int = 160
    """Tokens of one <information> block, tags included; documents are shortened to fit, the closing tag stays."""
    max_sequence_tokens: int = 768
    """Tokens of a whole trajectory, the prompt included."""
    max_concurrency: int = 256
    """Trajectories under way at once; with ``max_staleness`` also at most as many as so many steps have."""
    max_staleness: int = 0
    """Versions by which the weights that sample a step's tokens may be older than those that the step trains. 0 to
    collect and train in turn; with more, as many later steps are collected while one trains, and
    ``algorithm.importance`` corrects for the difference."""
    search_deadline_s: float = 60.0
    """Time for one search call with all its retries. A simulator in engines of the run has as long as it needs: what
    waits there waits for its turn, and ``faults.hang_timeout_s`` finds one that hangs."""
    trajectory_deadline_s: float = 1200.0
    """Time for one trajectory from its first request on. It is then given up, counted and not trained on, so that one
    stuck request holds up no step; 0 for none. Far more than the slowest healthy one takes, or long ones are lost. An
    engine that has answered nothing for half as long is taken for one that hangs (``faults.hang_timeout_s``)."""
    max_deadline_share: float = 0.5
    """Share of a step's trajectories that may pass ``trajectory_deadline_s``; above it the step stops with an error."""
    search_max_failure_share: float = 0.1
    """Share of a step's search calls that may fail; above it the step stops with an error."""
    search_max_empty_share: float = 0.5
    """Share of a step's search calls for which a simulator may write nothing, however often it is asked; above it the
    step stops with an error. A simulator that works does so too where a policy that has just begun asks nonsense."""
    callback: str = ""
    """Import path of your own rollout callback, as ``package.module.ClassName``; empty for the search group's own."""

    def __post_init__(self) -> None:
        for name in (
            "num_prompts_per_step",
            "num_generations_per_prompt",
            "max_turns",
            "max_turn_tokens",
            "max_document_tokens",
            "max_sequence_tokens",
            "max_concurrency",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name}={getattr(self, name)} must be at least 1")
        if self.max_staleness < 0:
            raise ValueError(
                f"rollout.max_staleness={self.max_staleness} must be 0 (collect and train in turn) or positive"
            )
        if self.max_turn_tokens >= self.max_sequence_tokens:
            raise ValueError(
                f"rollout.max_turn_tokens={self.max_turn_tokens} must be smaller than "
                f"rollout.max_sequence_tokens={self.max_sequence_tokens}, which also holds the prompt"
            )
        if not 0 < self.search_deadline_s < math.inf:
            raise ValueError(
                f"rollout.search_deadline_s={self.search_deadline_s:g} must be positive, such as 60: every search "
                "would be out of time at once"
            )
        if self.trajectory_deadline_s and self.trajectory_deadline_s <= self.search_deadline_s:
            raise ValueError(
                f"rollout.trajectory_deadline_s={self.trajectory_deadline_s:g} must be 0 (none) or more than "
                f"rollout.search_deadline_s={self.search_deadline_s:g}, or one slow search uses it up; raise it"
            )
        if not 0 <= self.max_deadline_share <= 1:
            raise ValueError(f"rollout.max_deadline_share={self.max_deadline_share} must lie in [0, 1]")
        for name in ("search_max_failure_share", "search_max_empty_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rollout.{name}={getattr(self, name)} must lie in [0, 1]")


class CurriculumName(Enum):
    """P(noisy) as a function of the step, or of how well the policy does."""

    published = "published"
    """p_i = p_s + (b^(i/m) - 1)/(b - 1) * (p_e - p_s), arXiv 2505.04588, equation 1."""
    linear = "linear"
    """A straight line from p_s to p_e, the published one with b = 1."""
    constant = "constant"
    """The same at every step: ``constant_noise``."""
    reverse = "reverse"
    """The published one's levels from the last to the first."""
    stepwise = "stepwise"
    """Levels that hold from given shares of the run on: ``stepwise``."""
    adaptive = "adaptive"
    """Up while the policy's mean reward is above a target, down while it is below: ``adaptive``."""


class CoinScope(Enum):
    """Which searches of a step share one toss of the noise coin."""

    query = "query"
    """None: every search tosses its own, as published."""
    trajectory = "trajectory"
    """All of a trajectory: it meets useful documents alone, or noisy ones alone."""
    group = "group"
    """Those of the samples of a prompt in the same turn, so that luck stays out of their comparison. A group that meets
    noise is then won by who guesses instead of searching."""


@dataclass(kw_only=True)
class StepwiseConfig:
    """``curriculum.stepwise``: for ``curriculum.name=stepwise``."""

    fractions: list[float] = field(default_factory=lambda: [0.0, 0.5])
    """Shares of the run, i/m, from which the levels hold; the first is 0."""
    levels: list[float] = field(default_factory=lambda: [0.0, 0.5])
    """P(noisy) from each fraction on."""

    def __post_init__(self) -> None:
        name = "curriculum.stepwise"
        if len(self.fractions) != len(self.levels) or not self.levels:
            raise ValueError(
                f"{name}.fractions={self.fractions} and {name}.levels={self.levels} must be of the same length, at "
                "least 1: give every fraction its level"
            )
        if self.fractions[0] != 0:
            raise ValueError(
                f"{name}.fractions={self.fractions} must begin with 0, or the first steps have no level; put a 0 in "
                "front and its level into the levels"
            )
        ascending = all(low < high for low, high in zip(self.fractions, self.fractions[1:], strict=False))
        if not (ascending and self.fractions[-1] < 1):
            raise ValueError(
                f"{name}.fractions={self.fractions} must ascend and stay below 1: they are shares of the run, so for "
                "step i of m write i/m"
            )
        for level in self.levels:
            if not 0 <= level <= 1:
                raise ValueError(f"{name}.levels={self.levels} are probabilities: each must lie in [0, 1], not {level}")


@dataclass(kw_only=True)
class AdaptiveConfig:
    """``curriculum.adaptive``: for ``curriculum.name=adaptive``.

    After every step p' = clip(p + step_size * tanh(sensitivity * (R - target_reward)), start_noise, end_noise), where R
    is the smoothed mean reward; it begins at ``start_noise``. AdaRFT moves the difficulty of its problems by this rule
    (arXiv 2504.05520).
    """

    target_reward: float = 0.5
    """Mean reward of a step at which the noise stays. At 0.5 a reward that is 0 or 1 differs most between samples."""
    step_size: float = 0.05
    """Largest change of the noise in one step."""
    sensitivity: float = 2.0
    """How fast the change nears ``step_size`` as the reward leaves the target."""
    smoothing: float = 0.5
    """Weight of the past in R, in [0, 1); 0 takes the last step alone."""

    def __post_init__(self) -> None:
        name = "curriculum.adaptive"
        if not math.isfinite(self.target_reward):
            raise ValueError(f"{name}.target_reward={self.target_reward} must be a number, such as 0.5")
        if not 0 < self.step_size <= 1:
            raise ValueError(
                f"{name}.step_size={self.step_size} must lie in (0, 1]: it is a change of a probability; "
                "curriculum.name=constant keeps the noise where it is"
            )
        if not 0 < self.sensitivity < math.inf:
            raise ValueError(
                f"{name}.sensitivity={self.sensitivity} must be positive: noise that falls when the policy does well "
                "would never come back"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"{name}.smoothing={self.smoothing} must lie in [0, 1): at 1 no reward would count; take 0.9 for the "
                "mean of some ten steps"
            )


@dataclass(kw_only=True)
class CurriculumConfig:
    """``curriculum``: P(noisy) over steps (``zs_nemo/curriculum.py``); the published one unless another is named."""

    name: CurriculumName = CurriculumName.published
    start_noise: float = 0.0
    """p_s; with ``name=adaptive`` where it begins, and the least."""
    end_noise: float = 0.5
    """p_e; with ``name=adaptive`` the most."""
    base: float = 4.0
    """b; larger values keep the noise low for longer. 1 means linear, the limit of the formula."""
    constant_noise: float | None = None
    """P(noisy) with ``name=constant``; 0 is no noise at all. Null takes the mean of the published curriculum's steps:
    as much noise in all, spread evenly."""
    stepwise: StepwiseConfig = field(default_factory=StepwiseConfig)
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    coin: CoinScope = CoinScope.query

    def __post_init__(self) -> None:
        for name in ("start_noise", "end_noise", "constant_noise"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"curriculum.{name}={value} is a probability and must lie in [0, 1]")
        if not 0 < self.base < math.inf:
            raise ValueError(f"curriculum.base={self.base} must be positive and finite (the paper uses 4)")
        if self.name is CurriculumName.adaptive and self.start_noise >= self.end_noise:
            raise ValueError(
                f"curriculum.start_noise={self.start_noise} must be below curriculum.end_noise={self.end_noise} with "
                "curriculum.name=adaptive, which moves between the two; raise end_noise, or take "
                "curriculum.name=constant"
            )
