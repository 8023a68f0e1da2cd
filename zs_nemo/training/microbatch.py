"""Cuts a batch into packed micro-batches, balanced over the data-parallel ranks. Pure functions.

Samples of one prompt begin alike, and so do all prompts of one template. A token whose whole prefix stands in another
sequence too has the same hidden states there: it is computed once, and the gradients of all its uses add up.
"""

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class PackedTokens:
    """The model's input for one micro-batch: T distinct tokens of B sequences, without padding.

    Example, two sequences that begin with the same two tokens::

        sequences    [7 8 9] [7 8 5]
        input_ids    [7 8 9 5]
        position_ids [0 1 2 2]
        expansion    [0 1 2 0 1 3]
        first_uses   [0 1 2 5]
        later_uses   [3 4]
    """

    input_ids: Tensor
    """int64 [T]: of each sequence what comes before its last masked token; nothing later can matter."""
    position_ids: Tensor
    """int64 [T]: how many tokens stand before it in its sequences."""
    expansion: Tensor | None
    """int64 [E]: the sequences end to end, as indices into ``input_ids``; None if no token is shared."""
    first_uses: Tensor | None
    """int64 [T]: where in ``expansion`` each token first stands; None if no token is shared."""
    later_uses: Tensor | None
    """int64 [E - T]: where in ``expansion`` the others stand; None if no token is shared."""
    seqlens: list[int]
    """Lengths of the B sequences."""
    cu_seqlens: Tensor
    """int32 [B + 1]: where each sequence starts in ``expansion``, and the end."""
    max_seqlen: int
    output_positions: Tensor
    """int64 [N]: positions in ``input_ids`` that predict the N masked tokens, in the order of the batch."""
    targets: Tensor
    """int64 [N]: the masked tokens."""


def used_tokens(batch: TrainBatch) -> list[list[int]]:
    """Return, for each sequence, the tokens that are model input: those before its last masked token.

    None for a sequence without a masked token: it is not computed at all.
    """
    starts = torch.cumsum(batch.lengths, 0) - batch.lengths
    positions = torch.nonzero(batch.loss_mask).flatten()
    owner = torch.searchsorted(starts, positions, right=True) - 1
    last = torch.zeros(batch.num_sequences, dtype=torch.int64)
    last.scatter_reduce_(0, owner, positions - starts[owner], reduce="amax")
    ends = (starts + last).tolist()
    return [batch.token_ids[start:end].tolist() for start, end in zip(starts.tolist(), ends, strict=True)]


def num_computed(sequences: Sequence[list[int]], *, share_prefixes: bool) -> int:
    """Return how many tokens a micro-batch of these sequences makes the model compute."""
    if not share_prefixes:
        return sum(map(len, sequences))
    ordered = sorted(sequences)
    return sum(map(len, ordered)) - sum(_num_alike(*pair) for pair in pairwise(ordered))


def plan_microbatches(
    sequences: Sequence[list[int]], *, num_ranks: int, max_tokens: int, share_prefixes: bool
) -> list[list[list[int]]]:
    """Return for each rank its micro-batches, each a list of indices into ``sequences``.

    Every sequence that is not empty appears once. Ranks get about the same number of tokens to compute; so do the
    micro-batches of one rank, none above ``max_tokens`` unless it holds a single sequence. A rank may get none.
    Sequences that begin alike stay together where that keeps the ranks even. The plan depends on the arguments alone,
    so every rank can make it for itself.
    """
    lengths = [len(sequence) for sequence in sequences]
    indices = [index for index, length in enumerate(lengths) if length]
    if not share_prefixes:
        return [_fill(share, lengths, max_tokens) for share in _spread(indices, lengths, num_ranks)]
    runs = [[index] for index in indices if lengths[index] > max_tokens]
    runs += _even_runs([index for index in indices if lengths[index] <= max_tokens], sequences, num_ranks, max_tokens)
    costs = [num_computed([sequences[index] for index in run], share_prefixes=True) for run in runs]
    return [[sorted(runs[run]) for run in share] for share in _spread(list(range(len(runs))), costs, num_ranks)]


def _num_alike(one: list[int], other: list[int]) -> int:
    """Return how many tokens two sequences have in common before they part."""
    pairs = zip(one, other, strict=False)
    return next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(one), len(other)))


