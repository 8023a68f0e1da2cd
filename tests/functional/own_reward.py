"""A user's own reward, named by its import path in ``reward.function``."""

from zs_nemo.types.trajectory import Trajectory


def brevity(trajectory: Trajectory) -> float:
    """Return more for fewer policy tokens, in (0, 1]: it differs between samples of a model that knows nothing yet."""
    return 1 / (1 + trajectory.num_policy_tokens / 50)
