"""Tensors under their names, from processes to others on the same device: handles travel, the values stay in place.

Owns the pairing of members by device, and no model. Which handles those are is a parameter; those of CUDA are here.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from zs_nemo.weights.transfer import TIMEOUT, TransferAddress, TransferGroup, buckets

_END, _FAILED = b"end", b"failed"


@dataclass(frozen=True, kw_only=True)
class Handles:
    """How memory of one process is seen by another one on the same device."""

    share: Callable[[Tensor], bytes]
    """Describes a tensor, which must outlive its use elsewhere."""
    open: Callable[[bytes], Tensor]
    """Returns the tensor that was described, in the memory of the other process."""


def cuda_handles(device: torch.device) -> Handles:
    """Return those of CUDA's interprocess memory, as PyTorch sends tensors between processes."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

    def share(tensor: Tensor) -> bytes:
        return pickle.dumps(reduce_tensor(tensor)[1])

    def open_(handle: bytes) -> Tensor:
        arguments = list(pickle.loads(handle))
        # The two processes may count their visible GPUs differently.
        arguments[_DEVICE_ARGUMENT] = device.index
        tensor: Tensor = rebuild_cuda_tensor(*arguments)
        return tensor

    return Handles(share=share, open=open_)


_DEVICE_ARGUMENT = 6
"""Of ``rebuild_cuda_tensor``: the index of the device."""


def cuda_place(device: torch.device) -> str:
    """Return what names a GPU in every process that sees it."""
    return str(torch.cuda.get_device_properties(device).uuid)


class HandleTransfer:
    """One member's end. Senders count from 0, receivers follow; all of them must be made at the same time."""

    def __init__(self, address: TransferAddress, number: int, *, place: str, handles: Handles) -> None:
        """Meet the others. ``place`` names the device; the first sender at a place serves all receivers there.

        Raises ``ValueError`` for a receiver without a sender at its place.
        """
        self._number, self._place, self._handles = number, place, handles
        self._round = 0
        self._store = TCPStore(address.host, address.port, address.num_members, number == 0, timeout=TIMEOUT)
        self._store.set(f"place/{number}", place)
        places = [self._store.get(f"place/{other}").decode() for other in range(address.num_members)]
        senders, receivers = range(address.num_senders), range(address.num_senders, address.num_members)
        first = next((sender for sender in senders if places[sender] == place), None)
        if number in receivers and first is None:
            raise ValueError(
                "generation.refit_transport=cuda_ipc, but an engine of the policy is on a GPU without a training rank; "
                "set generation.refit_transport=nccl or shared_memory"
            )
        self._sender = first
        self._receivers = [other for other in receivers if places[other] == place] if number == first else []

    def send(self, tensors: Iterator[tuple[str, Tensor]], *, dtype: torch.dtype, bucket_bytes: int) -> None:
        """Lend everything in ``dtype`` to the receivers here, in buckets of about ``bucket_bytes``.

        Exhausts the iterator also where nobody receives. An error of it reaches the receivers before it is raised.
        """
        self._round += 1
        number = 0
        try:
            for bucket in buckets(tensors, bucket_bytes // dtype.itemsize):
                if self._receivers:
                    self._lend(number, bucket, dtype)
                number += 1
        except BaseException:
            # A bucket that was not lent is waited for itself, one that was is followed by a wait for the next.
            for waited_for in (number, number + 1):
                self._put(self._key(waited_for), _FAILED)
            raise
        self._put(self._key(number), _END)

    def _lend(self, number: int, bucket: list[tuple[str, Tensor]], dtype: torch.dtype) -> None:
        payload = torch.cat([tensor.reshape(-1).to(dtype) for _, tensor in bucket])
        if payload.is_cuda:
            torch.cuda.synchronize(payload.device)
        shapes = [(name, list(tensor.shape)) for name, tensor in bucket]
        header = json.dumps(shapes).encode()
        key = self._key(number)
        self._put(key, len(header).to_bytes(8, "little") + header + self._handles.share(payload))
        taken = [f"{key}/taken by {receiver}" for receiver in self._receivers]
        self._store.wait(taken, TIMEOUT)
        for used in (key, *taken):
            self._store.delete_key(used)

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the sender here lends, to the end, as copies. Raises ``RuntimeError`` when it fails on the way."""
        self._round += 1
        number = 0
        while (message := self._store.get(self._key(number))) not in (_END, _FAILED):
            length = int.from_bytes(message[:8], "little")
            shapes = [(name, torch.Size(shape)) for name, shape in json.loads(message[8 : 8 + length])]
            # The sender's memory is its own again once this is said to be taken.
            payload = self._handles.open(message[8 + length :]).clone()
            if payload.is_cuda:
                torch.cuda.synchronize(payload.device)
            self._put(f"{self._key(number)}/taken by {self._number}", b"")
            parts = payload.split([shape.numel() for _, shape in shapes])
            yield from ((name, part.view(shape)) for (name, shape), part in zip(shapes, parts, strict=True))
            number += 1
        if message == _FAILED:
            raise RuntimeError("the sender of the weights failed on the way; see its log")

    def _put(self, key: str, value: bytes) -> None:
        # PyTorch's stub knows strings alone.
        self._store.set(key, value)  # type: ignore[arg-type]

    def _key(self, bucket: int) -> str:
        return f"{self._round}/{self._sender}/{bucket}"


def join_transfer(address: TransferAddress, number: int, device: torch.device) -> TransferGroup | HandleTransfer:
    """Become a member of the kind of group that the address names; returns when all have."""
    if not address.shares_devices:
        return TransferGroup(address, number, device)
    return HandleTransfer(address, number, place=cuda_place(device), handles=cuda_handles(device))
