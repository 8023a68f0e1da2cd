"""Advantages from the rewards of a group of samples."""

import torch
from torch import Tensor


def group_relative_advantages(rewards_G: list[float], *, normalize_std: bool) -> Tensor:
    """Return float32 [G]: each reward less the group's mean, divided by the group's standard deviation if asked.

    GRPO (arXiv 2402.03300) divides; Dr. GRPO (arXiv 2503.20783) does not, since dividing weights easy and hard
    prompts up. The standard deviation is the sample's (n - 1). A group without variance, and so a group of one, has
    nothing to compare and gets exactly 0, not a rounding error blown up by a tiny divisor.
    """
    rewards = torch.tensor(rewards_G, dtype=torch.float64)
    if rewards.numel() < 2 or rewards.max() == rewards.min():
        return torch.zeros(rewards.numel(), dtype=torch.float32)
    centered = rewards - rewards.mean()
    if normalize_std:
        centered = centered / rewards.std(correction=1)
    return centered.float()
