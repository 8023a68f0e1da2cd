import numpy as np
import pytest

from zs_nemo.config.policy import SchedConfig, ScheduleName
from zs_nemo.training.schedule import check_schedule, learning_rate, schedule_of, state_of


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


@pytest.mark.parametrize("max_steps", [7, 40])
@pytest.mark.parametrize("name", list(ScheduleName))
@pytest.mark.parametrize(
    "warmup", [{}, {"warmup_steps": 3}, {"warmup_ratio": 0.25}], ids=["no warm-up", "updates", "share"]
)
def test_every_schedule_is_the_closed_form_of_nemo_s(name: ScheduleName, warmup: dict[str, float], max_steps: int):
    """Over the whole run at once: the smaller of the line that rises and of the curve that falls, clipped."""
    lr, floor, constant = 3e-4, 4e-5, 2 if name is ScheduleName.CosineAnnealing else 0
    num_warmup = {7: 1, 40: 10}[max_steps] if "warmup_ratio" in warmup else warmup.get("warmup_steps", 0)
    step = np.arange(max_steps, dtype=np.float64)
    rise = lr * (step + 1) / (num_warmup + 1)
    share = np.clip((step - num_warmup) / (max_steps - num_warmup - constant), 0, 1)
    fall = {
        "constant": np.full(max_steps, lr),
        "WarmupPolicy": np.full(max_steps, lr),
        "CosineAnnealing": floor + (lr - floor) * np.cos(np.pi * share / 2) ** 2,
        "WarmupAnnealing": lr * (1 - share) + floor * share,
        "InverseSquareRootAnnealing": np.maximum(floor, lr * (rise / lr).clip(min=1) ** -0.5),
    }[name.name]
    sched = SchedConfig(name=name, min_lr=floor, constant_steps=constant, **warmup)
    got = [learning_rate(sched, lr=lr, step=int(each), max_steps=max_steps) for each in step]
    assert got == pytest.approx(np.minimum(rise, fall), rel=1e-12)


def test_the_constant_end_is_made_with_the_floor():
    sched = SchedConfig(name=ScheduleName.CosineAnnealing, constant_steps=3, warmup_steps=1, min_lr=0.25)
    assert rates(sched, 6) == pytest.approx([0.5, 1.0, 0.625, 0.25, 0.25, 0.25, 0.25, 0.25])


def test_the_inverse_square_root_halves_over_four_times_the_updates_down_to_the_floor():
    got = rates(SchedConfig(name=ScheduleName.InverseSquareRootAnnealing, warmup_steps=1, min_lr=0.45), 10)
    assert got[:2] == [0.5, 1.0]
    assert got[7] == pytest.approx(0.5)
    assert got[-1] == 0.45


def test_a_constant_end_that_leaves_no_update_to_anneal_in_is_refused():
    sched = SchedConfig(name=ScheduleName.CosineAnnealing, constant_steps=1000, warmup_steps=10)
    check_schedule(sched, max_steps=1011, group="policy")
    told = r"^critic\.optim\.sched\.constant_steps=1000 .* warm-up of 10 .* none of the run's 1010 updates.*; lower"
    with pytest.raises(ValueError, match=told):
        check_schedule(sched, max_steps=1010, group="critic")
    # Longer than the run, a warm-up alone is no contradiction.
    check_schedule(SchedConfig(warmup_steps=5), max_steps=2, group="policy")


def test_a_checkpoint_keeps_all_of_a_schedule_and_one_of_an_earlier_version_is_read():
    sched = SchedConfig(name=ScheduleName.CosineAnnealing, warmup_ratio=0.5, constant_steps=3, min_lr=0.25)
    assert schedule_of(state_of(sched)) == sched
    earlier = {"name": "CosineAnnealing", "warmup_steps": 4, "min_lr": 0.25}
    assert schedule_of(earlier) == SchedConfig(name=ScheduleName.CosineAnnealing, warmup_steps=4, min_lr=0.25)


def test_a_warm_up_longer_than_the_run_does_not_divide_by_zero():
    assert rates(SchedConfig(name=ScheduleName.CosineAnnealing, warmup_steps=5), 2)[1] == pytest.approx(2 / 6)
    assert learning_rate(SchedConfig(name=ScheduleName.CosineAnnealing), lr=1.0, step=0, max_steps=0) == 1.0
