"""Writes the shards of a megatron-core checkpoint in this process, one tensor at a time."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO, IOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from megatron.core.dist_checkpointing.strategies import torch as torch_strategies
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageWriterTransforms, _write_item
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult


@dataclass(kw_only=True)
class WriteSession:
    """One writing of shards by this rank."""

    changing: frozenset[int] = frozenset()
    """Addresses of the storages that go on changing while the shards are written; they are copied beforehand."""
    written: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(bytes, CRC-32) of each file, by its name."""


class StreamingWriter(FileSystemWriterAsync):
    """megatron-core's writer forks helpers, spawns a manager process and first copies all tensors that are views.

    Inside an actor, with its threads and without a main module to import again, the helpers may hang; the copies double
    the memory of a checkpoint. This one does neither. The files are the same.
    """

    def __init__(self, *args: Any, session: WriteSession, **options: Any) -> None:
        super().__init__(*args, **options)
        self._session = session

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Note what to write, with copies of what will have changed by then."""
        self._results: list[WriteResult] = []
        self._name = f"{plan.storage_data.prefix}0.distcp"
        # Bytes come first in a file of this format.
        items = sorted(plan.items, key=lambda item: item.type is not WriteItemType.BYTE_IO)
        self._data = [(item, self._kept(planner.resolve_data(item))) for item in items]

    def _kept(self, data: torch.Tensor | BytesIO) -> torch.Tensor | BytesIO:
        if not isinstance(data, torch.Tensor) or data.untyped_storage().data_ptr() not in self._session.changing:
            return data
        copy = data.detach().cpu()
        return copy.clone() if copy.data_ptr() == data.data_ptr() else copy

    def get_save_function_and_args(self) -> tuple[Callable[[], None], None, list[Any]]:
        """Return the function that writes, nothing to call before it, and its arguments."""
        return self._write, None, []

    def _write(self) -> None:
        if not self._data:
            return
        with open(Path(self.checkpoint_dir) / self._name, "wb") as file:
            stream = _CheckedStream(file)
            try:
                while self._data:
                    item, data = self._data.pop(0)
                    self._results.append(_write(stream, item, data, self._name))
            except RuntimeError as error:
                # PyTorch closes its archive all the same, and fails with what it then finds at the wrong place.
                raise stream.failure or error from error
            file.flush()
            os.fsync(file.fileno())
            self._session.written[self._name] = (file.tell(), stream.crc32)

    def retrieve_write_results(self) -> list[WriteResult]:
        """Return what was written where."""
        return self._results


class _CheckedStream:
    """A file being written from its beginning to its end, with the CRC-32 of what has been written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc32 = 0
        self.failure: OSError | None = None
        """Why something could not be written, such as a full disk."""

    def write(self, data: Any) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


def _write(stream: _CheckedStream, item: WriteItem, data: torch.Tensor | BytesIO, name: str) -> WriteResult:
    if isinstance(data, torch.Tensor):
        data = _compact(data)
    form = SerializationFormat.TORCH_SAVE
    target = cast(IOBase, stream)
    return _write_item(_StorageWriterTransforms(), target, data, item, name, serialization_format=form)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on CPU, copied if it is a view: the format writes the whole storage behind a tensor."""
    tensor = tensor.detach().cpu()
    is_view = tensor.untyped_storage().size() != tensor.numel() * tensor.itemsize
    return tensor.clone() if is_view else tensor


@contextlib.contextmanager
def streaming_writes(session: WriteSession) -> Iterator[None]:
    """Have megatron-core's save strategy use the writer above."""
    torch_strategies.FileSystemWriterAsync = partial(StreamingWriter, session=session)
    try:
        yield
    finally:
        torch_strategies.FileSystemWriterAsync = FileSystemWriterAsync
