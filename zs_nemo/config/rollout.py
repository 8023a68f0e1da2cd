"""Settings of generation, of the episode and of the curriculum."""

from dataclasses import dataclass
from enum import Enum


class RefitTransport(Enum):
    """The way of the policy's weights into its engines after an update."""

    shared_memory = "shared_memory"
    """One file, in memory on one machine and in the run directory on several."""
    cuda_ipc = "cuda_ipc"
    """Handles to the memory of the training rank on the same GPU, for engines that all share GPUs with ranks."""
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
    """Memory for keys and values per engine on CPU, in GiB."""
    gpu_memory_utilization: float = 0.4
    """Share of a GPU that one engine may take, weights included; not used on CPU."""
    max_num_seqs: int = 64
    """Requests that one engine runs at once."""
    refit_transport: RefitTransport = RefitTransport.shared_memory
    refit_bucket_mib: int = 256
    """Weights that ``refit_transport=nccl`` or ``cuda_ipc`` sends at a time, in MiB."""
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.num_engines < 1:
            raise ValueError(f"generation.num_engines={self.num_engines} must be at least 1")
        if self.refit_bucket_mib < 1:
            raise ValueError(f"generation.refit_bucket_mib={self.refit_bucket_mib} must be at least 1")
        if self.temperature <= 0:
            raise ValueError(
                f"generation.temperature={self.temperature} must be positive: training needs samples that differ. "
                "Greedy decoding is chosen by evaluation.temperatures"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generation.top_p={self.top_p} must lie in (0, 1]")
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"generation.dtype={self.dtype!r} must be auto, bfloat16 or float32")


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
    """Trajectories under way at once."""
    search_deadline_s: float = 60.0
    """Time for one search call with all its retries."""
    search_max_failure_share: float = 0.1
    """Share of a step's search calls that may fail; above it the step stops with an error."""
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
        if self.max_turn_tokens >= self.max_sequence_tokens:
            raise ValueError(
                f"rollout.max_turn_tokens={self.max_turn_tokens} must be smaller than "
                f"rollout.max_sequence_tokens={self.max_sequence_tokens}, which also holds the prompt"
            )
        if not 0 <= self.search_max_failure_share <= 1:
            raise ValueError(f"rollout.search_max_failure_share={self.search_max_failure_share} must lie in [0, 1]")


@dataclass(kw_only=True)
class CurriculumConfig:
    """``curriculum``: P(noisy) over steps, p_i = p_s + (b^(i/m) - 1)/(b - 1) * (p_e - p_s).

    arXiv 2505.04588, equation 1.
    """

    start_noise: float = 0.0
    """p_s"""
    end_noise: float = 0.5
    """p_e"""
    base: float = 4.0
    """b; larger values keep the noise low for longer. 1 means linear, the limit of the formula."""
    shared_coins: bool = False
    """Toss one coin for all samples of a prompt, turn by turn, so that luck stays out of their comparison; false tosses
    one for every query, as published. Shared, a group that meets noise is won by who guesses instead of searching."""

    def __post_init__(self) -> None:
        for name in ("start_noise", "end_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"curriculum.{name}={getattr(self, name)} is a probability and must lie in [0, 1]")
        if self.base <= 0:
            raise ValueError(f"curriculum.base={self.base} must be positive (the paper uses 4)")
