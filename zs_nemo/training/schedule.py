"""Learning rates over steps, by NeMo's names and formulas."""

import math

from zs_nemo.config.policy import SchedConfig, ScheduleName


def learning_rate(sched: SchedConfig, *, lr: float, step: int, max_steps: int) -> float:
    """Return the learning rate of update ``step``, counted from 0, of ``max_steps``.

    Linear warm-up never starts at 0 but at lr / (warmup_steps + 1), so that no update is wasted. After it:
    ``CosineAnnealing`` follows a half cosine from lr to min_lr, ``WarmupAnnealing`` a straight line, ``constant``
    stays. Past ``max_steps`` the annealing schedules stay at min_lr.
    """
    warmup = sched.warmup_steps
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if sched.name is ScheduleName.constant:
        return lr
    share = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    remaining = 0.5 * (1 + math.cos(math.pi * share)) if sched.name is ScheduleName.CosineAnnealing else 1 - share
    return sched.min_lr + (lr - sched.min_lr) * remaining
