"""The critic's loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """Mean over policy tokens of max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2.

    The larger of the two, so that a value that has moved further than ``clip_range`` from where the step began gains
    nothing by moving on (the reference implementation of arXiv 1707.06347). 0 switches the clipping off.
    """

    clip_range: float

    def normalizer(self, batch: TrainBatch) -> float:
        """Return the number of tokens under the mask."""
        return float(batch.num_loss_tokens)

    def __call__(self, outputs: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss [] and metrics, as ``types.loss.TokenLoss`` says, from values [1, N]."""
        assert batch.returns is not None and batch.values is not None
        (values,) = outputs
        returns, old = batch.returns[batch.loss_mask], batch.values[batch.loss_mask]
        loss = (values - returns).square()
        is_clipped = torch.zeros_like(values)
        if self.clip_range > 0:
            near = old + (values - old).clamp(-self.clip_range, self.clip_range)
            clipped = (near - returns).square()
            is_clipped = (clipped > loss).float()
            loss = torch.maximum(loss, clipped)
        return 0.5 * loss.sum(), {"value_clip_share": is_clipped.sum().detach(), "value": values.sum().detach()}


def explained_variance(batch: TrainBatch) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over policy tokens: 1 is perfect, 0 no better than a constant.

    Values are those of the start of the step, before the critic has seen these returns. Without variance in the
    returns there is nothing to explain, and the result is 0.
    """
    assert batch.returns is not None and batch.values is not None
    returns, values = batch.returns[batch.loss_mask].double(), batch.values[batch.loss_mask].double()
    variance = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 0 else 0.0
