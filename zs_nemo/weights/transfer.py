"""Tensors under their names, from one process to many others of another world, over a process group of their own.

Owns the group and the buckets, and no model: both sides bring or take an iterator. NCCL between GPUs, gloo without.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, TCPStore  # type: ignore[attr-defined]

_SENDER = 0
TIMEOUT = timedelta(minutes=10)
"""Longest wait for the other side; a sender gathers a whole bucket from its ranks in between."""
_FAILED = -1


@dataclass(frozen=True, kw_only=True)
class TransferAddress:
    """Where the members of a group meet, and how many they are. Number 0 is a sender and listens there."""

    host: str
    port: int
    num_members: int
    num_senders: int = 1
    shares_devices: bool = False
    """Whether senders serve receivers on their own GPU, through handles, instead of all by broadcast."""


class TransferGroup:
    """One member's end. All members must be made at the same time: each waits for the others."""

    def __init__(self, address: TransferAddress, number: int, device: torch.device) -> None:
        """Meet the others. ``number`` counts the members; ``device`` is where this one's tensors lie."""
        self._device = device
        store = TCPStore(address.host, address.port, address.num_members, number == _SENDER, timeout=TIMEOUT)
        self._group = _backend(PrefixStore("zs_nemo", store), number, address.num_members, device)

    def send(self, tensors: Iterator[tuple[str, Tensor]], *, dtype: torch.dtype, bucket_bytes: int) -> None:
        """Send everything in ``dtype``, in buckets of about ``bucket_bytes``; a larger tensor has one of its own.

        An error of the iterator reaches the receivers before it is raised here.
        """
        try:
            for bucket in buckets(tensors, bucket_bytes // dtype.itemsize):
                self._send_bucket(bucket, dtype)
        except BaseException:
            self._broadcast(torch.tensor([_FAILED, 0], dtype=torch.int64))
            raise
        self._broadcast(torch.tensor([0, 0], dtype=torch.int64))

    def _send_bucket(self, bucket: list[tuple[str, Tensor]], dtype: torch.dtype) -> None:
        shapes = [(name, list(tensor.shape)) for name, tensor in bucket]
        header = {"dtype": str(dtype).removeprefix("torch."), "tensors": shapes}
        tensors = [tensor for _, tensor in bucket]
        encoded = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        payload = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=self._device)
        for target, tensor in zip(payload.split([tensor.numel() for tensor in tensors]), tensors, strict=True):
            target.copy_(tensor.reshape(-1))
        self._broadcast(torch.tensor([encoded.numel(), payload.numel()], dtype=torch.int64))
        self._broadcast(encoded)
        self._broadcast(payload)

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is sent, to the end. Raises ``RuntimeError`` when the sender failed on the way."""
        while True:
            header_bytes, num_values = self._broadcast(torch.zeros(2, dtype=torch.int64)).tolist()
            if header_bytes == _FAILED:
                raise RuntimeError("the sender of the weights failed on the way; see its log")
            if header_bytes == 0:
                return
            encoded = self._broadcast(torch.zeros(header_bytes, dtype=torch.uint8))
            header = json.loads(bytes(encoded.tolist()))
            # A buffer of its own for every bucket: who receives may hold on to the tensors.
            payload = self._broadcast(torch.empty(num_values, dtype=getattr(torch, header["dtype"])))
            shapes = [(name, torch.Size(shape)) for name, shape in header["tensors"]]
            parts = payload.split([shape.numel() for _, shape in shapes])
            yield from ((name, part.view(shape)) for (name, shape), part in zip(shapes, parts, strict=True))

    def _broadcast(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self._device)
        options = BroadcastOptions()
        options.rootRank = _SENDER
        self._group.broadcast([tensor], options).wait()
        return tensor


def _backend(store: PrefixStore, number: int, num_members: int, device: torch.device) -> Any:
    """Build the group directly: ``init_process_group`` knows one world a process, and the members are of several."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options = torch.distributed.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return torch.distributed.ProcessGroupNCCL(store, number, num_members, options)
    return torch.distributed.ProcessGroupGloo(store, number, num_members, timeout=TIMEOUT)


def buckets(tensors: Iterator[tuple[str, Tensor]], max_values: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield lists of tensors with at most ``max_values`` values together, or a single larger one."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.numel() > max_values:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.numel()
    if bucket:
        yield bucket
