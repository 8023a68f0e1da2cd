"""GRPO: each sample against the other samples of its prompt."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.trajectory import SMALLEST_SPREAD


def group_relative_advantages(batch: TrainBatch, *, normalize_std: bool) -> Tensor:
    """Return float32 [T]: each trajectory's reward less its group's mean, on every one of its policy tokens.

    GRPO (arXiv 2402.03300) divides by the group's standard deviation, the sample's (n - 1). Dr. GRPO (arXiv 2503.20783)
    does not, since dividing weights easy and hard prompts up. A group without variance, and so a group of one, has
    nothing to compare and gets exactly 0, not a rounding error blown up by a tiny divisor; rewards that differ by less
    than ``SMALLEST_SPREAD`` are such a group.
    """
    rewards_B, advantages_B = trajectory_rewards(batch), torch.zeros(batch.num_sequences, dtype=torch.float64)
    for members in groups_of(batch):
        rewards_G = rewards_B[members]
        if float(rewards_G.max() - rewards_G.min()) < SMALLEST_SPREAD:
            continue
        centered_G = rewards_G - rewards_G.mean()
        advantages_B[members] = centered_G / rewards_G.std(correction=1) if normalize_std else centered_G
    return batch.on_loss_tokens(advantages_B)


def without_zero_variance(
    batch: TrainBatch, normalizer: Callable[[TrainBatch], float], *, global_batch_size: int
) -> TrainBatch | None:
    """Leave out groups in which all advantages are 0: only a KL term would see them (cf. DAPO, arXiv 2503.14476).

    They still count: the advantages of the others are scaled so that a step from which there is little to learn makes
    as small a gradient as it would if nothing were left out, in all its updates of up to ``global_batch_size``
    sequences together: by the share of the loss's ``normalizer`` that is kept, over the share of the updates. None if
    all are left out.
    """
    assert batch.advantages is not None
    kept = sorted(
        index
        for members in groups_of(batch)
        for index in members.tolist()
        if bool(batch.advantages[torch.isin(batch.sequence_ids, members)].any())
    )
    if not kept:
        return None
    part = batch.select(kept)
    assert part.advantages is not None
    num_updates, num_left = (math.ceil(each.num_sequences / global_batch_size) for each in (batch, part))
    scale = normalizer(part) / normalizer(batch) * (num_updates / num_left)
    return part.replace(advantages=part.advantages * scale)


def trajectory_rewards(batch: TrainBatch) -> Tensor:
    """Return float64 [B], the reward of each trajectory."""
    assert batch.rewards is not None, "a batch without rewards was not sampled"
    return batch.sequence_sums(batch.rewards)


def groups_of(batch: TrainBatch) -> list[Tensor]:
    """Return for each prompt the int64 numbers of its sequences."""
    assert batch.group_ids is not None, "a batch without groups was not sampled"
    return [torch.nonzero(batch.group_ids == group).flatten() for group in batch.group_ids.unique()]
