"""What a loss is averaged over: weights per token, and the one divisor of a global batch."""

import torch
from torch import Tensor

from zs_nemo.config.algorithm import LossAggregation
from zs_nemo.types.batch import TrainBatch


def token_weights(batch: TrainBatch, aggregation: LossAggregation) -> Tensor:
    """Return float32 [N], the weight of every token under the mask.

    ``token``: 1, so that long answers weigh more; ``sequence``: 1 / (masked tokens of its sequence).
    """
    if aggregation is LossAggregation.token:
        return torch.ones(batch.num_loss_tokens)
    sequence_of_token = torch.repeat_interleave(torch.arange(batch.num_sequences), batch.lengths)
    counts = torch.zeros(batch.num_sequences).index_add_(0, sequence_of_token, batch.loss_mask.float())
    return 1.0 / counts[sequence_of_token[batch.loss_mask]]


def aggregation_normalizer(batch: TrainBatch, aggregation: LossAggregation) -> float:
    """Return the divisor: the batch's masked tokens, or its sequences that have any."""
    if aggregation is LossAggregation.token:
        return float(batch.num_loss_tokens)
    return float(token_weights(batch, aggregation).sum().round())
