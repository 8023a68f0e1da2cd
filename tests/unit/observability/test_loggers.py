import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException

from tests.unit.observability.runs import config
from tests.unit.observability.stand_ins import Mlflow, Wandb
from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.config.loggers import MlflowLoggerConfig, WandbLoggerConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.registry import register, to_dataclass
from zs_nemo.observability.files import read_json_lines
from zs_nemo.observability.loggers import BackgroundLogger
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.run_dir import RunDir

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setenv("WANDB_API_KEY", "key-that-nobody-may-see")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return stand_in


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    stand_in = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    return stand_in


def with_wandb(**kwargs: object) -> GrpoRecipeConfig:
    cfg = config()
    cfg.exp_manager.name = "my_run"
    cfg.exp_manager.create_wandb_logger = True
    cfg.exp_manager.wandb_logger_kwargs = WandbLoggerConfig(**kwargs)  # type: ignore[arg-type]
    return cfg


def with_mlflow(**kwargs: object) -> GrpoRecipeConfig:
    cfg = config()
    cfg.exp_manager.name = "my_run"
    cfg.exp_manager.create_mlflow_logger = True
    cfg.exp_manager.mlflow_logger_kwargs = MlflowLoggerConfig(**kwargs)  # type: ignore[arg-type]
    return cfg


def session(path: Path, cfg: GrpoRecipeConfig, *steps: int, finish: bool = False) -> None:
    with RunDir(path, cfg) as run:
        run.begin()
        for step in steps:
            run.log_step(step, {"reward/mean": 0.1 * step, "train/kl": float("nan")})
        if finish:
            run.finish()


def test_nemo_s_names_are_accepted_as_typed_and_misspelt_ones_are_not() -> None:
    GlobalHydra.instance().clear()
    register()
    typed = [
        "exp_manager.create_tensorboard_logger=true",
        "exp_manager.create_wandb_logger=True",
        "exp_manager.wandb_logger_kwargs.project=search",
        "exp_manager.wandb_logger_kwargs.name=first",
        "exp_manager.wandb_logger_kwargs.entity=team",
        "exp_manager.create_mlflow_logger=True",
        "exp_manager.mlflow_logger_kwargs.experiment_name=search",
        "exp_manager.mlflow_logger_kwargs.tracking_uri=http://mlflow:5000",
    ]
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        cfg = to_dataclass(compose("grpo", overrides=typed), GrpoRecipeConfig).exp_manager
        with pytest.raises(ConfigCompositionException, match="wandb_logger_kwargs"):
            compose("grpo", overrides=["exp_manager.wandb_logger_kwargs.projekt=search"])
    assert (cfg.wandb_logger_kwargs.project, cfg.wandb_logger_kwargs.entity) == ("search", "team")
    assert cfg.mlflow_logger_kwargs.tracking_uri == "http://mlflow:5000"


def test_a_row_reaches_wandb_with_its_step_as_axis_and_without_what_is_not_finite(tmp_path: Path, wandb: Wandb) -> None:
    cfg = with_wandb(project="search", tags=["a"])
    with RunDir(tmp_path, cfg) as run:
        run.begin()
        run.log_step(3, {"train/loss": 2.0}, Phase.warm_start)
        run.log_step(0, {"reward/mean": 0.5, "train/kl": float("nan")})
        run.write_evaluation("after_bm25_greedy", {"f1": 0.75, "em": 0.5, "n": 20}, [], step=12)
        run.finish()
    (start,) = wandb.inits
    assert (start["project"], start["name"], start["tags"], start["entity"]) == ("search", "my_run", ["a"], None)
    assert start["dir"] == str(tmp_path) and start["config"]["trainer"]["max_steps"] == cfg.trainer.max_steps
    assert wandb.rows == [
        {"warm_start/train/loss": 2.0, "warm_start/step": 3},
        {"reward/mean": 0.5, "step": 0},
        {"evaluation/after_bm25_greedy/f1": 0.75, "evaluation/after_bm25_greedy/em": 0.5, "evaluation/step": 12},
    ]
    assert (wandb.axes["*"], wandb.axes["warm_start/*"]) == ("step", "warm_start/step")
    assert wandb.exit_codes == [0]


def test_a_resumed_run_goes_on_under_its_id_at_wandb(tmp_path: Path, wandb: Wandb) -> None:
    session(tmp_path / "a", with_wandb(), 0, 1)
    session(tmp_path / "a", with_wandb(), 1, 2, finish=True)
    session(tmp_path / "b", with_wandb(), 0)
    session(tmp_path / "c", with_wandb(id="given"), 0)
    first, second, other, given = (start["id"] for start in wandb.inits)
    assert first == second != other and len(first) == 12 and given == "given"
    assert {start["resume"] for start in wandb.inits} == {"allow"}
    assert [row["step"] for row in wandb.rows] == [0, 1, 1, 2, 0, 0]
    assert wandb.exit_codes == [1, 0, 1, 1]


