"""Settings of ``recipes/simulate_cluster.py``: what is assumed where nothing was measured. No run reads them."""

import math
from dataclasses import dataclass, field, fields
from enum import Enum


class GpuModel(Enum):
    """A GPU whose data sheet is known."""

    a100 = "a100"
    """A100 SXM, 80 GB."""
    h100 = "h100"
    """H100 SXM, 80 GB."""


@dataclass(kw_only=True)
class SimulationConfig:
    """``simulation``: a cluster that is played, and what is assumed of it."""

    calibrate_on: str = ""
    """A run directory. Its lengths, searches and, for the same machines, its speeds take the place of assumptions."""
    calibration_steps: int = 0
    """The first so many of its steps are calibrated on, the others are what the prediction is held against; 0 for
    half."""
    num_steps: int = 12
    """Steps that are played; the first half is left out of the means."""
    seed: int = 0
    nodes: list[int] = field(default_factory=list)
    """Numbers of nodes to play besides: engines grow with the nodes, the batch stays. Such as [1, 8, 64]."""
    grow_batch: bool = False
    """With ``nodes``: prompts a step grow with the nodes too."""
    roles_apart: bool = False
    """On CPU: play engines and ranks on machines of their own, each like the measured one. Else they share it."""
    gpu: GpuModel = GpuModel.a100
    training_efficiency: float = 0.35
    """Share of the peak FLOP/s that training and scoring reach, what is computed again counted; careful for A100."""
    prefill_efficiency: float = 0.5
    """Share of the peak FLOP/s that an engine reaches on prompts."""
    bandwidth_efficiency: float = 0.7
    """Share of the memory's bandwidth that an engine reaches while it decodes. With the next one fitted to Qwen's speed
    benchmark of vLLM on one A100 (Qwen2.5 7B and 14B, bf16, one sequence)."""
    engine_step_overhead_s: float = 0.002
    """What an engine's step takes besides the GPU's work: scheduling, sampling, launches."""
    allreduce_s: float = 20e-6
    """One all-reduce of a small message between the GPUs of an engine; two a layer."""
    network_bytes_per_s: float = 20e9
    """Between the GPUs of different nodes, for each of them: refits and the sums of gradients."""
    turns_per_episode: float = 3.0
    """Mean generations of an episode, of at most ``rollout.max_turns``."""
    tokens_per_turn: float = 120.0
    """Mean tokens that the policy writes in a turn."""
    spread_of_tokens: float = 0.6
    """Standard deviation of the logarithm of the tokens of a turn, and of those of a completion of the simulator."""
    prompt_tokens: float = 120.0
    document_tokens: float = 260.0
    """Tokens of documents that one search brings into an episode."""
    simulator_prompt_tokens: float = 300.0
    """Tokens of a simulator's prompt that are not in its prefix cache."""
    simulator_completion_tokens: float = 260.0
    """Tokens that the simulator writes for one request."""
    search_latency_s: float = 0.5
    """Mean latency of a search that no engine of the run answers."""

    def __post_init__(self) -> None:
        for name in ("training_efficiency", "prefill_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"simulation.{name}={getattr(self, name)} is a share of what the data sheet promises and must lie "
                    "in (0, 1]"
                )
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise ValueError(f"simulation.{each.name}={value} must be 0 or positive")
        if self.turns_per_episode < 1 or self.tokens_per_turn < 1:
            raise ValueError(
                f"simulation.turns_per_episode={self.turns_per_episode} and simulation.tokens_per_turn="
                f"{self.tokens_per_turn} must be at least 1: every episode generates once"
            )
        if not self.network_bytes_per_s:
            raise ValueError("simulation.network_bytes_per_s=0 would never bring the weights over; give bytes a second")
        if self.num_steps < 2 or self.calibration_steps < 0:
            raise ValueError(
                f"simulation.num_steps={self.num_steps} must be at least 2 and simulation.calibration_steps="
                f"{self.calibration_steps} not negative"
            )
        if any(count < 1 for count in self.nodes):
            raise ValueError(f"simulation.nodes={self.nodes} are numbers of nodes: each must be at least 1")
