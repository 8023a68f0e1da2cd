"""Rewards per token, for the algorithms that look at more than a trajectory's total."""

from torch import Tensor

from zs_nemo.algorithms.kl import kl_estimate
from zs_nemo.config.algorithm import KlConfig, KlPlace
from zs_nemo.types.batch import TrainBatch


def token_rewards(batch: TrainBatch, kl: KlConfig) -> Tensor:
    """Return float32 [T]: the trajectory's reward on its last policy token, less ``coef * KL`` on every policy token.

    The penalty is a number, not a part of the loss: no gradient flows through it. It is there only with
    ``algorithm.kl.where=reward``, and needs the policy's logprobs from the start of the step, and the reference's.
    """
    assert batch.rewards is not None, "a batch without rewards was not sampled"
    if kl.where is not KlPlace.reward:
        return batch.rewards
    assert batch.policy_logprobs is not None and batch.reference_logprobs is not None
    # Off the mask both logprobs are 0, and so is every estimate.
    return batch.rewards - kl.coef * kl_estimate(batch.policy_logprobs, batch.reference_logprobs, kl.estimator)