def test_a_row_reaches_mlflow_and_the_settings_stand_beside_it(tmp_path: Path, mlflow: Mlflow) -> None:
    cfg = with_mlflow(experiment_name="search", tracking_uri="http://mlflow:5000", tags={"team": "a"})
    session(tmp_path, cfg, 4, finish=True)
    (run,) = mlflow.runs.values()
    assert mlflow.uris == ["http://mlflow:5000"]
    assert (run["experiment"], run["name"], run["tags"]) == (mlflow.experiments["search"], "my_run", {"team": "a"})
    assert run["metrics"] == [("reward/mean", 0.4, 4)]
    assert run["params"]["curriculum.end_noise"] == str(cfg.curriculum.end_noise)
    assert run["status"] == ["RUNNING", "FINISHED"]


def test_a_resumed_run_goes_on_under_its_id_at_mlflow(tmp_path: Path, mlflow: Mlflow) -> None:
    session(tmp_path, with_mlflow(), 0)
    session(tmp_path, with_mlflow(), 1, finish=True)
    (run,) = mlflow.runs.values()
    assert [step for _, _, step in run["metrics"]] == [0, 1]
    assert run["status"] == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert mlflow.uris == [None, None]


@pytest.mark.parametrize(("package", "cfg"), [("wandb", with_wandb()), ("mlflow", with_mlflow())])
def test_a_missing_package_is_named_with_the_remedy_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, cfg: GrpoRecipeConfig
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    # None in sys.modules is how Python marks a package that cannot be imported.
    monkeypatch.setitem(sys.modules, package, None)
    with RunDir(tmp_path, cfg) as run, pytest.raises(ValueError, match=rf"create_{package}_logger=true.*pip install"):
        run.begin()
    assert not threading_names() & {"wandb-logger", "mlflow-logger"}


def threading_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_missing_key_is_told_before_anything_starts_and_offline_needs_none(
    tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with RunDir(tmp_path, with_wandb()) as run, pytest.raises(ValueError, match=r"WANDB_API_KEY is not set.*offline"):
        run.begin()
    session(tmp_path, with_wandb(offline=True), 0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    session(tmp_path, with_wandb(), 1)
    assert [start["mode"] for start in wandb.inits] == ["offline", None]


def test_a_logger_that_fails_on_the_way_warns_once_names_no_key_and_goes_on(
    tmp_path: Path, wandb: Wandb, caplog: pytest.LogCaptureFixture
) -> None:
    with RunDir(tmp_path, with_wandb()) as run:
        run.begin()
        run.log_step(0, {"reward/mean": 0.0})
        wait_until(lambda: len(wandb.rows) == 1)
        wandb.broken = ConnectionError("no route to http://me:secret@host with key-that-nobody-may-see\nmore")
        for step in (1, 2):
            run.log_step(step, {"reward/mean": 0.0})
        wait_until(lambda: bool(caplog.records))
        time.sleep(0.05)
        wandb.broken = None
        run.log_step(3, {"reward/mean": 0.0})
    assert [row["step"] for row in wandb.rows] == [0, 3]
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "wandb logger failed (ConnectionError: no route to" in warning and "metrics.jsonl" in warning
    assert "key-that-nobody" not in warning and "secret" not in warning and "more" not in warning


def test_a_server_that_is_away_at_the_start_is_tried_again(tmp_path: Path, wandb: Wandb) -> None:
    wandb.broken = ConnectionError("away")
    with RunDir(tmp_path, with_wandb()) as run:
        run.begin()
        run.log_step(0, {"reward/mean": 0.0})
        time.sleep(0.05)
        wandb.broken = None
        run.log_step(1, {"reward/mean": 0.0})
    assert len(wandb.inits) == 1 and wandb.rows[-1]["step"] == 1


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Stuck:
    """A logger whose server never answers."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.taken = 0

    def log(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        self.taken += 1
        self.released.wait(10)

    def close(self, *, finished: bool) -> None:
        self.released.wait(10)


def test_a_server_that_never_answers_costs_the_run_no_time(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Stuck()
    began = time.monotonic()
    logger = BackgroundLogger("stuck", lambda: stuck, capacity=2, close_timeout_s=0.1)
    for step in range(20):
        logger.log(step, {}, Phase.rl)
    logger.close(finished=True)
    assert time.monotonic() - began < 5
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    stuck.released.set()


def test_no_key_reaches_the_run_directory(tmp_path: Path, wandb: Wandb, mlflow: Mlflow) -> None:
    cfg = with_wandb()
    cfg.exp_manager.create_mlflow_logger = True
    session(tmp_path, cfg, 0)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"key-that-nobody-may-see" not in path.read_bytes()
    assert json.loads((tmp_path / "loggers" / "mlflow.json").read_text()) == {"run_id": "run-0"}


def test_credentials_in_an_address_and_ids_that_wandb_refuses_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        MlflowLoggerConfig(tracking_uri="https://me:hidden@host/mlflow")
    assert "hidden" not in str(refused.value)
    with pytest.raises(ValueError, match=r"wandb_logger_kwargs\.id='a/b' must not hold /"):
        WandbLoggerConfig(id="a/b")


def test_tensorboard_that_cannot_write_warns_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").touch()
    session(tmp_path, config(), 0, 1)
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [0, 1]
    assert len(caplog.records) == 1 and "TensorBoard events" in caplog.text


def test_without_tensorboard_no_events_are_written(tmp_path: Path) -> None:
    cfg = config()
    cfg.exp_manager = ExpManagerConfig(create_tensorboard_logger=False)
    session(tmp_path, cfg, 0)
    assert not (tmp_path / "tensorboard").exists()
