"""The parts of a run whose steps and searches are counted apart."""

from enum import Enum


class Phase(Enum):
    """A part of a run, in the order in which they happen."""

    warm_start = "warm_start"
    rl = "rl"
    evaluation = "evaluation"


PHASE_ORDER = (Phase.warm_start, Phase.rl, Phase.evaluation)
