"""Sums over the policy tokens that follow: returns, and generalized advantage estimation.

Documents stand between policy tokens without being steps: what follows a search query's last token is the first token
that the policy writes after the documents. Nothing is discounted or estimated over text that the policy did not write.
"""

import torch
from torch import Tensor

from zs_nemo.types.batch import TrainBatch


def discounted_sums(batch: TrainBatch, values: Tensor, discount: float) -> Tensor:
    """Return float64 [T]: x_t + discount * x_{t+1} + discount^2 * x_{t+2} ... over the policy tokens of a sequence."""
    steps = _Steps(batch)
    rows_BL = steps.rows(values)
    total_B = torch.zeros(rows_BL.shape[0], dtype=torch.float64)
    sums_BL = torch.empty_like(rows_BL)
    for step in reversed(range(rows_BL.shape[1])):
        total_B = rows_BL[:, step] + discount * total_B
        sums_BL[:, step] = total_B
    return steps.flat(sums_BL)


def generalized_advantages(
    batch: TrainBatch, token_rewards: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return float32 [T] advantages and returns (arXiv 1506.02438): A_t = sum of (gamma lambda)^k delta_{t+k}.

    delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after the last policy token. The return is A_t + V_t. The advantages
    are not whitened.
    """
    assert batch.values is not None, "advantages of PPO need the critic's values"
    steps = _Steps(batch)
    values_BL = steps.rows(batch.values)
    next_BL = torch.zeros_like(values_BL)
    next_BL[:, :-1] = values_BL[:, 1:]
    deltas = steps.flat(steps.rows(token_rewards) + gamma * next_BL - values_BL)
    advantages = discounted_sums(batch, deltas, gamma * gae_lambda)
    return advantages.float(), (advantages + batch.values.double()).float()


class _Steps:
    """The policy tokens of B sequences as the first columns of a matrix [B, L], zeros behind them."""

    def __init__(self, batch: TrainBatch) -> None:
        self._mask = batch.loss_mask
        self._row = batch.sequence_ids[self._mask]
        counts_B = torch.bincount(self._row, minlength=batch.num_sequences)
        self._shape = (batch.num_sequences, int(counts_B.max()) if counts_B.numel() else 0)
        firsts_B = torch.cumsum(counts_B, 0) - counts_B
        self._column = torch.arange(self._row.numel()) - firsts_B[self._row]

    def rows(self, values: Tensor) -> Tensor:
        """Lay [T] out as float64 [B, L]."""
        rows_BL = torch.zeros(self._shape, dtype=torch.float64)
        rows_BL[self._row, self._column] = values[self._mask].double()
        return rows_BL

    def flat(self, rows_BL: Tensor) -> Tensor:
        """Bring [B, L] back to float64 [T], 0 off the mask."""
        values = torch.zeros(self._mask.numel(), dtype=torch.float64)
        values[self._mask] = rows_BL[self._row, self._column]
        return values
