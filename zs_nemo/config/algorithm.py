"""Settings of the reinforcement-learning algorithms."""

from dataclasses import dataclass, field
from enum import Enum


class KlPlace(Enum):
    """Where the KL term to the reference enters."""

    off = "off"
    loss = "loss"
    """Added to the loss, with a gradient of its own."""
    reward = "reward"
    """Taken off the reward of every token, without a gradient."""


class KlEstimator(Enum):
    """Estimators of KL(policy || reference) from samples of the policy (Schulman 2020, approximating KL)."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class LossAggregation(Enum):
    """What a loss is averaged over; ``algorithms.aggregation`` says how."""

    token = "token"
    sequence = "sequence"
    fixed = "fixed"


class ImportanceLevel(Enum):
    """What the importance weight between generation and training is a ratio of."""

    off = "off"
    token = "token"
    sequence = "sequence"


class ZeroVariance(Enum):
    """What becomes of groups whose rewards are all equal."""

    keep = "keep"
    """Train on them: their advantage is 0, only the KL and entropy terms see them."""
    drop = "drop"
    """Leave them out of the step's updates, which are scaled down by their share."""
    resample = "resample"
    """Collect other questions in their place, in a bounded number of rounds; what is missing then is left out."""


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
        if self.where is KlPlace.loss and self.estimator is KlEstimator.k1:
            raise ValueError(
                "algorithm.kl.estimator=k1 has a gradient of mean zero and would not hold the policy back with "
                "algorithm.kl.where=loss; set the estimator to k2 or k3, or where=reward"
            )
        if self.where is KlPlace.reward and self.coef == 0:
            raise ValueError(
                "algorithm.kl.where=reward with algorithm.kl.coef=0 computes a reference for nothing; "
                "set coef to a positive number (the paper uses 0.001) or where=off"
            )


@dataclass(kw_only=True)
class ImportanceConfig:
    """``algorithm.importance``: correction for tokens that other probabilities sampled than those that are trained."""

    level: ImportanceLevel = ImportanceLevel.off
    cap: float = 2.0
    """Largest weight."""

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"algorithm.importance.cap={self.cap} must be at least 1: weights are about 1")


@dataclass(kw_only=True)
class AlgorithmConfig:
    """``algorithm``: what all algorithms have in common, with the published settings of ZeroSearch as defaults."""

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    loss_aggregation: LossAggregation = LossAggregation.token
    loss_tokens_per_sequence: int = 512
    """The constant divisor per sequence of ``loss_aggregation=fixed``."""
    kl: KlConfig = field(default_factory=KlConfig)
    entropy_coef: float = 0.0
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)

    def __post_init__(self) -> None:
        for name in ("clip_ratio_low", "clip_ratio_high"):
            if getattr(self, name) <= 0:
                raise ValueError(f"algorithm.{name}={getattr(self, name)} must be positive (the paper uses 0.2)")
        if self.clip_ratio_low >= 1:
            raise ValueError(
                f"algorithm.clip_ratio_low={self.clip_ratio_low} must be below 1: ratios are never negative"
            )
        if self.loss_tokens_per_sequence < 1:
            raise ValueError(
                f"algorithm.loss_tokens_per_sequence={self.loss_tokens_per_sequence} must be at least 1; "
                "the longest response in tokens is a good choice"
            )
        if self.entropy_coef < 0:
            raise ValueError(f"algorithm.entropy_coef={self.entropy_coef} must be 0 (off) or positive")


@dataclass(kw_only=True)
class GrpoConfig(AlgorithmConfig):
    """``algorithm``: group relative policy optimization (arXiv 2402.03300)."""

    normalize_std: bool = True
    """Divide a group's advantages by the standard deviation of its rewards; False is Dr. GRPO (arXiv 2503.20783)."""
    zero_variance: ZeroVariance = ZeroVariance.drop
    max_resampling_rounds: int = 2
    """Further collections of one step with ``zero_variance=resample``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl.where is KlPlace.reward:
            raise ValueError(
                "algorithm.kl.where=reward takes the KL off each token's reward, and GRPO compares whole trajectories; "
                "set it to loss (as the paper does) or off"
            )
        if self.max_resampling_rounds < 1:
            raise ValueError(
                f"algorithm.max_resampling_rounds={self.max_resampling_rounds} must be at least 1; "
                "to collect once only, set algorithm.zero_variance=drop"
            )


@dataclass(kw_only=True)
class ReinforcePpConfig(AlgorithmConfig):
    """``algorithm``: REINFORCE++ (arXiv 2501.03262)."""

    gamma: float = 1.0
    group_baseline: bool = False
    """Take the mean reward of the group off each reward before whitening; then samples of one prompt are needed."""
    whiten_advantages: bool = True
    """False, with ``group_baseline`` false too, is plain REINFORCE, which ZeroSearch publishes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("gamma", self.gamma)


@dataclass(kw_only=True)
class PpoConfig(AlgorithmConfig):
    """``algorithm``: proximal policy optimization with a critic (arXiv 1707.06347)."""

    kl: KlConfig = field(default_factory=lambda: KlConfig(where=KlPlace.reward, estimator=KlEstimator.k1))
    gamma: float = 1.0
    gae_lambda: float = 1.0
    whiten_advantages: bool = True
    value_clip_range: float = 0.2
    """How far a value may move from where the step began before it gains nothing by moving on; 0 for no limit."""
    critic_warmup_steps: int = 0
    """Steps in which the critic alone is updated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("gamma", self.gamma)
        _check_share("gae_lambda", self.gae_lambda)
        for name in ("value_clip_range", "critic_warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"algorithm.{name}={getattr(self, name)} must not be negative; 0 switches it off")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"algorithm.{name}={value} must lie between 0 and 1 (the paper uses 1)")
