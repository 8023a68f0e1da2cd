"""Engines that have something to do get the cores of those that wait, where both compute on the same CPU."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from zs_nemo.cluster.engine_pool import EnginePool


class CoreLoan:
    """While open, nothing but engines computes, and a pool of them that is busy alone has all their cores.

    Episodes begin together, so at first the simulator waits for the policy's queries; in the end a few long ones are
    left, and one pool has nothing to do.
    """

    def __init__(self, threads_alone: Mapping[EnginePool, int], *, shared: int) -> None:
        """``threads_alone`` are those of one engine of each pool while no other pool is busy, ``shared`` otherwise."""
        self._threads_alone = threads_alone
        self._shared = shared

    def __enter__(self) -> Self:
        for pool in self._threads_alone:
            pool.on_turn = self._share_out
        self._share_out()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._threads_alone:
            pool.on_turn = None
            if error is None:
                # After an error nothing is set back: the run ends, and a dead engine's refusal would hide why.
                pool.set_threads(self._shared)

    def _share_out(self) -> None:
        busy = [pool for pool in self._threads_alone if pool.is_busy]
        for pool in busy:
            pool.lend_threads(self._threads_alone[pool] if len(busy) == 1 else self._shared)
