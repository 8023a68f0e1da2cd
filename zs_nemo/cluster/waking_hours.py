"""Engines that sleep while the ranks train: what both share of a GPU's memory, each has in its turn."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from zs_nemo.cluster.engine_pool import EnginePool
from zs_nemo.cluster.rank_groups import CriticGroup, PolicyGroup


class WakingHours:
    """While open, these engines are awake; before and after, they are not."""

    def __init__(self, pools: Sequence[EnginePool], ranks: Sequence[PolicyGroup | CriticGroup]) -> None:
        """``ranks`` are all that may hold memory which the engines wake up in."""
        self._pools = pools
        self._ranks = ranks

    def wake(self, pools: Sequence[EnginePool]) -> None:
        """Have the ranks free what they keep for their next update, then wake those of ``pools`` that sleep."""
        asleep = [pool for pool in pools if pool.is_asleep]
        if asleep:
            for group in self._ranks:
                group.release_memory()
        for pool in asleep:
            pool.wake()

    def sleep(self) -> None:
        """Send all to sleep."""
        for pool in self._pools:
            pool.sleep()

    def __enter__(self) -> Self:
        self.wake(self._pools)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # After an error the run ends, and a dead engine's refusal would hide why.
            self.sleep()
