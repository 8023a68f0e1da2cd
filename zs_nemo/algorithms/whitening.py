"""Whitening over the policy tokens of a whole step."""

import torch
from torch import Tensor

_SMALLEST_VARIANCE = 1e-8
"""Added to the variance, as the field does: values that hardly differ, such as the KL terms of a step without any
reward, are not blown up to a whole update's size."""


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Return float32 [T]: ``values`` [T] with mean 0 and standard deviation 1 (the sample's) over ``mask``, 0 off it.

    Values that are all equal, one alone among them, hold nothing to compare and become exactly 0.
    """
    chosen = values[mask].double()
    result = torch.zeros(values.shape, dtype=torch.float32)
    if chosen.numel() > 1 and chosen.max() > chosen.min():
        result[mask] = ((chosen - chosen.mean()) / (chosen.var(correction=1) + _SMALLEST_VARIANCE).sqrt()).float()
    return result
