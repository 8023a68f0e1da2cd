"""Trajectories and scripted episodes as a training batch. Nothing is tokenised here that an engine has sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.trajectory import Role, TrajectoryGroup


def pack(
    groups: Sequence[TrajectoryGroup], advantages: Sequence[Tensor], *, drop_zero_variance: bool
) -> TrainBatch | None:
    """Return the step's batch, or None when there is nothing to learn from.

    ``advantages`` holds one tensor [G] per group; a trajectory's advantage stands on each of its policy tokens.
    Trajectories without a policy token are left out. With ``drop_zero_variance``, groups whose advantages are all 0 are
    too: their gradient is that of the KL term alone (cf. DAPO, arXiv 2503.14476). They still count: the advantages of
    the others are scaled by the share of trajectories that is kept, so that a step from which there is little to learn
    makes a small gradient, as it would if nothing were left out.
    """
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    values: list[float] = []
    lengths: list[int] = []
    num_left_out = 0
    for group, group_advantages in zip(groups, advantages, strict=True):
        if drop_zero_variance and not bool(group_advantages.any()):
            num_left_out += len(group.trajectories)
            continue
        for trajectory, advantage in zip(group.trajectories, group_advantages.tolist(), strict=True):
            is_policy = [role is Role.policy for role in trajectory.roles]
            if not any(is_policy):
                continue
            ids += trajectory.token_ids
            mask += is_policy
            logprobs += trajectory.generation_logprobs
            values += [advantage if trained else 0.0 for trained in is_policy]
            lengths.append(len(trajectory.token_ids))
    if not lengths:
        return None
    return TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor(lengths),
        loss_mask=torch.tensor(mask),
        advantages=torch.tensor(values, dtype=torch.float32) * (len(lengths) / (len(lengths) + num_left_out)),
        generation_logprobs=torch.tensor(logprobs, dtype=torch.float32),
    )


def pack_scripted(episodes: Sequence[Sequence[tuple[str, Role]]], tokenizer: Tokenizer) -> TrainBatch:
    """Return a batch of episodes that were written, not sampled: lists of (text, role), the prompt first.

    Every segment is tokenised by itself, as it is when an episode runs: the boundary between the policy's text and
    what it is shown is always a token boundary.
    """
    ids: list[int] = []
    mask: list[bool] = []
    lengths: list[int] = []
    for episode in episodes:
        start = len(ids)
        for text, role in episode:
            segment = tokenizer.encode(text, add_special_tokens=False)
            ids += segment
            mask += [role is Role.policy] * len(segment)
        lengths.append(len(ids) - start)
    zeros = torch.zeros(len(ids))
    return TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor(lengths),
        loss_mask=torch.tensor(mask),
        advantages=zeros,
        generation_logprobs=zeros,
    )
