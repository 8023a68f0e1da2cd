"""Learning rates over steps, by NeMo's names and formulas."""

import math
from dataclasses import asdict
from typing import Any

from zs_nemo.config.policy import SchedConfig, ScheduleName


def learning_rate(sched: SchedConfig, *, lr: float, step: int, max_steps: int) -> float:
    """Return the learning rate of update ``step``, counted from 0, of ``max_steps``.

    Linear warm-up never starts at 0 but at lr / (warm-up + 1), so that no update is wasted; NeMo's does with
    ``constant_steps``. After it ``CosineAnnealing`` follows a half cosine from lr to min_lr, ``WarmupAnnealing`` a
    straight line, and they stay there. ``InverseSquareRootAnnealing`` is not laid out for ``max_steps``; ours has
    min_lr for its floor, which NeMo's meets past ``max_steps`` alone.
    """
    warmup = warmup_updates(sched, max_steps)
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if sched.name in (ScheduleName.constant, ScheduleName.WarmupPolicy):
        return lr
    if sched.name is ScheduleName.InverseSquareRootAnnealing:
        return max(sched.min_lr, lr * math.sqrt((warmup + 1) / (step + 1)))
    share = min(1.0, (step - warmup) / max(1, max_steps - warmup - sched.constant_steps))
    remaining = 0.5 * (1 + math.cos(math.pi * share)) if sched.name is ScheduleName.CosineAnnealing else 1 - share
    return sched.min_lr + (lr - sched.min_lr) * remaining


def warmup_updates(sched: SchedConfig, max_steps: int) -> int:
    """Return the updates of the warm-up, of ``max_steps``."""
    return sched.warmup_steps if sched.warmup_ratio is None else int(sched.warmup_ratio * max_steps)


def state_of(sched: SchedConfig) -> dict[str, Any]:
    """Return a schedule as plain values, for a checkpoint."""
    return asdict(sched) | {"name": sched.name.name}


def schedule_of(state: dict[str, Any]) -> SchedConfig:
    """Return the schedule that ``state_of`` was given; what the state of an earlier version lacks is as by default."""
    return SchedConfig(**state | {"name": ScheduleName[state["name"]]})


def check_schedule(sched: SchedConfig, *, max_steps: int, group: str) -> None:
    """Raise ``ValueError`` when a constant end leaves no update to anneal in. ``group`` is where the settings stand."""
    warmup = warmup_updates(sched, max_steps)
    if sched.constant_steps and warmup + sched.constant_steps >= max_steps:
        raise ValueError(
            f"{group}.optim.sched.constant_steps={sched.constant_steps} and a warm-up of {warmup} updates leave none "
            f"of the run's {max_steps} updates to anneal in; lower one of the two, or raise trainer.max_steps"
        )
