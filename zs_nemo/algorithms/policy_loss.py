"""The clipped policy loss with a KL term to the reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zs_nemo.algorithms.aggregation import Aggregation
from zs_nemo.algorithms.importance import truncated_importance_weights
from zs_nemo.algorithms.kl import kl_estimate
from zs_nemo.config.algorithm import AlgorithmConfig, ImportanceLevel, KlEstimator, KlPlace
from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A) + coef * KL - coef * entropy over policy tokens (arXiv 1707.06347).

    r is the ratio of the probability now to the one at the start of the step. A batch without ``policy_logprobs`` is
    updated once, so r is 1 by definition and only its gradient matters. GRPO, REINFORCE++ and PPO share this loss and
    differ in their advantages.
    """

    clip_ratio_low: float
    clip_ratio_high: float
    aggregation: Aggregation
    kl_where: KlPlace
    kl_estimator: KlEstimator
    kl_coef: float
    entropy_coef: float = 0.0
    importance_level: ImportanceLevel = ImportanceLevel.off
    importance_cap: float = 2.0

    @classmethod
    def from_config(cls, algorithm: AlgorithmConfig) -> "PolicyLoss":
        """Build the loss that ``algorithm`` describes."""
        return cls(
            clip_ratio_low=algorithm.clip_ratio_low,
            clip_ratio_high=algorithm.clip_ratio_high,
            aggregation=Aggregation(
                over=algorithm.loss_aggregation, tokens_per_sequence=algorithm.loss_tokens_per_sequence
            ),
            kl_where=algorithm.kl.where,
            kl_estimator=algorithm.kl.estimator,
            kl_coef=algorithm.kl.coef,
            entropy_coef=algorithm.entropy_coef,
            importance_level=algorithm.importance.level,
            importance_cap=algorithm.importance.cap,
        )

    def normalizer(self, batch: TrainBatch) -> float:
        """Return what the sums of a global batch are divided by."""
        return self.aggregation.normalizer(batch)

    def __call__(self, outputs: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss [] and metrics, as ``types.loss.TokenLoss`` says."""
        assert batch.advantages is not None, "a policy loss needs advantages"
        logprobs, entropy = outputs
        mask = batch.loss_mask
        now = logprobs.detach()
        old = now if batch.policy_logprobs is None else batch.policy_logprobs[mask]
        advantages = batch.advantages[mask]
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - self.clip_ratio_low, 1 + self.clip_ratio_high)
        token_loss = -torch.minimum(ratio * advantages, clipped * advantages)
        mismatch = (old - batch.generation_logprobs[mask]).abs()
        metrics = {
            "policy_loss": token_loss,
            "ratio": ratio,
            "clip_share": (ratio * advantages > clipped * advantages).float(),
            "generation_mismatch": mismatch,
            "generation_kl": kl_estimate(batch.generation_logprobs[mask], old, KlEstimator.k3),
            "entropy": entropy,
        }
        if self.importance_level is not ImportanceLevel.off:
            weights, is_capped = truncated_importance_weights(
                old, batch, level=self.importance_level, cap=self.importance_cap
            )
            token_loss = weights * token_loss
            metrics |= {"importance_weight": weights, "importance_capped_share": is_capped}
        if batch.reference_logprobs is not None:
            reference = batch.reference_logprobs[mask]
            metrics["kl"] = kl_estimate(now, reference, KlEstimator.k3)
            if self.kl_where is KlPlace.loss:
                token_loss = token_loss + self.kl_coef * kl_estimate(logprobs, reference, self.kl_estimator)
        assert self.kl_where is not KlPlace.loss or "kl" in metrics, "a KL term in the loss needs reference logprobs"
        if self.entropy_coef:
            token_loss = token_loss - self.entropy_coef * entropy
        sums = {name: values.detach().sum() for name, values in metrics.items()}
        for name, values in {"ratio_max": ratio, "generation_mismatch_max": mismatch}.items():
            sums[name] = values.detach().max() if values.numel() else torch.tensor(0.0)
        return (self.aggregation.token_weights(batch) * token_loss).sum(), sums
