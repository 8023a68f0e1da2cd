import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.unit.observability.runs import config
from zs_nemo.cluster.terminal import EXIT_BAD_INPUT, run_in_terminal
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir


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
