"""Context parallelism: the ranks of a group share the tokens of a packed row, for sequences too long for one of them.

Everything but attention works on a rank's own tokens. Attention asks with its own queries and gathers the keys and
values of all. Two pieces a rank, one from either end of the row, give every rank as many keys to attend to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from megatron.core import tensor_parallel
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce

from zs_nemo.training.microbatch import PackedTokens


@dataclass(frozen=True, kw_only=True)
class RowSlice:
    """The part of a packed row that one rank computes.

    Example, four tokens on two ranks: the first has the tokens 0 and 3, the second 1 and 2::

        pieces   (range(0, 1), range(3, 4))    (range(1, 2), range(2, 3))
        order    [0 2 3 1]                     [0 2 3 1]
    """

    pieces: tuple[range, range]
    """Of the row's positions."""
    order: Tensor
    """int64 [T]: where each token of the row stands when the ranks' tokens are laid end to end."""
    outputs: Tensor
    """int64 [n]: which of the N masked tokens this rank predicts."""
    num_outputs: int
    """N."""
    group: ProcessGroup

    def spans(self, seqlens: list[int]) -> list[tuple[range, range]]:
        """Return positions of queries of one sequence, and of the keys before and among them; of all own tokens."""
        ends = list(accumulate(seqlens))
        starts = [0, *ends[:-1]]
        return [
            (range(max(piece.start, start), min(piece.stop, end)), range(start, min(piece.stop, end)))
            for piece in self.pieces
            for start, end in zip(starts, ends, strict=True)
            if start < piece.stop and end > piece.start
        ]


def slice_row(packed: PackedTokens, group: ProcessGroup) -> tuple[PackedTokens, RowSlice]:
    """Return this rank's tokens of a row whose T is a multiple of twice the number of ranks.

    ``cu_seqlens`` and ``max_seqlen`` stay those of the whole row.
    """
    assert packed.expansion is None, "shared prefixes are not cut along the row"
    num_tokens, ranks, rank = packed.input_ids.numel(), group.size(), group.rank()
    assert num_tokens % (2 * ranks) == 0, "the row was not filled up"
    length = num_tokens // (2 * ranks)
    cut = [range(start, start + length) for start in range(0, num_tokens, length)]
    pieces = [(cut[place], cut[-1 - place]) for place in range(ranks)]
    device = packed.input_ids.device
    end_to_end = torch.tensor([position for pair in pieces for piece in pair for position in piece], device=device)
    mine = torch.tensor([position for piece in pieces[rank] for position in piece], device=device)
    place = torch.full((num_tokens,), -1, device=device)
    place[mine] = torch.arange(len(mine), device=device)
    predicted_at = place[packed.output_positions]
    outputs = torch.nonzero(predicted_at >= 0).flatten()
    local = replace(
        packed,
        input_ids=packed.input_ids[mine],
        position_ids=packed.position_ids[mine],
        output_positions=predicted_at[outputs],
        targets=packed.targets[outputs],
    )
    return local, RowSlice(
        pieces=pieces[rank],
        order=torch.argsort(end_to_end),
        outputs=outputs,
        num_outputs=packed.targets.numel(),
        group=group,
    )


def gather_row(x: Tensor, row: RowSlice) -> Tensor:
    """Return all tokens of the row from every rank's own ``x`` [T / ranks, ...]; gradients add up over the ranks."""
    return tensor_parallel.gather_from_sequence_parallel_region(x, group=row.group).index_select(0, row.order)


class _BringTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, row: RowSlice) -> Tensor:
        ctx.mine = row.outputs
        whole = outputs.new_zeros(outputs.shape[0], row.num_outputs)
        whole[:, row.outputs] = outputs
        # Every output comes from one rank and is 0 on all others: the sum is exact.
        all_reduce(whole, group=row.group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][:, ctx.mine], None


def gather_outputs(outputs: Tensor, row: RowSlice) -> Tensor:
    """Return float32 [C, N], the outputs of all ranks, from this rank's [C, n].

    Every rank then computes the same loss, and propagates it through the outputs that it computed itself: summed over
    the ranks the gradients of the weights are those of the loss.
    """
    return _BringTogether.apply(outputs, row)
