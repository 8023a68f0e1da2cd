"""Sharded checkpoints of policy and optimizer in megatron-core's distributed format.

Owns neither atomicity nor which checkpoints are kept: the caller names a folder and renames it when it is whole.
"""

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state

from zs_nemo.training.model import unwrap
from zs_nemo.training.optimizer import PolicyOptimizer
from zs_nemo.training.streaming_writer import streaming_writes


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


def save(folder: Path, model: torch.nn.Module, optimizer: PolicyOptimizer) -> None:
    """Write policy, optimizer, schedule and random state into ``folder``. Collective."""
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    state = _sharded_state(model, optimizer, is_loading=False)
    state["schedule"] = optimizer.schedule_state()
    state["rng"] = {"cpu": torch.get_rng_state()}
    with streaming_writes():
        dist_checkpointing.save(state, str(folder))
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
    # Ranks ask for what they own only, so that not every shard is asked for by the one that is checked to do so.
    state = _sharded_state(model, optimizer, is_loading=True)
    loaded = dist_checkpointing.load(state, str(folder), validate_access_integrity=False)
    unwrap(model).load_state_dict(loaded["model"])
    optimizer.load_state(loaded["optimizer"])
    optimizer.load_schedule_state(loaded["schedule"])
    torch.set_rng_state(loaded["rng"]["cpu"])


def _sharded_state(model: torch.nn.Module, optimizer: PolicyOptimizer, *, is_loading: bool) -> dict[str, Any]:
    metadata = _metadata()
    weights = unwrap(model).sharded_state_dict(metadata=metadata)
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state(weights, metadata, is_loading=is_loading),
    }
