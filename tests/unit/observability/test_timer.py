import pytest

from zs_nemo.observability.timer import StageTimer, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_inside_a_stage_stops_the_outer_clock() -> None:
    clock = Clock()
    timer = StageTimer(clock=clock)
    with timer("evaluation"):
        clock.now += 3
        with timer("refit"):
            clock.now += 1
        clock.now += 2
    clock.now += 10
    assert timer.totals == {"evaluation": 5, "refit": 1}
    assert timer.wall_s == 16


def test_take_gives_the_times_of_one_step() -> None:
    clock = Clock()
    timer = StageTimer(clock=clock)
    for seconds in (2, 5):
        with timer("rollout"):
            clock.now += seconds
        assert timer.take() == {"rollout": seconds}
    assert timer.take() == {}
    assert timer.totals == {"rollout": 7}


def test_a_stage_that_raises_is_counted_and_closed() -> None:
    clock = Clock()
    seen: list[str] = []
    timer = StageTimer(on_stage=seen.append, clock=clock)
    with pytest.raises(RuntimeError), timer("train"):
        clock.now += 4
        raise RuntimeError
    clock.now += 9
    assert timer.totals == {"train": 4}
    assert seen == ["train", ""]


def test_durations_read_like_a_clock() -> None:
    assert [duration(value) for value in (0, 59.6, 61, 3600 + 61)] == ["0:00", "1:00", "1:01", "1:01:01"]
