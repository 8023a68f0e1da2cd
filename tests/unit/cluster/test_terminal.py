import errno
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.unit.observability.runs import config, searching
from zs_nemo.cluster.roles import RanksLost, Role, RoleError
from zs_nemo.cluster.stop_request import StopRequest
from zs_nemo.cluster.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, run_in_terminal
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.observability import run_dir as run_dir_module
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.rollout.rewards import build_reward
from zs_nemo.types.trajectory import Trajectory


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A run takes over signals of the whole process."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_a_logger_that_cannot_work_ends_the_command_before_anything_starts_and_a_finished_run_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        trained.append(run_dir.path)
        run_dir.finish()
        return run_dir.path / "report.html"

    monkeypatch.setitem(sys.modules, "mlflow", None)
    cfg = config()
    cfg.exp_manager.exp_dir, cfg.exp_manager.create_mlflow_logger = str(tmp_path), True
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == EXIT_BAD_INPUT
    assert "exp_manager.create_mlflow_logger=true needs the Python package mlflow" in capsys.readouterr().err
    assert not trained
    cfg.exp_manager.create_mlflow_logger = False
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == 0
    cfg.exp_manager.create_mlflow_logger = True
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == 0
    assert len(trained) == 1 and "already done" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["report.html", "report.json", ""])
def test_a_run_that_is_done_is_told_with_the_report_that_there_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config()
    cfg.exp_manager.exp_dir = str(tmp_path)
    path = tmp_path / cfg.exp_manager.name
    with RunDir(path, cfg) as run_dir:
        run_dir.finish()
    if name:
        (path / name).touch()

    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        raise AssertionError("it is done")

    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == 0
    assert f"this run is already done: {path / name}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("job", "code"), [("42", EXIT_STOPPED), ("7", EXIT_BAD_INPUT)])
def test_a_job_that_its_own_earlier_life_keeps_out_asks_to_come_again(
    job: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setattr(run_dir_module, "_LOCK_PATIENCE_WITH_MACHINE_S", 0.1)
    cfg = config()
    cfg.exp_manager.exp_dir = str(tmp_path)
    path = tmp_path / cfg.exp_manager.name
    path.mkdir()

    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        raise AssertionError("the directory is not this run's")

    with (path / ".lock").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        holder.write(f"1234 on another-node, SLURM job {job}")
        holder.flush()
        assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == code
    assert "pid 1234 on another-node" in capsys.readouterr().err


def careless(trajectory: Trajectory) -> float:
    """Read what is not there: a reward of a user's own."""
    return {}["title"]


def lost_rank() -> RanksLost:
    error = RanksLost("policy-rank-1 failed in train_step: its process died\nlog: somewhere")
    error.role, error.died = Role("policy-rank-1", None, Path("log")), True
    return error


@pytest.mark.parametrize(("num_deaths", "code"), [(2, 0), (3, EXIT_FAILED)])
def test_a_run_whose_ranks_die_is_begun_again_in_the_same_process_within_the_budget(
    num_deaths: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = []

    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        attempts.append(run_dir)
        if len(attempts) <= num_deaths:
            raise lost_rank()
        run_dir.finish()
        return run_dir.path / "report.html"

    cfg = config()
    cfg.exp_manager.exp_dir, cfg.faults.max_group_restarts = str(tmp_path), 2
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == code
    assert len(attempts) == 3 and len(set(map(id, attempts))) == 3, "each attempt is a session of its own"
    told = capsys.readouterr()
    assert "from the last checkpoint (2 of 2)" in told.out
    assert ("faults.max_group_restarts=2" in told.err) == (code == EXIT_FAILED)
    with RunDir(tmp_path / cfg.exp_manager.name, cfg) as run_dir:
        assert run_dir.faults.metrics() == {"faults/ranks_lost_total": float(num_deaths)}


def test_a_full_disk_ends_the_command_with_a_message_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(run_dir.path / "metrics.jsonl"))

    cfg = config()
    cfg.exp_manager.exp_dir = str(tmp_path)
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == EXIT_FAILED
    assert "error: disk full (" in capsys.readouterr().err


def test_a_reward_that_fails_ends_the_command_with_its_name_the_way_on_and_the_stack_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        trajectory = searching(reward=0.0, key=(0, 0, 0))
        build_reward({f"{__name__}.careless": 1.0})(trajectory)
        raise AssertionError("it is graded")

    cfg = config()
    cfg.exp_manager.exp_dir = str(tmp_path)
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == EXIT_FAILED
    told = capsys.readouterr().err
    assert f"error: reward term '{__name__}.careless' raised KeyError: 'title' for question " in told
    assert "The same command goes on from the last checkpoint." in told
    log = tmp_path / cfg.exp_manager.name / "logs" / "driver_error.log"
    assert 'return {}["title"]' in log.read_text(), "the line of the user's own"


@pytest.mark.parametrize(("died", "code"), [(True, EXIT_STOPPED), (False, EXIT_FAILED)])
def test_a_run_whose_processes_were_ended_by_the_signal_that_asked_it_to_stop_has_stopped_and_not_failed(
    died: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    monkeypatch.setattr("zs_nemo.cluster.terminal.PROCESS_STOP", stop)

    def train(cfg: GrpoRecipeConfig, run_dir: RunDir, progress: Progress) -> Path:
        with stop.in_step():
            os.kill(os.getpid(), signal.SIGTERM)
            error = RoleError("policy-engine-0 failed in generate: its process died\nlog: somewhere")
            error.role, error.died = Role("policy-engine-0", None, Path("log")), died
            raise error

    cfg = config()
    cfg.exp_manager.exp_dir = str(tmp_path)
    assert run_in_terminal(OmegaConf.structured(cfg), GrpoRecipeConfig, train) == code