def _even_runs(indices: list[int], sequences: Sequence[list[int]], num_ranks: int, max_tokens: int) -> list[list[int]]:
    """Cut the sequences, none above ``max_tokens``, into runs that compute about as much, as many for every rank.

    In the order of their tokens each sequence shares most with its neighbours, and a run computes of each what its
    predecessor in the run does not have.
    """
    if not indices:
        return []
    ordered = sorted(indices, key=lambda index: sequences[index])
    lengths = [len(sequences[index]) for index in ordered]
    alike = [_num_alike(sequences[one], sequences[other]) for one, other in pairwise(ordered)]
    own = [length - known for length, known in zip(lengths, [0, *alike], strict=True)]

    def cut(budget: int) -> list[list[int]]:
        runs: list[list[int]] = []
        room = 0
        for index, length, num_new in zip(ordered, lengths, own, strict=True):
            if runs and num_new <= room:
                runs[-1].append(index)
                room -= num_new
            else:
                runs.append([index])
                room = budget - length
        return runs

    budgets = range(max(lengths), max_tokens + 1)
    least = len(cut(max_tokens))
    count = num_ranks * -(-least // num_ranks)
    return cut(budgets[bisect_left(budgets, True, key=lambda budget: len(cut(budget)) <= count)])


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


def pack(batch: TrainBatch, device: torch.device, *, share_prefixes: bool, multiple_of: int = 1) -> PackedTokens:
    """Lay out a micro-batch for the model. Every sequence must have a masked token.

    Where T has to be a ``multiple_of`` a number, a last sequence without an output fills it up.
    """
    sequences = used_tokens(batch)
    assert all(sequences), "a sequence without a masked token has no place in a micro-batch"
    lengths = [len(sequence) for sequence in sequences]
    offsets = torch.tensor([0, *accumulate(lengths)])
    starts = torch.cumsum(batch.lengths, 0) - batch.lengths
    masked = torch.nonzero(batch.loss_mask).flatten()
    owner = torch.searchsorted(starts, masked, right=True) - 1
    # A token at position p of its sequence is predicted at p - 1.
    predicted_at = masked - starts[owner] - 1 + offsets[owner]
    expansion: Tensor | None = None
    first_uses: Tensor | None = None
    later_uses: Tensor | None = None
    if share_prefixes:
        input_ids, position_ids, expansion, first_uses = _shared(sequences)
        predicted_at = expansion[predicted_at]
        if input_ids.numel() == expansion.numel():  # Nothing is shared: both would change nothing.
            expansion = first_uses = None
    else:
        input_ids = torch.tensor([token for sequence in sequences for token in sequence])
        position_ids = torch.cat([torch.arange(length) for length in lengths])
    num_tokens, filling = input_ids.numel(), torch.arange(-input_ids.numel() % multiple_of)
    if filling.numel():
        input_ids, position_ids = torch.cat([input_ids, filling * 0]), torch.cat([position_ids, filling])
        if expansion is not None and first_uses is not None:
            first_uses = torch.cat([first_uses, filling + expansion.numel()])
            expansion = torch.cat([expansion, filling + num_tokens])
        lengths.append(filling.numel())
        offsets = torch.cat([offsets, offsets[-1:] + filling.numel()])
    if expansion is not None and first_uses is not None:
        is_later = torch.ones(expansion.numel(), dtype=torch.bool)
        is_later[first_uses] = False
        later_uses = torch.nonzero(is_later).flatten()
    return PackedTokens(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        expansion=None if expansion is None else expansion.to(device),
        first_uses=None if first_uses is None else first_uses.to(device),
        later_uses=None if later_uses is None else later_uses.to(device),
        seqlens=lengths,
        cu_seqlens=offsets.to(device=device, dtype=torch.int32),
        max_seqlen=max(lengths),
        output_positions=predicted_at.to(device),
        targets=batch.token_ids[masked].to(device),
    )


def _shared(sequences: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``input_ids``, ``position_ids``, ``expansion`` and ``first_uses`` with every prefix laid out once."""
    count = 0
    tokens: list[int] = []
    depths: list[np.ndarray] = []
    nodes: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    # In the order of their tokens a sequence has of all that went before most in common with the last.
    last, path = list[int](), np.empty(0, np.int64)
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[index]
        known, length = _num_alike(last, sequence), len(sequence)
        path = np.concatenate([path[:known], np.arange(count, count + length - known)])
        tokens += sequence[known:]
        depths.append(np.arange(known, length))
        count, last, nodes[index] = count + length - known, sequence, path
    uses = np.concatenate(nodes)
    first_uses = np.empty(count, np.int64)
    # Of a node's uses the one that is written last stays.
    first_uses[uses[::-1]] = np.arange(len(uses))[::-1]
    order = np.argsort(first_uses)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    found = np.array(tokens)[order], np.concatenate(depths)[order], place[uses], first_uses[order]
    input_ids, position_ids, expansion, first = map(torch.from_numpy, found)
    return input_ids, position_ids, expansion, first
