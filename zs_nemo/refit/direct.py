"""Refit from the memory of the training ranks into that of the engines: by broadcast or by handles, without a file.

Owns the order of events. The group at both ends is ``weights.transfer``'s (``nccl``: from the first rank to engines on
other GPUs and machines; gloo where there are no GPUs) or ``weights.handle_transfer``'s (``cuda_ipc``: from every rank
to the engines on its own GPU).
"""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Protocol

from zs_nemo.weights.transfer import TransferAddress


class WeightSender(Protocol):
    """The side that trains."""

    def join_refit(self, address: TransferAddress) -> None:
        """Become the first members of the group; returns when all have."""
        ...

    def send_refit(self) -> None:
        """Send all weights by their Hugging Face names."""
        ...


class WeightTaker(Protocol):
    """The side that generates."""

    def join_refit(self, address: TransferAddress) -> None:
        """Become the other members of the group; returns when all have."""
        ...

    def receive_weights(self, version: int) -> None:
        """Take over the weights that are sent; return when every engine has them."""
        ...


class DirectRefit:
    """Carries the policy's weights into the generation engines."""

    def __init__(self, sender: WeightSender, taker: WeightTaker, address: TransferAddress) -> None:
        """Join both sides into one group at ``address``, where the sender must be able to listen."""
        self._sender, self._taker = sender, taker
        _both(lambda: sender.join_refit(address), lambda: taker.join_refit(address))

    def refit(self, version: int) -> None:
        """Give the engines the policy's current weights and stamp them with ``version``."""
        _both(self._sender.send_refit, lambda: self._taker.receive_weights(version))


def _both(*calls: Callable[[], None]) -> None:
    """Make both calls at once. The first failure is raised at once: the other side then waits for what never comes."""
    pool = ThreadPoolExecutor(len(calls))
    try:
        futures = [pool.submit(call) for call in calls]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        pool.shutdown(wait=False)
