import pytest

from zs_nemo.config.policy import SchedConfig, ScheduleName
from zs_nemo.training.schedule import learning_rate


def rates(sched: SchedConfig, max_steps: int) -> list[float]:
    return [learning_rate(sched, lr=1.0, step=step, max_steps=max_steps) for step in range(max_steps + 2)]


def test_warm_up_rises_in_even_steps_and_never_wastes_the_first_update():
    assert rates(SchedConfig(warmup_steps=3), 5) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_cosine_annealing_falls_from_lr_through_the_middle_to_the_floor():
    got = rates(SchedConfig(name=ScheduleName.CosineAnnealing, min_lr=0.2), 4)
    assert got == pytest.approx([1.0, 0.2 + 0.8 * (1 + 2**-0.5) / 2, 0.6, 0.2 + 0.8 * (1 - 2**-0.5) / 2, 0.2, 0.2])


def test_warmup_annealing_falls_in_a_straight_line_after_the_warm_up():
    got = rates(SchedConfig(name=ScheduleName.WarmupAnnealing, warmup_steps=1), 5)
    assert got == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_a_warm_up_longer_than_the_run_does_not_divide_by_zero():
    assert rates(SchedConfig(name=ScheduleName.CosineAnnealing, warmup_steps=5), 2)[1] == pytest.approx(2 / 6)
    assert learning_rate(SchedConfig(name=ScheduleName.CosineAnnealing), lr=1.0, step=0, max_steps=0) == 1.0
