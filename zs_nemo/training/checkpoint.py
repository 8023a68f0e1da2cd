"""Sharded checkpoints of policy and optimizer in megatron-core's distributed format.

Owns neither atomicity nor which checkpoints are kept: the caller names a folder and renames it when it is whole.
"""

import queue
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from zs_nemo.training.model import unwrap
from zs_nemo.training.optimizer import PolicyOptimizer


def _metadata() -> dict[str, Any]:
    """How shards are laid out; the same for writing and reading.

    ``fully_reshardable`` is the one format of the distributed optimizer's state that loads under another tensor- or
    pipeline-parallel layout. Its memory-efficient variant gathers on one rank of each replica group instead of on all.
    """
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": True,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


class _InProcessSave(TorchDistSaveShardedStrategy):
    """Writes in this process. megatron-core's own writer forks and spawns helpers, which inside an actor, with its
    threads and without a main module to import again, may hang; on one disk they are no faster."""

    def save(self, sharded_state_dict: dict, checkpoint_dir: str | Path) -> None:
        """Write this rank's shards and wait until they are on disk."""
        # The queue by which the writer reports; the default one lives in a spawned manager process.
        filesystem_async._results_queue = queue.Queue()
        request = self.async_save(sharded_state_dict, Path(checkpoint_dir))
        if request.async_fn is not None:
            transforms = request.async_fn.args[0]
            request = request._replace(async_fn=lambda _rank, buckets, results: _write(transforms, buckets, results))
        try:
            request.execute_sync()
        finally:
            filesystem_async._results_queue = None


def _write(transforms: list, buckets: list, results: queue.Queue) -> None:
    outcome: dict[int, Any] = {}
    for number, bucket in enumerate(buckets):
        local, count = queue.Queue(), queue.Queue()
        count.put(number)
        FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, local, count, True)
        outcome[number] = local.get()[1]
        if isinstance(outcome[number], Exception):
            raise outcome[number]
    results.put(outcome)


def save(folder: Path, model: torch.nn.Module, optimizer: PolicyOptimizer) -> None:
    """Write policy, optimizer, schedule and random state into ``folder``. Collective."""
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    state = _sharded_state(model, optimizer, is_loading=False)
    state["schedule"] = optimizer.schedule_state()
    state["rng"] = {"cpu": torch.get_rng_state()}
    strategy = FullyParallelSaveStrategyWrapper(
        _InProcessSave("torch_dist", 1, thread_count=1),
        parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
    dist_checkpointing.save(state, str(folder), strategy)
    torch.distributed.barrier()


def load(folder: Path, model: torch.nn.Module, optimizer: PolicyOptimizer) -> None:
    """Take up what ``save`` wrote, under any layout of ranks. Collective.

    Raises ``ValueError`` when ``folder`` holds no whole checkpoint.
    """
    if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
        raise ValueError(
            f"{folder} holds no whole checkpoint (its metadata.json is missing); resume from another one, "
            "or start a new run with another exp_manager.name"
        )
    loaded = dist_checkpointing.load(_sharded_state(model, optimizer, is_loading=True), str(folder))
    unwrap(model).load_state_dict(loaded["model"])
    optimizer.load_state(loaded["optimizer"])
    optimizer.load_schedule_state(loaded["schedule"])
    torch.set_rng_state(loaded["rng"]["cpu"])


def _sharded_state(model: torch.nn.Module, optimizer: PolicyOptimizer, *, is_loading: bool) -> dict[str, Any]:
    metadata = _metadata()
    weights = unwrap(model).sharded_state_dict(metadata=metadata)
    return {
        "model": weights,
        "optimizer": optimizer.megatron.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata),
    }
