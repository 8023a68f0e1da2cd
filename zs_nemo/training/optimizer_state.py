"""Master weights and moments of megatron-core's distributed optimizer, to and from the form of a checkpoint.

megatron-core's own code for this gathers with several copies in memory at once, makes every rank read what another
one owns, and cannot read back the state of PyTorch's Adam.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_KEYS = ("param", "exp_avg", "exp_avg_sq")


@contextlib.contextmanager
def lean_gather(optimizer: DistributedOptimizer) -> Iterator[None]:
    """Replace the optimizer's gathering of its shards while a checkpoint is written."""
    original = optimizer.get_parameter_state_dp_zero
    optimizer.get_parameter_state_dp_zero = lambda **_options: _gather(optimizer)
    try:
        yield
    finally:
        optimizer.get_parameter_state_dp_zero = original


def _gather(optimizer: DistributedOptimizer) -> dict[Any, Any] | None:
    """Return the whole state on the first data-parallel rank, None elsewhere. One shard is in memory beside it."""
    group = optimizer.data_parallel_group_gloo
    state: dict[Any, Any] = {"buckets_coalesced": True}
    for index, ranges in enumerate(optimizer.gbuf_ranges):
        ((dtype, buckets),) = ranges.items()
        state[index] = {dtype: {key: _gather_buffer(optimizer, index, buckets, key) for key in _KEYS}}
    return state if group.rank() == 0 else None


def _gather_buffer(
    optimizer: DistributedOptimizer, index: int, buckets: list[dict[str, Any]], key: str
) -> torch.Tensor | None:
    """Return one of the three tensors of one buffer, its buckets end to end with their padding.

    megatron-core leaves the padding out, but then cuts the parameters out at their places in the padded buffer: all
    that follow a bucket whose size is rounded up come out wrong. That happens where pipeline stages share an embedding,
    which gets a bucket of its own.
    """
    group, buffer = optimizer.data_parallel_group_gloo, optimizer.buffers[index]
    is_first = group.rank() == 0
    whole = torch.empty(buffer.numel, dtype=torch.float32) if is_first else None
    offset = 0
    for bucket, ranges in zip(buffer.buckets, buckets, strict=True):
        size = bucket.grad_data.numel()
        shard = torch.zeros(size // group.size(), dtype=torch.float32)
        for parameter, places in ranges["param_map"].items():
            local = places["gbuf_local"]
            shard[local.start : local.end] = optimizer._get_main_param_and_optimizer_states(parameter)[key].cpu()
        parts = None if whole is None else list(whole[offset : offset + size].chunk(group.size()))
        torch.distributed.gather(shard, parts, group=group, group_dst=0)
        offset += size
    return whole


def drop_what_others_own(optimizer: DistributedOptimizer, param_state: dict[int, Any]) -> None:
    """Leave out the parameters of which this data-parallel rank holds no part: they need not be read."""
    number = 0
    for index, ranges in enumerate(optimizer.gbuf_ranges):
        ((_, buckets),) = ranges.items()
        mine = {parameter for bucket in buckets for parameter in bucket["param_map"]}
        for parameter in optimizer.buffers[index].param_index_map:
            if parameter not in mine:
                del param_state[number]
            number += 1


def load_state(optimizer: DistributedOptimizer, state: dict[str, Any]) -> None:
    """Take up a loaded state."""
    tensors = state.pop("param_state")
    optimizer.load_state_dict(state)
    # PyTorch's Adam keeps its step beside the moments, where megatron-core would look for it in the checkpoint.
    moments = list(optimizer.optimizer.state.values())
    steps = [values.pop("step", None) for values in moments]
    optimizer.load_parameter_state_from_fully_reshardable(tensors)
    for values, step in zip(moments, steps, strict=True):
        if step is not None:
            values["step"] = step
