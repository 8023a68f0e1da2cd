"""How a loss is handed to the training workers."""

from typing import Protocol

from torch import Tensor

from zs_nemo.types.batch import TrainBatch


class TokenLoss(Protocol):
    """A loss over the tokens under the mask; N of them in a micro-batch. Picklable: it travels to the workers.

    The loss returns a sum over tokens, already divided by nothing: the worker divides by ``normalizer(batch)`` of the
    whole global batch, so that the result does not depend on how it was cut into micro-batches or ranks.
    """

    def __call__(self, outputs: Tensor, batch: TrainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (the summed loss [], metrics as sums over the N tokens []).

        ``outputs`` carry the gradient: of a policy [2, N], logprobs and entropies in nats; of a critic [1, N], values.
        A metric whose name ends in ``_max`` is reduced by maximum, every other one becomes a mean over tokens.
        """
        ...

    def normalizer(self, batch: TrainBatch) -> float:
        """Return the divisor for the summed loss, of a whole global batch."""
        ...
