"""What the training workers get: sequences laid end to end, without padding."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """B sequences of T tokens in all, laid end to end. Every per-token tensor is aligned with ``token_ids``.

    ``x[t]`` speaks about token ``t`` itself: ``policy_logprobs[t]`` is log p(token t | the tokens before it in its
    sequence). Values off the mask are 0.

    Example, two sequences of 3 and 2 tokens::

        token_ids   [11 12 13 | 11 15]
        lengths     [3, 2]
        loss_mask   [ 0  1  1 |  0  1]
        advantages  [ 0 .7 .7 |  0 -.7]
    """

    token_ids: Tensor
    """int64 [T]"""
    lengths: Tensor
    """int64 [B], summing to T"""
    loss_mask: Tensor
    """bool [T]: True on policy tokens alone. Never on the first token of a sequence, which nothing predicts."""
    advantages: Tensor
    """float32 [T]"""
    generation_logprobs: Tensor
    """float32 [T]: from the engine that sampled the tokens"""
    policy_logprobs: Tensor | None = None
    """float32 [T]: from the policy's weights at the start of the step; None while no update needs them"""
    reference_logprobs: Tensor | None = None
    """float32 [T]: from the frozen reference; None without a KL term"""

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

    def with_policy_logprobs(self, logprobs: Tensor) -> "TrainBatch":
        """Return a copy that carries ``policy_logprobs``."""
        return replace(self, policy_logprobs=logprobs)

    def with_reference_logprobs(self, logprobs: Tensor) -> "TrainBatch":
        """Return a copy that carries ``reference_logprobs``."""
        return replace(self, reference_logprobs=logprobs)

    def select(self, sequences: list[int]) -> "TrainBatch":
        """Return the named sequences, in the order given."""
        offsets = torch.cumsum(self.lengths, 0) - self.lengths
        spans = [torch.arange(int(offsets[i]), int(offsets[i] + self.lengths[i])) for i in sequences]
        tokens = torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)
        chosen: dict[str, Any] = {"lengths": self.lengths[torch.tensor(sequences, dtype=torch.int64)]}
        for field in fields(self):
            if field.name not in chosen:
                value = getattr(self, field.name)
                chosen[field.name] = None if value is None else value[tokens]
        return TrainBatch(**chosen)

    def minibatches(self, global_batch_size: int) -> Iterator["TrainBatch"]:
        """Yield parts of at most ``global_batch_size`` sequences; a remainder makes a smaller last part."""
        for start in range(0, self.num_sequences, global_batch_size):
            yield self.select(list(range(start, min(start + global_batch_size, self.num_sequences))))
