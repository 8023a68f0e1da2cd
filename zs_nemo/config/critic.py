"""Settings of PPO's critic."""

from dataclasses import dataclass, field

from zs_nemo.config.policy import OptimConfig


@dataclass(kw_only=True)
class CriticConfig:
    """``critic``: the policy's architecture with one number per token in place of the vocabulary.

    It starts from the policy's weights after the warm start, with a head of zeros.
    """

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    global_batch_size: int = 0
    """Trajectories per optimizer update of the critic; 0 for as many as ``policy.global_batch_size``. With fewer it
    makes several updates for one of the policy's: its head has to learn from nothing."""
    num_epochs: int = 1
    """Passes of the critic over a step's trajectories, each an update for every ``global_batch_size`` of them. The
    clipping of values is relative to the start of the step, so that later passes go on from the same place."""
    gradient_clip_val: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    num_ranks: int = 0
    """0 puts the critic on the policy's ranks, cut as the policy is; more gives it that many ranks of its own."""
    tensor_model_parallel_size: int = 1
    """Of the critic's own ranks."""
    pipeline_model_parallel_size: int = 1
    """Of the critic's own ranks."""
    context_parallel_size: int = 1
    """Of the critic's own ranks."""

    def __post_init__(self) -> None:
        if self.global_batch_size < 0:
            raise ValueError(
                f"critic.global_batch_size={self.global_batch_size} must be positive, or 0 for the policy's"
            )
        if self.num_epochs < 1:
            raise ValueError(f"critic.num_epochs={self.num_epochs} must be at least 1")
        if self.gradient_clip_val < 0:
            raise ValueError(f"critic.gradient_clip_val={self.gradient_clip_val} must be 0 (off) or positive")
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"critic.{name}={getattr(self, name)} must be at least 1")
        model_ranks = self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size
        if self.num_ranks == 0 and model_ranks > 1:
            raise ValueError(
                "critic.num_ranks=0 puts the critic on the policy's ranks, where it is cut as the policy is; "
                "leave critic.tensor_model_parallel_size, critic.pipeline_model_parallel_size and "
                "critic.context_parallel_size at 1, or give the critic ranks of its own with critic.num_ranks"
            )
        if self.num_ranks < 0 or self.num_ranks % model_ranks:
            raise ValueError(
                f"critic.num_ranks={self.num_ranks} must be 0 or a multiple of critic.tensor_model_parallel_size * "
                f"critic.pipeline_model_parallel_size * critic.context_parallel_size = {model_ranks}"
            )
