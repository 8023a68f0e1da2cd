"""Batches and a loss for tests of the training workers."""

from dataclasses import replace

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch


class TinyLoss:
    """A weighted negative log-likelihood with an entropy bonus, so that both outputs carry a gradient."""

    def __init__(self, entropy_weight: float = 0.1) -> None:
        self._entropy_weight = entropy_weight

    def __call__(self, outputs: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over the masked tokens."""
        logprobs, entropy = outputs
        weight = batch.advantages[batch.loss_mask]
        total = -(weight * logprobs).sum() - self._entropy_weight * entropy.sum()
        return total, {"nll": -logprobs.sum(), "logprob_max": logprobs.max(), "entropy": entropy.sum()}

    def normalizer(self, batch: TrainBatch) -> float:
        """Return the number of masked tokens."""
        return float(batch.num_loss_tokens)


def make_batch(lengths: list[int], *, vocab_size: int, seed: int = 0, mask_share: float = 0.4) -> TrainBatch:
    """Return random tokens with a random mask and random advantages."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    mask = torch.rand(total, generator=generator) < mask_share
    starts = torch.cumsum(torch.tensor(lengths), 0) - torch.tensor(lengths)
    mask[starts] = False
    return TrainBatch(
        token_ids=torch.randint(0, vocab_size, (total,), generator=generator),
        lengths=torch.tensor(lengths),
        loss_mask=mask,
        advantages=torch.randn(total, generator=generator),
        generation_logprobs=torch.zeros(total),
    )


def with_returns(batch: TrainBatch, *, seed: int = 0) -> TrainBatch:
    """Return the batch with random returns and values for a critic's loss."""
    generator = torch.Generator().manual_seed(seed)
    returns, values = torch.rand(2, batch.token_ids.numel(), generator=generator)
    return batch.replace(
        returns=torch.where(batch.loss_mask, returns, 0.0), values=torch.where(batch.loss_mask, 0.1 * values, 0.0)
    )


def with_shared_prefixes(batch: TrainBatch, groups: dict[int, list[int]], *, num_tokens: int) -> TrainBatch:
    """Return the batch with sequences that begin with the first tokens of another: {sequence: [followers]}."""
    ids = batch.token_ids.clone()
    starts = (torch.cumsum(batch.lengths, 0) - batch.lengths).tolist()
    for leader, followers in groups.items():
        for follower in followers:
            ids[starts[follower] : starts[follower] + num_tokens] = ids[starts[leader] : starts[leader] + num_tokens]
    return replace(batch, token_ids=ids)
