import socket
import threading
from collections.abc import Iterator

import pytest
import torch

from zs_nemo.weights.handle_transfer import Handles, HandleTransfer
from zs_nemo.weights.transfer import TransferAddress, TransferGroup

CPU = torch.device("cpu")
TENSORS = {f"layer.{index}.weight": torch.randn(index + 1, 7) for index in range(9)} | {"scalar": torch.tensor(3.5)}


def meet(num_receivers: int) -> tuple[TransferGroup, list[TransferGroup]]:
    """Return a sender and its receivers, in this process."""
    address = address_for(num_members=1 + num_receivers)
    members: dict[int, TransferGroup] = {}

    def join(number: int) -> None:
        members[number] = TransferGroup(address, number, CPU)

    run_at_once([lambda number=number: join(number) for number in range(1 + num_receivers)])  # type: ignore[misc]
    return members[0], [members[number] for number in range(1, 1 + num_receivers)]


def address_for(**fields: int) -> TransferAddress:
    """Return an address with a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return TransferAddress(host="127.0.0.1", port=probe.getsockname()[1], **fields)


def run_at_once(calls: list) -> None:
    """Make all calls in threads of their own and wait for them."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("bucket_bytes", [1, 200, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_receiver_gets_every_tensor_whatever_the_buckets(bucket_bytes: int, dtype: torch.dtype) -> None:
    sender, receivers = meet(2)
    came: list[dict[str, torch.Tensor]] = [{}, {}]
    send = lambda: sender.send(iter(TENSORS.items()), dtype=dtype, bucket_bytes=bucket_bytes)  # noqa: E731
    takes = [
        lambda target=target, receiver=receiver: target.update(receiver.receive())  # type: ignore[misc]
        for target, receiver in zip(came, receivers, strict=True)
    ]
    # The group serves again and again.
    for _ in range(2):
        run_at_once([send, *takes])
    for received in came:
        assert list(received) == list(TENSORS)
        for name, tensor in TENSORS.items():
            assert received[name].dtype is dtype and torch.equal(received[name], tensor.to(dtype)), name


class Lent:
    """Stands for memory that two processes see: these members are threads of one."""

    def __init__(self) -> None:
        self.tensors: dict[bytes, torch.Tensor] = {}
        self.handles = Handles(share=self._share, open=self.tensors.__getitem__)

    def _share(self, tensor: torch.Tensor) -> bytes:
        handle = str(id(tensor)).encode()
        self.tensors[handle] = tensor
        return handle


def meet_at(places: list[str], lent: Lent, *, num_senders: int) -> dict[int, HandleTransfer | ValueError]:
    """Return the members at their places, or why one could not join."""
    address = address_for(num_members=len(places), num_senders=num_senders)
    members: dict[int, HandleTransfer | ValueError] = {}

    def join(number: int) -> None:
        try:
            members[number] = HandleTransfer(address, number, place=places[number], handles=lent.handles)
        except ValueError as error:
            members[number] = error

    run_at_once([lambda number=number: join(number) for number in range(len(places))])  # type: ignore[misc]
    return dict(sorted(members.items()))


@pytest.mark.parametrize("bucket_bytes", [1, 200, 2**20])
def test_receivers_copy_what_the_sender_on_their_own_device_lends(bucket_bytes: int) -> None:
    lent = Lent()
    # Three senders on two devices, of which the last one has nobody to serve but a neighbour's; three receivers.
    members = meet_at(["gpu 0", "gpu 1", "gpu 1", "gpu 1", "gpu 0", "gpu 1"], lent, num_senders=3)
    came: dict[int, dict[str, torch.Tensor]] = {number: {} for number in (3, 4, 5)}

    def send(number: int) -> None:
        tensors = ((name, tensor + number) for name, tensor in TENSORS.items())
        members[number].send(tensors, dtype=torch.float32, bucket_bytes=bucket_bytes)  # type: ignore[union-attr]

    def receive(number: int) -> None:
        came[number] = dict(members[number].receive())  # type: ignore[union-attr]

    for _ in range(2):
        sends = [lambda number=number: send(number) for number in range(3)]  # type: ignore[misc]
        run_at_once([*sends, *[lambda number=number: receive(number) for number in came]])  # type: ignore[misc]
        for tensor in lent.tensors.values():
            tensor.zero_()
        for number, sender in ((3, 1), (4, 0), (5, 1)):
            assert list(came[number]) == list(TENSORS)
            for name, tensor in TENSORS.items():
                assert torch.equal(came[number][name], tensor + sender), (number, name)


def test_a_receiver_without_a_sender_on_its_device_is_refused_with_the_remedy() -> None:
    members = meet_at(["gpu 0", "gpu 1", "gpu 0"], Lent(), num_senders=1)
    assert isinstance(members[2], HandleTransfer)
    assert "on a GPU without a training rank; set generation.refit_transport=nccl" in str(members[1])


class LentOnce(Lent):
    """Has room for one bucket."""

    def _share(self, tensor: torch.Tensor) -> bytes:
        if self.tensors:
            raise OSError("no memory is left for a bucket")
        return super()._share(tensor)


@pytest.mark.parametrize("kind", ["broadcast", "handles", "bucket without memory"])
def test_a_sender_that_fails_on_the_way_tells_the_receivers(kind: str) -> None:
    if kind == "broadcast":
        sender, (receiver,) = meet(1)
    else:
        lent = Lent() if kind == "handles" else LentOnce()
        sender, receiver = meet_at(["gpu 0", "gpu 0"], lent, num_senders=1).values()  # type: ignore[assignment]
    errors: list[Exception] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(4)
        yield "b", torch.zeros(4)
        yield "c", torch.zeros(4)
        raise OSError("a rank is gone")

    def guarded(call) -> None:
        try:
            call()
        except (OSError, RuntimeError) as error:
            errors.append(error)

    run_at_once(
        [
            lambda: guarded(lambda: sender.send(tensors(), dtype=torch.float32, bucket_bytes=16)),
            lambda: guarded(lambda: list(receiver.receive())),
        ]
    )
    assert sorted(type(error).__name__ for error in errors) == ["OSError", "RuntimeError"]
    assert any("sender of the weights failed" in str(error) for error in errors)
