"""Truncated importance weights: the engine that samples is not quite the policy that is trained."""

from torch import Tensor

from zs_nemo.config.algorithm import ImportanceLevel
from zs_nemo.types.batch import TrainBatch


def truncated_importance_weights(
    logprobs: Tensor, batch: TrainBatch, *, level: ImportanceLevel, cap: float
) -> tuple[Tensor, Tensor]:
    """Return float32 [N]: min(p_policy / p_generation, cap) over policy tokens, and 1.0 where the cap was reached.

    ``logprobs`` [N] are the policy's at the start of the step. ``token`` takes each token's ratio, which has little
    variance and some bias; ``sequence`` the product over the trajectory's policy tokens, without bias below the cap.
    Truncated from above alone (Ionides 2008, "Truncated importance sampling"): a token that the policy hardly writes
    any more counts little, and none counts more than ``cap`` times. Constants: no gradient flows through them.
    """
    difference = (logprobs - batch.generation_logprobs[batch.loss_mask]).detach().double()
    if level is ImportanceLevel.sequence:
        owners = batch.sequence_ids[batch.loss_mask]
        sums_B = difference.new_zeros(batch.num_sequences).index_add_(0, owners, difference)
        difference = sums_B[owners]
    weights = difference.exp()
    return weights.clamp(max=cap).float(), (weights > cap).float()
