"""Settings of the reward."""

import math
from dataclasses import dataclass, fields


@dataclass(kw_only=True)
class RewardConfig:
    """``reward``: a weighted sum of terms, each a number for a whole trajectory (``zs_nemo/rollout/rewards.py``)."""

    f1: float = 1.0
    """Weight of the answer's token F1."""
    exact_match: float = 0.0
    """Weight of strict exact match."""
    retrieval_diversity: float = 0.0
    """Weight of how little a trajectory's queries repeat one another."""
    function: str = ""
    """Import path of your own term, as ``package.module.function``; empty for none."""
    function_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in self.weights().items():
            if not math.isfinite(value):
                raise ValueError(f"reward.{name}={value} must be a finite number")
        if not any(self.weights().values()):
            raise ValueError("all weights in reward are 0, which rewards nothing; set one, such as reward.f1=1")

    def weights(self) -> dict[str, float]:
        """Return weight by term; the user's own under its import path."""
        own = ("function", "function_weight")
        weights = {field.name: float(getattr(self, field.name)) for field in fields(self) if field.name not in own}
        return weights | ({self.function: self.function_weight} if self.function else {})
