"""Cuts a batch into packed micro-batches, balanced over the data-parallel ranks. Pure functions."""

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """The model's input for one micro-batch: sequences end to end, without padding."""

    input_ids: Tensor
    """int64 [T]: each sequence up to the token before its last masked one; nothing later can matter."""
    cu_seqlens: Tensor
    """int32 [B + 1]: where each sequence starts, and the end."""
    max_seqlen: int
    output_positions: Tensor
    """int64 [N]: positions in ``input_ids`` that predict the N masked tokens, in the order of the batch."""
    targets: Tensor
    """int64 [N]: the masked tokens."""

    @property
    def seqlens(self) -> list[int]:
        """Lengths of the sequences."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).tolist()


def used_lengths(batch: TrainBatch) -> list[int]:
    """Return, for each sequence, how many of its tokens are model input: those before its last masked token.

    0 for a sequence without a masked token: it is not computed at all.
    """
    starts = torch.cumsum(batch.lengths, 0) - batch.lengths
    positions = torch.nonzero(batch.loss_mask).flatten()
    owner = torch.searchsorted(starts, positions, right=True) - 1
    last = torch.zeros(batch.num_sequences, dtype=torch.int64)
    last.scatter_reduce_(0, owner, positions - starts[owner], reduce="amax")
    return last.tolist()


def plan_microbatches(lengths: list[int], *, num_ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Return for each rank its micro-batches, each a list of indices into ``lengths``.

    Every index with a positive length appears once. Ranks get about the same number of tokens; so do the
    micro-batches of one rank, none above ``max_tokens`` unless it holds a single sequence. A rank may get none. The
    plan depends on the arguments alone, so every rank can make it for itself.
    """
    indices = [index for index, length in enumerate(lengths) if length > 0]
    shares = _spread(indices, lengths, num_ranks)
    return [_fill(share, lengths, max_tokens) for share in shares]


def _spread(indices: list[int], lengths: list[int], num_bins: int) -> list[list[int]]:
    """Longest first, each into the bin that holds the fewest tokens."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, number) for number in range(num_bins)]
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        tokens, number = heapq.heappop(heap)
        bins[number].append(index)
        heapq.heappush(heap, (tokens + lengths[index], number))
    return [sorted(members) for members in bins]


def _fill(share: list[int], lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Cut one rank's share into as few even micro-batches as the budget allows."""
    too_long = [[index] for index in share if lengths[index] > max_tokens]
    share = [index for index in share if lengths[index] <= max_tokens]
    total = sum(lengths[index] for index in share)
    for count in range(-(-total // max_tokens), len(share) + 1):
        bins = _spread(share, lengths, count)
        if all(sum(lengths[index] for index in members) <= max_tokens for members in bins):
            return too_long + bins
    raise AssertionError("one sequence a micro-batch always fits")


def pack(batch: TrainBatch, device: torch.device) -> PackedTokens:
    """Lay out a micro-batch for the model. Every sequence must have a masked token."""
    kept = used_lengths(batch)
    assert min(kept) > 0, "a sequence without a masked token has no place in a micro-batch"
    starts = (torch.cumsum(batch.lengths, 0) - batch.lengths).tolist()
    pieces = [batch.token_ids[start : start + length] for start, length in zip(starts, kept, strict=True)]
    offsets = torch.zeros(len(kept) + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(torch.tensor(kept), 0)
    masked = torch.nonzero(batch.loss_mask).flatten()
    owner = torch.searchsorted(torch.tensor(starts), masked, right=True) - 1
    # A token at position p of its sequence is predicted at p - 1, which lies `offset` further into the packed row.
    output_positions = masked - torch.tensor(starts)[owner] - 1 + offsets[owner]
    return PackedTokens(
        input_ids=torch.cat(pieces).to(device),
        cu_seqlens=offsets.to(device=device, dtype=torch.int32),
        max_seqlen=max(kept),
        output_positions=output_positions.to(device),
        targets=batch.token_ids[masked].to(device),
    )
