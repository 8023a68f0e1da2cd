"""What the training workers get: sequences laid end to end, without padding."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

_PER_SEQUENCE = frozenset({"lengths", "group_ids"})


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """B sequences of T tokens in all, laid end to end. Every per-token tensor is aligned with ``token_ids``.

    ``x[t]`` speaks about token ``t`` itself: ``policy_logprobs[t]`` is log p(token t | the tokens before it in its
    sequence), ``values[t]`` what the critic expects before token ``t`` is written. Values off the mask are 0.

    Example, two sequences of 3 and 2 tokens::

        token_ids   [11 12 13 | 11 15]
        lengths     [3, 2]
        group_ids   [0, 0]
        loss_mask   [ 0  1  1 |  0  1]
        rewards     [ 0  0  1 |  0  0]
        advantages  [ 0 .7 .7 |  0 -.7]
    """

    token_ids: Tensor
    """int64 [T]"""
    lengths: Tensor
    """int64 [B], summing to T"""
    loss_mask: Tensor
    """bool [T]: True on policy tokens alone. Never on the first token of a sequence, which nothing predicts."""
    generation_logprobs: Tensor
    """float32 [T]: from the engine that sampled the tokens"""
    group_ids: Tensor | None = None
    """int64 [B]: sequences of the same prompt have the same; None in a batch that was not sampled"""
    rewards: Tensor | None = None
    """float32 [T]: the trajectory's reward on its last policy token, 0 elsewhere"""
    advantages: Tensor | None = None
    """float32 [T]"""
    policy_logprobs: Tensor | None = None
    """float32 [T]: from the policy's weights at the start of the step; None while no update needs them"""
    reference_logprobs: Tensor | None = None
    """float32 [T]: from the frozen reference; None without a KL term"""
    values: Tensor | None = None
    """float32 [T]: from the critic's weights at the start of the step; None without a critic"""
    returns: Tensor | None = None
    """float32 [T]: what the critic should have expected; None without a critic"""

    def __post_init__(self) -> None:
        assert int(self.lengths.sum()) == self.token_ids.numel(), "lengths do not sum to the number of tokens"
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        assert not bool(self.loss_mask[starts].any()), "the first token of a sequence cannot be trained on"

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.lengths.numel()

    @property
    def num_loss_tokens(self) -> int:
        """Tokens under the mask."""
        return int(self.loss_mask.sum())

    @property
    def sequence_ids(self) -> Tensor:
        """int64 [T]: the number of each token's sequence."""
        return torch.repeat_interleave(torch.arange(self.num_sequences, device=self.lengths.device), self.lengths)

    def sequence_sums(self, values: Tensor) -> Tensor:
        """Return [B], the sums of ``values`` [T] over the masked tokens of each sequence, in float64."""
        sums = torch.zeros(self.num_sequences, dtype=torch.float64, device=self.lengths.device)
        return sums.index_add_(0, self.sequence_ids[self.loss_mask], values[self.loss_mask].double())

    def on_loss_tokens(self, values: Tensor) -> Tensor:
        """Return float32 [T]: the value of each sequence, of ``values`` [B], on its masked tokens, 0 elsewhere."""
        return torch.where(self.loss_mask, values[self.sequence_ids].float(), 0.0)

    def replace(self, **tensors: Tensor) -> "TrainBatch":
        """Return a copy with other tensors in the named fields."""
        return replace(self, **tensors)

    def places_of(self, sequences: list[int]) -> Tensor:
        """Return int64 [t], where the tokens of the named sequences lie, in the order given."""
        members = torch.tensor(sequences, dtype=torch.int64)
        lengths = self.lengths[members]
        starts = (torch.cumsum(self.lengths, 0) - self.lengths)[members]
        moved = starts - (torch.cumsum(lengths, 0) - lengths)
        return torch.repeat_interleave(moved, lengths) + torch.arange(int(lengths.sum()))

    def select(self, sequences: list[int]) -> "TrainBatch":
        """Return the named sequences, in the order given."""
        members, tokens = torch.tensor(sequences, dtype=torch.int64), self.places_of(sequences)
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            index = members if field.name in _PER_SEQUENCE else tokens
            chosen[field.name] = None if value is None else value[index]
        return TrainBatch(**chosen)

    def minibatches(self, global_batch_size: int) -> Iterator["TrainBatch"]:
        """Yield as few parts as hold at most ``global_batch_size`` sequences each, as even as they can be.

        A small remainder would make an update as large as that of a full part from a few sequences alone.
        """
        for part in torch.arange(self.num_sequences).tensor_split(-(-self.num_sequences // global_batch_size)):
            yield self.select(part.tolist())
