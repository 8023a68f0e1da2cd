"""A reward of a user's own that takes its time, so that a run is sure to be under way when something befalls it."""

import time

from zs_nemo.types.trajectory import Trajectory


def slow(trajectory: Trajectory) -> float:
    """Return something that differs between samples, and is the same for the same sample."""
    time.sleep(0.5)
    return sum(trajectory.token_ids) % 10 / 10
