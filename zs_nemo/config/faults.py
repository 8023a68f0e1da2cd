"""Settings of what a run does about processes that die or hang, and about machines on which they keep dying."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class FaultConfig:
    """``faults``. Budgets are those of one start of the command; 0 ends the run at the first fault."""

    max_engine_restarts: int = 3
    """Engines, the policy's and the simulator's together, that are replaced when they die; so many again after a return
    to a checkpoint, which starts all processes anew. Their requests are made again, with the same draws."""
    max_group_restarts: int = 3
    """Returns to the last checkpoint because a training rank died or hung."""
    hang_timeout_s: float = 1800.0
    """So long may a process that was asked for something, or the driver within a step, show no progress. Then the
    stacks of all processes are written into the logs, and the silent ones are ended, and replaced as if they had died.
    Longer than the longest update or export takes; 0 for never. An engine is allowed half of
    ``rollout.trajectory_deadline_s`` at most, but 300 seconds, so that another one can take its place in time."""
    max_deaths_per_node: int = 2
    """A machine on which so many processes of the run have died is named and left out where another one has room; 0
    for never."""

    def __post_init__(self) -> None:
        for name in ("max_engine_restarts", "max_group_restarts", "max_deaths_per_node"):
            if getattr(self, name) < 0:
                raise ValueError(f"faults.{name}={getattr(self, name)} must be 0 (none) or positive")
        if self.hang_timeout_s < 0:
            raise ValueError(f"faults.hang_timeout_s={self.hang_timeout_s:g} must be 0 (never) or positive, in seconds")
