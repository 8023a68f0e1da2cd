"""Trajectories and scripted episodes as a training batch. Nothing is tokenised here that an engine has sampled."""

from collections.abc import Sequence

import torch

from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.types.batch import TrainBatch
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.trajectory import Role, TrajectoryGroup


def pack(groups: Sequence[TrajectoryGroup]) -> TrainBatch | None:
    """Return the step's batch, or None when there is nothing to learn from.

    A trajectory's reward stands on its last policy token. Trajectories without a policy token are left out.
    """
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    rewards: list[float] = []
    lengths: list[int] = []
    group_ids: list[int] = []
    for group_id, group in enumerate(groups):
        for trajectory in group.trajectories:
            is_policy = [role is Role.policy for role in trajectory.roles]
            if not any(is_policy):
                continue
            start = len(ids)
            ids += trajectory.token_ids
            mask += is_policy
            logprobs += trajectory.generation_logprobs
            rewards += [0.0] * len(is_policy)
            rewards[start + max(place for place, trained in enumerate(is_policy) if trained)] = trajectory.reward
            lengths.append(len(is_policy))
            group_ids.append(group_id)
    if not lengths:
        return None
    return TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor(lengths),
        group_ids=torch.tensor(group_ids),
        loss_mask=torch.tensor(mask),
        rewards=torch.tensor(rewards, dtype=torch.float32),
        generation_logprobs=torch.tensor(logprobs, dtype=torch.float32),
    )


def pack_scripted(episodes: Sequence[Sequence[tuple[str, Role]]], tokenizer: Tokenizer, form: PromptForm) -> TrainBatch:
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
            is_prompt = role is Role.prompt
            segment = form.encode(text, tokenizer) if is_prompt else tokenizer.encode(text, add_special_tokens=False)
            ids += segment
            mask += [role is Role.policy] * len(segment)
        lengths.append(len(ids) - start)
    return TrainBatch(
        token_ids=torch.tensor(ids),
        lengths=torch.tensor(lengths),
        loss_mask=torch.tensor(mask),
        generation_logprobs=torch.zeros(len(ids)),
    )
