"""Settings of the guards: what counts as going wrong in training, and what is done about it."""

from dataclasses import dataclass
from enum import Enum


class OnBadUpdate(Enum):
    """What is done about a gradient that is not finite or too large."""

    skip = "skip"
    """Leave the weights as they are and go on with the next batch."""
    rollback = "rollback"
    """Return to the last checkpoint and go on with other draws."""
    stop = "stop"
    """End the run with an error."""


class OnCollapse(Enum):
    """What is done when a step's metrics leave their limits; its update has been made by then."""

    warn = "warn"
    """Say so and go on."""
    rollback = "rollback"
    """Return to the last checkpoint and go on with other draws."""
    stop = "stop"
    """End the run with an error."""


@dataclass(kw_only=True)
class GuardConfig:
    """``guards``. Every limit that is 0 is off, but a gradient that is not finite is never applied."""

    on_bad_update: OnBadUpdate = OnBadUpdate.skip
    max_grad_norm: float = 0.0
    """Gradient norm, before clipping, above which an update is bad."""
    max_skipped_in_a_row: int = 3
    """So many bad updates one after another end the run: skipping does not help."""
    on_collapse: OnCollapse = OnCollapse.warn
    max_ratio: float = 0.0
    """Largest probability ratio of a token, now to the start of the step; it moves where a step has several updates."""
    min_entropy: float = 0.0
    """Mean entropy of the policy's tokens, in nats."""
    min_response_tokens: float = 0.0
    """Mean tokens that the policy writes in an episode."""
    min_searches_per_episode: float = 0.0
    """Mean searches that an episode makes: a policy that has come to guess makes hardly any, and then learns no more
    about searching."""
    max_generation_mismatch: float = 0.2
    """Mean difference of a token's logprob between the engine that sampled it and the policy that is trained. Rounding
    to bf16 makes it some 0.01; older weights (``rollout.max_staleness``) and ``generation.top_p`` add to it."""
    max_rollbacks: int = 3
    """So many returns to a checkpoint in one run; one more ends it."""

    def __post_init__(self) -> None:
        for name in (
            "max_grad_norm",
            "max_ratio",
            "min_entropy",
            "min_response_tokens",
            "min_searches_per_episode",
            "max_generation_mismatch",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"guards.{name}={getattr(self, name)} must be 0 (off) or positive")
        if 0 < self.max_ratio <= 1:
            raise ValueError(f"guards.max_ratio={self.max_ratio} must be 0 (off) or above 1: ratios begin at 1")
        for name in ("max_skipped_in_a_row", "max_rollbacks"):
            if getattr(self, name) < 1:
                raise ValueError(f"guards.{name}={getattr(self, name)} must be at least 1; choose stop for none")
