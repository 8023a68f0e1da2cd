"""What a loss is averaged over: weights per token, and the one divisor of a global batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zs_nemo.config.algorithm import LossAggregation
from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """``token``: a mean over tokens, so that long answers weigh more. ``sequence``: a mean over the tokens of each
    sequence, then over sequences. ``fixed``: a sum over tokens divided by a constant per sequence (Dr. GRPO, arXiv
    2503.20783), so that neither length nor the other sequences change what a token counts.
    """

    over: LossAggregation
    tokens_per_sequence: int = 1
    """The constant of ``fixed``."""

    def token_weights(self, batch: TrainBatch) -> Tensor:
        """Return float32 [N], the weight of every token under the mask."""
        if self.over is not LossAggregation.sequence:
            return torch.ones(batch.num_loss_tokens, device=batch.lengths.device)
        return 1.0 / batch.sequence_sums(batch.loss_mask)[batch.sequence_ids[batch.loss_mask]].float()

    def normalizer(self, batch: TrainBatch) -> float:
        """Return the divisor: the masked tokens, the sequences that have any, or sequences times the constant."""
        if self.over is LossAggregation.token:
            return float(batch.num_loss_tokens)
        if self.over is LossAggregation.fixed:
            return float(batch.num_sequences * self.tokens_per_sequence)
        return float(batch.sequence_sums(batch.loss_mask).count_nonzero())
