"""Prices, for the account in the report."""

import math
from dataclasses import dataclass, fields


@dataclass(kw_only=True)
class CostConfig:
    """``cost``: prices in US dollars. They change nothing but the report; 0 stands for a price that is not known."""

    usd_per_gpu_hour: float = 1.475
    """Four of them for twelve hours are the published $70.80 (arXiv 2505.04588)."""
    usd_per_core_hour: float = 0.0425
    """Of a CPU core, on machines without GPUs; AWS asks $0.34 an hour for eight (c5.2xlarge, on demand)."""
    usd_per_1000_searches: float = 275 / 30
    """Of a search engine that is paid by the search; 64,000 at this price are the published $586.70."""
    usd_per_million_prompt_tokens: float = 0.0
    """What a model behind an endpoint that is not the run's own asks for reading: a simulator, the judge of a
    collection, an evaluated policy."""
    usd_per_million_completion_tokens: float = 0.0
    """What it asks for writing."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"cost.{field.name}={value} is a price and must be 0 (not known) or positive")
