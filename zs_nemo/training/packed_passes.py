"""Runs a packed batch through a model on the ranks: this rank's micro-batches, megatron-core's schedule, the results.

Owns how a batch is cut and put together again, no model and no optimizer.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from zs_nemo.training.microbatch import pack, plan_microbatches, used_tokens
from zs_nemo.types.batch import TrainBatch

Consume = Callable[[int, Tensor], Tensor]
"""Turns the number of a micro-batch and the model's outputs [C, N] for it into a loss []."""


class PackedPasses:
    """How this rank goes over batches. All methods are collective over the ranks of a model."""

    def __init__(
        self, device: torch.device, *, max_tokens: int, share_prefixes: bool, temperature: float, multiple_of: int
    ) -> None:
        """``max_tokens`` is the budget of a micro-batch, ``temperature`` what logits are divided by.

        The tokens of a micro-batch are filled up to a ``multiple_of`` a number.
        """
        self._multiple_of = multiple_of
        self.device = device
        self._max_tokens = max_tokens
        self._share_prefixes = share_prefixes
        self._temperature = temperature

    def plan(self, batch: TrainBatch) -> list[list[int]]:
        """Return this rank's micro-batches as lists of sequences; the same cut for every pass over the batch."""
        plan = plan_microbatches(
            used_tokens(batch),
            num_ranks=parallel_state.get_data_parallel_world_size(),
            max_tokens=self._max_tokens,
            share_prefixes=self._share_prefixes,
        )
        return plan[parallel_state.get_data_parallel_rank()]

    @torch.no_grad()
    def first_outputs(self, model: torch.nn.Module, batch: TrainBatch) -> Tensor:
        """Return float32 [T], the first of the model's outputs at each masked token, 0 off the mask; on every rank."""
        plan = self.plan(batch)
        result = torch.zeros(batch.token_ids.numel(), dtype=torch.float32)
        positions = masked_positions(batch, plan)

        def collect(index: int, outputs: Tensor) -> Tensor:
            result[positions[index]] = outputs[0].cpu()
            return outputs[0].sum()

        self.run(model, [batch.select(members) for members in plan], collect, forward_only=True)
        # Each value is computed on one data-parallel rank's last stage and is 0 on all others: the sum is exact.
        shared = result.to(self.device)
        for group in (parallel_state.get_data_parallel_group(), parallel_state.get_pipeline_model_parallel_group()):
            if group.size() > 1:
                torch.distributed.all_reduce(shared, group=group)
        return shared.cpu()

    def run(self, model: torch.nn.Module, parts: list[TrainBatch], consume: Consume, *, forward_only: bool) -> None:
        """Run megatron-core's schedule; ``consume(index, outputs)`` turns the last stage's outputs into a loss []."""
        if not parts:
            # The schedules run at least one micro-batch; a rank without any still takes part in the reduction.
            if not forward_only:
                finalize_model_grads([model], None)
            return

        def forward_step(indices: Iterator[int], stage: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
            index = next(indices)
            packed = pack(parts[index], self.device, share_prefixes=self._share_prefixes, multiple_of=self._multiple_of)
            outputs = stage(packed=packed, temperature=self._temperature)
            return outputs, lambda tensor: (consume(index, tensor), torch.zeros((), dtype=torch.int), {})

        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(range(len(parts))),
            model=[model],
            num_microbatches=len(parts),
            seq_length=1,  # unused: shapes are exchanged between the stages
            micro_batch_size=1,
            forward_only=forward_only,
        )


def masked_positions(batch: TrainBatch, plan: list[list[int]]) -> list[Tensor]:
    """Return for each micro-batch where its masked tokens lie in the batch."""
    places = [batch.places_of(members) for members in plan]
    return [tokens[batch.loss_mask[tokens]] for tokens in places]


def to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """Return the batch with its tensors on a device."""
    if device.type == "cpu":
        return batch
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)
