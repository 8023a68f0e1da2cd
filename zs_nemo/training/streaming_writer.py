"""Writes the shards of a megatron-core checkpoint in this process, one tensor at a time."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import torch as torch_strategies
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageWriterTransforms, _write_item
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult


class StreamingWriter(FileSystemWriterAsync):
    """megatron-core's writer forks helpers, spawns a manager process and first copies all tensors that are views.

    Inside an actor, with its threads and without a main module to import again, the helpers may hang; the copies double
    the memory of a checkpoint. This one does neither. The files are the same.
    """

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Note what to write; nothing is copied yet."""
        self._plan, self._planner = plan, planner
        self._results: list[WriteResult] = []

    def get_save_function_and_args(self) -> tuple[Callable[[], None], None, list[Any]]:
        """Return the function that writes, nothing to call before it, and its arguments."""
        return self._write, None, []

    def _write(self) -> None:
        items = self._plan.items
        if not items:
            return
        name = f"{self._plan.storage_data.prefix}0.distcp"
        with open(Path(self.checkpoint_dir) / name, "wb") as stream:
            # Bytes come first in a file of this format.
            for item in sorted(items, key=lambda item: item.type is not WriteItemType.BYTE_IO):
                data = self._planner.resolve_data(item)
                if isinstance(data, torch.Tensor):
                    data = _compact(data)
                transforms = _StorageWriterTransforms()
                self._results.append(
                    _write_item(
                        transforms, stream, data, item, name, serialization_format=SerializationFormat.TORCH_SAVE
                    )
                )
            stream.flush()
            os.fsync(stream.fileno())

    def retrieve_write_results(self) -> list[WriteResult]:
        """Return what was written where."""
        return self._results


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on CPU, copied if it is a view: the format writes the whole storage behind a tensor."""
    tensor = tensor.detach().cpu()
    is_view = tensor.untyped_storage().size() != tensor.numel() * tensor.itemsize
    return tensor.clone() if is_view else tensor


@contextlib.contextmanager
def streaming_writes() -> Iterator[None]:
    """Have megatron-core's save strategy use the writer above."""
    torch_strategies.FileSystemWriterAsync = StreamingWriter
    try:
        yield
    finally:
        torch_strategies.FileSystemWriterAsync = FileSystemWriterAsync
