import io

import pytest
from rich.console import Console

from zs_nemo.observability.progress import Progress, sparkline

STEP = {"reward/mean": 0.25, "curriculum/noise": 0.1, "rollout/searches_per_episode": 1.5}
EVALUATION = {"f1": 0.5, "f1_ci95": [0.4, 0.6], "em": 0.3, "n": 320}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None, legacy_windows=False)


def text_of(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_without_a_terminal_every_step_is_one_plain_line() -> None:
    target, clock = console(terminal=False), Clock()
    with Progress("run", target, clock) as progress:
        progress.begin("training", 12, done=4)
        clock.now = 60
        progress.advance(STEP)
        progress.evaluated("before_bm25_greedy", EVALUATION)
    lines = text_of(target).splitlines()
    assert lines[0] == "training: 12 steps, going on after 4"
    assert lines[1] == (
        "training 5/12  reward 0.250  noise 10%  searches/episode 1.50  1:00 elapsed, 7:00 left of training"
    )
    assert lines[2] == "evaluation before_bm25_greedy  F1 0.500 [0.400, 0.600]  EM 0.300  n 320"
    assert "\x1b" not in text_of(target)


def test_the_panel_shows_stage_step_reward_and_time_left() -> None:
    target, clock = console(terminal=True), Clock()
    progress = Progress("my run", target, clock)
    progress.begin("training", 10)
    for step in range(4):
        clock.now += 30
        progress.advance(STEP | {"reward/mean": 0.1 * step})
    progress.stage("rollout")
    progress.evaluated("before_bm25_greedy", EVALUATION)
    target.print(progress.render())
    shown = text_of(target)
    for part in (
        "my run",
        "training · rollout",
        "4/10",
        "2:00 elapsed, 3:00 left",
        "reward 0.300",
        "noise 10%",
        "▁▃▆█",
    ):
        assert part in shown
    assert "F1 0.500" in shown


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, RuntimeError])
def test_the_cursor_is_visible_while_it_runs_and_after_any_ending(ending: type[BaseException] | None) -> None:
    target = console(terminal=True)

    def session() -> None:
        with Progress("run", target) as progress:
            progress.begin("training", 2)
            during.append(text_of(target))
            if ending is not None:
                raise ending

    during: list[str] = []
    if ending is None:
        session()
    else:
        with pytest.raises(ending):
            session()
    for text in (during[0], text_of(target)):
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([3.0, 3.0]) == "▁▁"
