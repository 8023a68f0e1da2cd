"""How a loss is handed to the training workers."""

from typing import Protocol

from torch import Tensor

from zs_nemo.types.batch import TrainBatch


class TokenLoss(Protocol):
    """A loss over the tokens under the mask; N of them in a micro-batch. Picklable: it travels to the workers.

    The worker computes ``logprobs`` and ``entropy`` at the N masked positions and hands over the micro-batch. The loss
    returns a sum over tokens, already divided by nothing: the worker divides by ``normalizer(batch)`` of the whole
    global batch, so that the result does not depend on how it was cut into micro-batches or ranks.
    """

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (the summed loss [], metrics as sums over the N tokens []).

        ``logprobs`` [N] carries the gradient, ``entropy`` [N] (nats) does so only if ``needs_entropy_grad``. A metric
        whose name ends in ``_max`` is reduced by maximum, every other one is summed and divided by the normalizer.
        """
        ...

    def normalizer(self, batch: TrainBatch) -> float:
        """Return the divisor for the sums, of a whole global batch."""
        ...

    @property
    def needs_entropy_grad(self) -> bool:
        """Whether the entropy is part of the loss."""
        ...
