"""Between tokens that are computed once and the sequences that use them, in both directions.

As plain indexing the gradient would be added up in the precision of the activations, a prompt's from hundreds of uses.
"""

from typing import Any

import torch
from torch import Tensor


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, expansion: Tensor, first_uses: Tensor, later_uses: Tensor) -> Tensor:
        ctx.save_for_backward(expansion, first_uses, later_uses)
        return x.index_select(0, expansion)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        expansion, first_uses, later_uses = ctx.saved_tensors
        grad = grads[0].index_select(0, first_uses).float()
        grad.index_add_(0, expansion[later_uses], grads[0].index_select(0, later_uses).float())
        return grad.to(grads[0].dtype), None, None, None


class _TakeFirstUses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first_uses: Tensor) -> Tensor:
        ctx.save_for_backward(first_uses)
        ctx.num_uses = x.shape[0]
        return x.index_select(0, first_uses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (first_uses,) = ctx.saved_tensors
        grad = grads[0].new_zeros(ctx.num_uses, *grads[0].shape[1:])
        return grad.index_copy_(0, first_uses, grads[0]), None


def expand(x: Tensor, expansion: Tensor, first_uses: Tensor, later_uses: Tensor) -> Tensor:
    """Return [E, ...], the sequences whole, of ``x`` [T, ...]; see ``PackedTokens`` for the indices."""
    return _Expand.apply(x, expansion, first_uses, later_uses)


def take_first_uses(x: Tensor, first_uses: Tensor) -> Tensor:
    """Return [T, ...], each token where it first stands, of ``x`` [E, ...]: all of its uses are the same."""
    return _TakeFirstUses.apply(x, first_uses)
