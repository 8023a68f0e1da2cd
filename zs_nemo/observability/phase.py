"""The parts of a run whose steps and searches are counted apart."""

from enum import Enum


class Phase(Enum):
    """A part of a run, in the order in which they happen."""

    warm_start = "warm_start"
    """Supervised steps; a fine-tuning consists of nothing else."""
    rl = "rl"
    evaluation = "evaluation"

    def metric(self, name: str) -> str:
        """Return a metric's name with the phase in front, unless it is reinforcement learning."""
        return name if self is Phase.rl else f"{self.value}/{name}"


PHASE_ORDER = (Phase.warm_start, Phase.rl, Phase.evaluation)
