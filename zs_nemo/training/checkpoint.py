"""Sharded checkpoints of policy and optimizer in megatron-core's distributed format.

Owns neither atomicity nor which checkpoints are kept: the caller names a folder and renames it when it is whole.
"""

import json
import os
import pickle
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch.distributed.checkpoint.filesystem import FileSystemReader

from zs_nemo.observability.files import CHECKSUMS, wrong_length
from zs_nemo.training.model import PackedGptModel, unwrap
from zs_nemo.training.optimizer import ModelOptimizer
from zs_nemo.training.streaming_writer import WriteSession, streaming_writes

# Transformer Engine keeps the scales of FP8 there, in which nothing is computed here; other layers have none.
_EXTRA_STATE = "_extra_state"
_PARTS_OF_A_MODEL = ("embedding.", "decoder.", "output_layer.")
"""How the names of weights begin; an optimizer's state begins otherwise."""
_READ_BYTES = 2**24


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


class Saving:
    """A checkpoint on its way to the disk, this rank's part of it. The folder is whole once ``finish`` has returned."""

    def __init__(self, folder: Path, request: AsyncRequest, session: WriteSession, *, in_background: bool) -> None:
        self._folder, self._request, self._session = folder, request, session
        self._failure = ""
        self._thread = threading.Thread(target=self._write, name=f"checkpoint {folder}", daemon=True)
        self._thread.start()
        if not in_background:
            self._thread.join()

    def _write(self) -> None:
        try:
            self._request.async_fn(*self._request.async_fn_args)
        except Exception as error:  # noqa: BLE001  (the border of a thread: all ranks learn of it in ``finish``)
            self._failure = f"{type(error).__name__}: {error}"

    def finish(self) -> None:
        """Wait until all ranks have written, and write the index and the checksums. Collective.

        Raises ``OSError`` on every rank when one of them could not write.
        """
        self._thread.join()
        ranks = _gathered((self._failure, self._session.written))
        failures = [f"rank {rank}: {failure}" for rank, (failure, _) in enumerate(ranks) if failure]
        if failures:
            raise OSError(f"checkpoint {self._folder} could not be written ({'; '.join(failures)})")
        for finalize in self._request.finalize_fns:
            finalize()
        if torch.distributed.get_rank() == 0:
            _write_checksums(self._folder, {name: entry for _, written in ranks for name, entry in written.items()})
        torch.distributed.barrier()


def save(folder: Path, model: torch.nn.Module, optimizer: ModelOptimizer, *, in_background: bool) -> Saving:
    """Begin to write weights, optimizer, schedule and random state into ``folder``. Collective.

    ``in_background`` returns as soon as the training may go on, with a copy in the host's memory of what it changes.
    """
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    state = _sharded_state(model, optimizer, is_loading=False)
    state["schedule"] = optimizer.schedule_state()
    state["rng"] = {"cpu": torch.get_rng_state()}
    tensors = (*model.parameters(), *optimizer.tensors()) if in_background else ()
    session = WriteSession(changing=frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors))
    with streaming_writes(session):
        request = dist_checkpointing.save(state, str(folder), async_sharded_save=True)
    return Saving(folder, request, session, in_background=in_background)


