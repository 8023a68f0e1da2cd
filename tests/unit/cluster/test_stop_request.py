"""A signal ends a run after the step that is under way, with a checkpoint of it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from zs_nemo.cluster import terminal, training_run
from zs_nemo.cluster.checkpoints import CheckpointFolder
from zs_nemo.cluster.stop_request import StoppedBySignal, StopRequest
from zs_nemo.cluster.training_run import TrainingRun
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.curriculum import NoiseCurriculum
from zs_nemo.observability.timer import StageTimer


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopRequest]:
    """Listen in place of the process's own, and put the handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    stop = StopRequest()
    monkeypatch.setattr(training_run, "PROCESS_STOP", stop)
    monkeypatch.setattr(terminal, "PROCESS_STOP", stop)
    stop.listen()
    yield stop
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


class Ranks:
    """Writes a file where the workers write weights."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    def save_checkpoint(self, folder: str, *, in_background: bool) -> None:
        Path(folder).mkdir()
        self.saved.append(Path(folder).parent.name)

    def finish_saving(self) -> None:
        if self.saved[-1] == "step_000003.partial":
            # The signal that follows a request must not tear the checkpoint that was asked for.
            send(signal.SIGTERM)


def run_of(tmp_path: Path, *, every: int, max_steps: int = 6) -> TrainingRun:
    """Return a run as it is after its start, without processes."""
    run = object.__new__(TrainingRun)
    cfg = GrpoRecipeConfig()
    cfg.trainer.max_steps, cfg.exp_manager.save_every_n_steps = max_steps, every
    nothing: Any = SimpleNamespace(
        begin=lambda *_: None, save_progress=lambda *_, **__: None, state=lambda: {}, peak_gib=0.0
    )
    run.system = SimpleNamespace(policy=Ranks(), critic=None, accounts=lambda **spent: {})  # type: ignore[assignment]
    run.curriculum = NoiseCurriculum.from_config(cfg.curriculum, max_steps=max_steps)
    run.timer = StageTimer()
    run._cfg, run._progress, run._run_dir, run._ledger, run._memory = cfg, nothing, nothing, nothing, nothing
    run._checkpoints = CheckpointFolder(tmp_path, keep=3)
    run._next_step, run._saved_step, run._saving = 0, 0, None
    return run


def train(run: TrainingRun, signals: dict[int, signal.Signals]) -> list[int]:
    """Go through the steps of a run as a recipe does, with signals in some of them; return the finished ones."""
    done = []
    with pytest.raises(StoppedBySignal):
        for step in run.steps():
            if step in signals:
                send(signals[step])
            run._next_step = step + 1
            if run._next_step % run._cfg.exp_manager.save_every_n_steps == 0:
                run._save(run._next_step)
            done.append(step)
    return done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_within_a_step_lets_it_end_and_saves_it(
    stop: StopRequest, tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, every=100)
    assert train(run, {2: number}) == [0, 1, 2]
    assert run._checkpoints.whole() == [3]
    assert f"{number.name}: the run ends after this step" in capfd.readouterr().err


def test_a_step_that_is_saved_anyway_is_not_saved_twice(stop: StopRequest, tmp_path: Path) -> None:
    run = run_of(tmp_path, every=2)
    assert train(run, {3: signal.SIGUSR1}) == [0, 1, 2, 3]
    assert run._checkpoints.whole() == [2, 4]
    assert run.system.policy.saved == ["step_000002.partial", "step_000004.partial"]  # type: ignore[attr-defined]


def test_a_signal_in_the_last_step_ends_the_run_before_its_evaluation(stop: StopRequest, tmp_path: Path) -> None:
    run = run_of(tmp_path, every=100, max_steps=2)
    assert train(run, {1: signal.SIGUSR1}) == [0, 1]
    assert run._checkpoints.whole() == [2]


def test_sigterm_after_a_request_ends_the_run_within_the_step(stop: StopRequest, tmp_path: Path) -> None:
    run = run_of(tmp_path, every=100)
    reached = []
    with pytest.raises(StoppedBySignal):
        for step in run.steps():
            send(signal.SIGUSR1)
            send(signal.SIGUSR1)
            reached.append(step)
            send(signal.SIGTERM)
            reached.append(step)
    assert reached == [0] and run._checkpoints.whole() == []


def test_a_signal_between_steps_ends_the_run_at_once(stop: StopRequest) -> None:
    with pytest.raises(StoppedBySignal):
        send(signal.SIGUSR1)
    assert stop.requested


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_command_says_by_its_exit_code_that_it_was_stopped_and_how_to_go_on(
    stop: StopRequest,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/grpo.py", "seed=2"])
    cfg = GrpoRecipeConfig()
    cfg.exp_manager.exp_dir = str(tmp_path)

    def interrupted(*_: object) -> Path:
        send(number)
        raise AssertionError("the signal did not come")

    assert terminal.run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, interrupted) == code
    assert "Go on from the last checkpoint with:\n  python recipes/grpo.py seed=2" in capsys.readouterr().out
