"""REINFORCE++: no critic; advantages compare with the whole step instead of with the group alone."""

import torch
from torch import Tensor

from zs_nemo.algorithms.gae import discounted_sums
from zs_nemo.algorithms.grpo import groups_of, trajectory_rewards
from zs_nemo.algorithms.whitening import whiten
from zs_nemo.types.batch import TrainBatch


def reinforce_pp_advantages(
    batch: TrainBatch, token_rewards: Tensor, *, gamma: float, group_baseline: bool, whitened: bool = True
) -> Tensor:
    """Return float32 [T]: the rewards that follow each policy token, whitened over the whole step (arXiv 2501.03262).

    Without ``whitened`` and ``group_baseline`` they are plain REINFORCE's.

    With ``group_baseline`` the mean reward of the group is taken off first ("REINFORCE++-baseline" there), so that a
    token is not praised for an easy question. A group of one keeps its KL penalty alone, if there is one; like all
    tokens, its own then lose the step's mean to whitening. ``token_rewards`` [T] may carry a KL
    penalty; the group's mean is that of the rewards without it.
    """
    following = discounted_sums(batch, token_rewards, gamma)
    if group_baseline:
        rewards_B, means_B = trajectory_rewards(batch), torch.zeros(batch.num_sequences, dtype=torch.float64)
        for members in groups_of(batch):
            means_B[members] = rewards_B[members].mean()
        # With gamma < 1 the reward at the end has shrunk on its way to an earlier token; so has the baseline.
        following = following - discounted_sums(batch, _on_last_tokens(batch, means_B), gamma)
    return whiten(following, batch.loss_mask) if whitened else following.float()


def _on_last_tokens(batch: TrainBatch, values_B: Tensor) -> Tensor:
    """Return [T]: the value of each sequence on its last policy token, where its reward stands."""
    masked = torch.nonzero(batch.loss_mask).flatten()
    owners = batch.sequence_ids[masked]
    is_last = torch.ones_like(owners, dtype=torch.bool)
    is_last[:-1] = owners[:-1] != owners[1:]
    result = torch.zeros(batch.token_ids.numel(), dtype=torch.float64)
    result[masked[is_last]] = values_B[owners[is_last]]
    return result
