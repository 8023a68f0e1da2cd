"""Negative log-likelihood of the tokens under the mask."""

from dataclasses import dataclass

from torch import Tensor

from zs_nemo.types.batch import TrainBatch


@dataclass(frozen=True, kw_only=True)
class SupervisedLoss:
    """Mean over policy tokens of -log p: imitate what the episode's script wrote."""

    def normalizer(self, batch: TrainBatch) -> float:
        """Return the number of tokens under the mask."""
        return float(batch.num_loss_tokens)

    def __call__(self, outputs: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss [] and metrics, as ``types.loss.TokenLoss`` says."""
        logprobs, entropy = outputs
        return -logprobs.sum(), {"entropy": entropy.detach().sum()}
