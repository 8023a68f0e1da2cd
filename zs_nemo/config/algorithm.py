"""Settings of the reinforcement-learning algorithms."""

from dataclasses import dataclass, field
from enum import Enum


class KlPlace(Enum):
    """Where the KL term to the reference enters."""

    off = "off"
    loss = "loss"


class KlEstimator(Enum):
    """Estimators of KL(policy || reference) from samples of the policy (Schulman 2020, approximating KL)."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class LossAggregation(Enum):
    """What a loss is averaged over."""

    token = "token"
    sequence = "sequence"


@dataclass(kw_only=True)
class KlConfig:
    """``algorithm.kl``"""

    where: KlPlace = KlPlace.loss
    estimator: KlEstimator = KlEstimator.k3
    coef: float = 0.001

    def __post_init__(self) -> None:
        if self.coef < 0:
            raise ValueError(
                f"algorithm.kl.coef={self.coef} must not be negative: that would push the policy off the reference"
            )


@dataclass(kw_only=True)
class GrpoConfig:
    """``algorithm``: group relative policy optimization (arXiv 2402.03300)."""

    normalize_std: bool = True
    """Divide a group's advantages by the standard deviation of its rewards; False is Dr. GRPO (arXiv 2503.20783)."""
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    loss_aggregation: LossAggregation = LossAggregation.token
    kl: KlConfig = field(default_factory=KlConfig)
    drop_zero_variance_groups: bool = True
    """Leave out groups whose rewards are all equal: their advantage is 0, only the KL term would see them."""

    def __post_init__(self) -> None:
        for name in ("clip_ratio_low", "clip_ratio_high"):
            if getattr(self, name) <= 0:
                raise ValueError(f"algorithm.{name}={getattr(self, name)} must be positive (the paper uses 0.2)")
