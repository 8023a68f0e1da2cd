"""The clipped policy loss with a KL term to the reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zs_nemo.algorithms.aggregation import aggregation_normalizer, token_weights
from zs_nemo.algorithms.kl import kl_estimate
from zs_nemo.config.algorithm import GrpoConfig, KlEstimator, KlPlace, LossAggregation
from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A) + coef * KL, over policy tokens (arXiv 1707.06347, 2402.03300).

    r is the ratio of the probability now to the one at the start of the step. A batch without ``policy_logprobs`` is
    updated once, so r is 1 by definition and only its gradient matters.
    """

    clip_ratio_low: float
    clip_ratio_high: float
    aggregation: LossAggregation
    kl_where: KlPlace
    kl_estimator: KlEstimator
    kl_coef: float
    needs_entropy_grad: bool = False

    @classmethod
    def from_config(cls, algorithm: GrpoConfig) -> "PolicyLoss":
        """Build the loss that ``algorithm`` describes."""
        return cls(
            clip_ratio_low=algorithm.clip_ratio_low,
            clip_ratio_high=algorithm.clip_ratio_high,
            aggregation=algorithm.loss_aggregation,
            kl_where=algorithm.kl.where,
            kl_estimator=algorithm.kl.estimator,
            kl_coef=algorithm.kl.coef,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the batch must carry reference logprobs."""
        return self.kl_where is KlPlace.loss

    def normalizer(self, batch: TrainBatch) -> float:
        """Return what the sums of a global batch are divided by."""
        return aggregation_normalizer(batch, self.aggregation)

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss [] and metrics, as ``types.loss.TokenLoss`` says."""
        mask = batch.loss_mask
        weights = token_weights(batch, self.aggregation)
        old = logprobs.detach() if batch.policy_logprobs is None else batch.policy_logprobs[mask]
        advantages = batch.advantages[mask]
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        token_loss = -torch.minimum(ratio * advantages, clipped * advantages)
        now = logprobs.detach()
        mismatch = (old - batch.generation_logprobs[mask]).abs()
        metrics = {
            "policy_loss": token_loss.detach(),
            "ratio": ratio.detach(),
            "clip_share": (ratio * advantages > clipped * advantages).float().detach(),
            "generation_mismatch": mismatch,
            "entropy": entropy.detach(),
        }
        maxima = {"ratio_max": ratio.detach(), "generation_mismatch_max": mismatch}
        if self.kl_where is KlPlace.loss:
            assert batch.reference_logprobs is not None, "a KL term in the loss needs reference logprobs"
            reference = batch.reference_logprobs[mask]
            token_loss = token_loss + self.kl_coef * kl_estimate(logprobs, reference, self.kl_estimator)
            metrics["kl"] = kl_estimate(now, reference, KlEstimator.k3)
        sums = {name: (weights * values).sum() for name, values in metrics.items()}
        for name, values in maxima.items():
            sums[name] = values.max() if values.numel() else torch.tensor(0.0)
        return (weights * token_loss).sum(), sums
