"""Sharded checkpoints of policy and optimizer in megatron-core's distributed format.

Owns neither atomicity nor which checkpoints are kept: the caller names a folder and renames it when it is whole.
"""

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor

from zs_nemo.training.model import unwrap
from zs_nemo.training.optimizer import ModelOptimizer
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


def save(folder: Path, model: torch.nn.Module, optimizer: ModelOptimizer) -> None:
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


def load(folder: Path, model: torch.nn.Module, optimizer: ModelOptimizer) -> None:
    """Take up what ``save`` wrote, under any layout of ranks. Collective.

    Raises ``ValueError`` when ``folder`` holds no whole checkpoint.
    """
    _check_is_checkpoint(folder)
    # Ranks ask for what they own only, so that not every shard is asked for by the one that is checked to do so.
    state = _sharded_state(model, optimizer, is_loading=True)
    loaded = dist_checkpointing.load(state, str(folder), validate_access_integrity=False)
    unwrap(model).load_state_dict(loaded["model"])
    optimizer.load_state(loaded["optimizer"])
    optimizer.load_schedule_state(loaded["schedule"])
    torch.set_rng_state(loaded["rng"]["cpu"])


def load_weights(folder: Path, model: torch.nn.Module, *, prefix: str = "") -> None:
    """Load the weights alone from a checkpoint of ours, or from any of Megatron's distributed format. Collective.

    ``prefix`` stands before the names of the weights in the checkpoint: none in ours, ``module.`` in those of NeMo 2.
    Raises ``ValueError`` when ``folder`` holds no whole checkpoint, or not the weights of this model.
    """
    _check_is_checkpoint(folder)
    inner = unwrap(model)
    wanted = inner.sharded_state_dict(prefix=prefix, metadata=_metadata())
    names = list(wanted)
    _check_holds(folder, [value for value in wanted.values() if isinstance(value, ShardedTensor)])
    loaded = dist_checkpointing.load(wanted, str(folder), validate_access_integrity=False)
    # What is no tensor of the model, such as an optimizer's settings, is loaded whether it is wanted or not.
    inner.load_state_dict({name.removeprefix(prefix): loaded[name] for name in names})


def _check_is_checkpoint(folder: Path) -> None:
    if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
        raise ValueError(
            f"{folder} holds no whole checkpoint (its metadata.json is missing); resume from another one, "
            "or start a new run with another exp_manager.name"
        )


def _check_holds(folder: Path, wanted: list[ShardedTensor]) -> None:
    """Raise unless the checkpoint holds tensors of these names and shapes; the vocabulary may be padded otherwise."""
    held = {
        name: tuple(tensor.global_shape)
        for name, tensor in dist_checkpointing.load_tensors_metadata(str(folder)).items()
    }
    missing = sorted({tensor.key for tensor in wanted} - held.keys())
    if missing:
        raise ValueError(
            f"checkpoint {folder} has no tensor {missing[0]!r} (of {len(missing)} that are missing); it holds "
            f"{sorted(held)[:3]}: give the prefix before the names if there is one, or the model that it belongs to"
        )
    for tensor in wanted:
        shape = tuple(tensor.global_shape)
        if held[tensor.key] != shape and not (tensor.allow_shape_mismatch and held[tensor.key][1:] == shape[1:]):
            raise ValueError(
                f"checkpoint {folder} holds {tensor.key!r} with shape {held[tensor.key]}, but the model's config.json "
                f"makes it {shape}; give the model that the checkpoint belongs to"
            )


def _sharded_state(model: torch.nn.Module, optimizer: ModelOptimizer, *, is_loading: bool) -> dict[str, Any]:
    metadata = _metadata()
    weights = unwrap(model).sharded_state_dict(metadata=metadata)
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state(weights, metadata, is_loading=is_loading),
    }
