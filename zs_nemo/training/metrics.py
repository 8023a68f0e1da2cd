"""Sums of a step's metrics over micro-batches and ranks."""

import torch
from torch import Tensor

MAX_SUFFIX = "_max"


class MetricSums:
    """Collects metrics that are sums over tokens, or maxima where the name ends in ``_max``."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Tensor]] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add those of one micro-batch, which a GPU may still be computing."""
        self._parts.append({name: value.detach() for name, value in metrics.items()})

    def reduced(self, *, counts: bool, normalizer: float) -> dict[str, float]:
        """Return the whole step's, sums divided by ``normalizer``; collective, the same on every rank.

        ``counts`` is False on ranks whose values repeat those of another rank.
        """
        own: dict[str, float] = {}
        for part in self._parts if counts else []:
            merge(own, {name: float(value) for name, value in part.items()})
        everyone: list[dict[str, float]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, own)
        total: dict[str, float] = {}
        for values in everyone:
            merge(total, values)
        return {name: value if name.endswith(MAX_SUFFIX) else value / normalizer for name, value in total.items()}


def merge(total: dict[str, float], values: dict[str, float]) -> None:
    """Add ``values`` into ``total``, by maximum where the name ends in ``_max``."""
    for name, value in values.items():
        if name not in total:
            total[name] = value
        elif name.endswith(MAX_SUFFIX):
            total[name] = max(total[name], value)
        else:
            total[name] += value
