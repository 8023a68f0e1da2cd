"""Randomness keyed by what it is for, never by the order in which things happen to run.

A run repeats exactly, resumes exactly, and draws the same coins on one machine as on a hundred, because every draw
derives from (run seed, purpose, step, prompt, member, turn) and from nothing else.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


def seed_of_attempt(run_seed: int, attempt: int) -> int:
    """Return the run's seed for draws after its ``attempt``-th return to a checkpoint: what failed is not repeated."""
    return run_seed + attempt * 2**31


@dataclass(frozen=True, kw_only=True)
class SampleKey:
    """Names one trajectory, and with ``turn`` one place in it."""

    run_seed: int
    step: int
    """Training step; an evaluation uses its own negative numbers so that it never shares draws with training."""
    prompt: int
    """Index of the prompt within the step."""
    member: int
    """Index of the sample within its group."""
    turn: int = 0

    def seed(self, purpose: str) -> int:
        """Return a seed in [0, 2**31) for one purpose, such as ``"sampling"`` or ``"noise"``."""
        text = f"{self.run_seed}/{purpose}/{self.step}/{self.prompt}/{self.member}/{self.turn}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 2**31

    def uniform(self, purpose: str) -> float:
        """Return one draw from [0, 1) for one purpose."""
        return float(np.random.default_rng(self.seed(purpose)).random())