def damage(folder: Path) -> list[str]:
    """Return what is wrong with the files of a checkpoint of ours: nothing if all are as they were written. Collective.

    Every rank reads its share of the files.
    """
    try:
        files = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{folder / CHECKSUMS} cannot be read ({error})"]
    mine = sorted(files)[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    found = [problem for name in mine if (problem := _damage_of(folder / name, files[name]))]
    return [problem for problems in _gathered(found) for problem in problems]


def _damage_of(path: Path, expected: dict[str, int]) -> str | None:
    if problem := wrong_length(path, expected["bytes"]):
        return problem
    if _crc32(path) != expected["crc32"]:
        return f"{path} is not what was written: its checksum differs"
    return None


def _write_checksums(folder: Path, written: dict[str, tuple[int, int]]) -> None:
    files = {name: {"bytes": size, "crc32": crc32} for name, (size, crc32) in written.items()}
    for path in folder.iterdir():
        if path.name not in files:
            files[path.name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
    with open(folder / CHECKSUMS, "w", encoding="utf-8") as file:
        json.dump(files, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def _crc32(path: Path) -> int:
    crc32 = 0
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            crc32 = zlib.crc32(data, crc32)
    return crc32


def _gathered(value: Any) -> list[Any]:
    """Return the values of all ranks."""
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def load(folder: Path, model: torch.nn.Module, optimizer: ModelOptimizer) -> None:
    """Take up what ``save`` wrote, under any layout of ranks. Collective.

    Raises ``ValueError`` when ``folder`` holds no whole checkpoint.
    """
    _check_is_checkpoint(folder)
    # Ranks ask for what they own only, so that not every shard is asked for by the one that is checked to do so.
    state = _sharded_state(model, optimizer, is_loading=True)
    loaded = dist_checkpointing.load(state, str(folder), validate_access_integrity=False)
    _take_up(unwrap(model), loaded["model"])
    optimizer.load_state(loaded["optimizer"])
    optimizer.load_schedule_state(loaded["schedule"])
    torch.set_rng_state(loaded["rng"]["cpu"])


def load_weights(folder: Path, model: torch.nn.Module, *, prefix: str = "") -> None:
    """Load the weights alone from a checkpoint of ours, or from any of Megatron's distributed format. Collective.

    ``prefix`` stands before the names of the weights in the checkpoint: none in ours, ``module.`` in those of NeMo 2.
    Raises ``ValueError`` when ``folder`` holds no whole checkpoint, a damaged one, or not the weights of this model.
    """
    _check_is_checkpoint(folder)
    if problems := damage(folder) if (folder / CHECKSUMS).is_file() else cut_short(folder):
        raise ValueError(f"checkpoint {folder} is damaged: {problems[0]}; give another one")
    inner = unwrap(model)
    wanted = _sharded_weights(inner, prefix=prefix)
    names = list(wanted)
    tensors = [value for value in wanted.values() if isinstance(value, ShardedTensor)]
    _check_holds(folder, {value.key for value in wanted.values()}, tensors, prefix=prefix)
    loaded = dist_checkpointing.load(wanted, str(folder), validate_access_integrity=False)
    # What is no tensor of the model, such as an optimizer's settings, is loaded whether it is wanted or not.
    _take_up(inner, {name.removeprefix(prefix): loaded[name] for name in names})


def _check_is_checkpoint(folder: Path) -> None:
    try:
        is_checkpoint = dist_checkpointing.check_is_distributed_checkpoint(str(folder))
    except ValueError:
        is_checkpoint = False
    if not is_checkpoint:
        raise ValueError(
            f"{folder} holds no whole checkpoint (its metadata.json is missing or cut short); resume from another one, "
            "or start a new run with another exp_manager.name"
        )


def cut_short(folder: Path) -> list[str]:
    """Return which files of any checkpoint in Megatron's distributed format are shorter than its index says."""
    try:
        index = FileSystemReader(str(folder)).read_metadata()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        return [f"{folder / '.metadata'} cannot be read ({error})"]
    sizes: dict[str, int] = {}
    for place in (index.storage_data or {}).values():
        sizes[place.relative_path] = max(sizes.get(place.relative_path, 0), place.offset + place.length)
    found = [] if zipfile.is_zipfile(folder / "common.pt") else [f"{folder / 'common.pt'} is missing or cut short"]
    for name, size in sorted(sizes.items()):
        held = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if held < size:
            found.append(f"{folder / name} has {held} bytes of {size} or more")
    return found


def _check_holds(folder: Path, names: set[str], wanted: list[ShardedTensor], *, prefix: str) -> None:
    """Raise unless the checkpoint's weights are of these names, and the wanted ones of these shapes.

    The vocabulary may be padded otherwise.
    """
    held = {
        name: tuple(tensor.global_shape)
        for name, tensor in dist_checkpointing.load_tensors_metadata(str(folder)).items()
    }
    missing = sorted(names - held.keys())
    if missing:
        raise ValueError(
            f"checkpoint {folder} has no tensor {missing[0]!r} (of {len(missing)} that are missing); it holds "
            f"{sorted(held)[:3]}: give the prefix before the names if there is one, or the model that it belongs to"
        )
    parts = tuple(prefix + part for part in _PARTS_OF_A_MODEL)
    besides = {name for name in held if name.startswith(parts) and _EXTRA_STATE not in name}
    if extra := sorted(besides - names):
        raise ValueError(
            f"checkpoint {folder} has a tensor {extra[0]!r} (of {len(extra)} besides) that the model's config.json has "
            "no place for; give the model that the checkpoint belongs to"
        )
    for tensor in wanted:
        shape = tuple(tensor.global_shape)
        is_padded = tensor.allow_shape_mismatch and held[tensor.key][1:] == shape[1:] and held[tensor.key] > shape
        if held[tensor.key] != shape and not is_padded:
            raise ValueError(
                f"checkpoint {folder} holds {tensor.key!r} with shape {held[tensor.key]}, but the model's config.json "
                f"makes it {shape}; give the model that the checkpoint belongs to"
            )


def _sharded_state(model: torch.nn.Module, optimizer: ModelOptimizer, *, is_loading: bool) -> dict[str, Any]:
    weights = _sharded_weights(unwrap(model))
    return {
        "model": weights,
        "optimizer": optimizer.sharded_state(weights, _metadata(), is_loading=is_loading),
    }


def _sharded_weights(model: PackedGptModel, *, prefix: str = "") -> dict[str, Any]:
    """Return the weights under names that do not depend on the layer spec."""
    state = model.sharded_state_dict(prefix=prefix, metadata=_metadata())
    return {name: value for name, value in state.items() if not name.endswith(_EXTRA_STATE)}


def _take_up(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith(_EXTRA_STATE)]
    assert not missing and not unexpected, f"missing {missing}, unexpected {unexpected}"
