"""A reward of a user's own that takes its time, so that a run is sure to be under way when something befalls it."""

import os
import time
from pathlib import Path

from zs_nemo.types.trajectory import Trajectory

GATE = "ZS_NEMO_TEST_GATE"
"""Variable with the path of a file that a run waits for in its third step."""


def slow(trajectory: Trajectory) -> float:
    """Return something that differs between samples, and is the same for the same sample."""
    gate = os.environ.get(GATE)
    while gate and trajectory.key.step == 2 and not Path(gate).exists():
        time.sleep(0.1)
    time.sleep(0.3)
    return sum(trajectory.token_ids) % 10 / 10
