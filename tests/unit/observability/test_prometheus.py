import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.observability.runs import config
from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.timer import StageTimer

Samples = dict[tuple[str, str], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serving(port: int) -> GrpoRecipeConfig:
    cfg = config()
    cfg.trainer.max_steps = 12
    cfg.exp_manager = ExpManagerConfig(name="my_run", prometheus_port=port, create_tensorboard_logger=False)
    return cfg


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[RunDir, int]]:
    port = free_port()
    with RunDir(tmp_path, serving(port)) as opened:
        opened.begin()
        yield opened, port


def scraped(port: int) -> Samples:
    """Return {(name, labels beside the run's): value} as Prometheus would read them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["run"] == "my_run"
            others = ",".join(value for name, value in sorted(sample.labels.items()) if name != "run")
            samples[sample.name, others] = sample.value
    return samples


def test_before_the_first_step_there_are_no_metrics_of_one(run: tuple[RunDir, int]) -> None:
    samples = scraped(run[1])
    assert samples["zs_nemo_max_steps", ""] == 12
    assert not [name for name, _ in samples if name in ("zs_nemo_step", "zs_nemo_reward_mean")]


def test_the_last_step_is_shown_and_nothing_of_the_one_before(run: tuple[RunDir, int]) -> None:
    run_dir, port = run
    run_dir.log_step(9, {"train/loss": 2.0}, Phase.warm_start)
    assert scraped(port)["zs_nemo_phase", "warm_start"] == 1
    run_dir.log_step(3, {"reward/mean": 0.25, "rollout/searches_per_episode": 1.5})
    samples = scraped(port)
    assert (samples["zs_nemo_step", ""], samples["zs_nemo_reward_mean", ""]) == (3, 0.25)
    assert samples["zs_nemo_rollout_searches_per_episode", ""] == 1.5
    assert (samples["zs_nemo_phase", "rl"], samples["zs_nemo_phase", "warm_start"]) == (1, 0)
    assert ("zs_nemo_train_loss", "") not in samples
    assert samples["zs_nemo_last_step_timestamp_seconds", ""] == pytest.approx(time.time(), abs=5)


def test_searches_are_counters_by_phase_and_engine(run: tuple[RunDir, int]) -> None:
    run_dir, port = run
    counts = {"calls": 6.0, "failures": 1.0, "prompt_tokens": 60.0, "completion_tokens": 24.0}
    run_dir.save_progress(StageTimer(), search={"rl": {"simulator": counts}, "evaluation": {"bm25": {"calls": 80.0}}})
    samples = scraped(port)
    # Labels in alphabetical order: engine, phase.
    assert samples["zs_nemo_searches_total", "simulator,rl"] == 6
    assert samples["zs_nemo_search_failures_total", "simulator,rl"] == 1
    assert samples["zs_nemo_searches_total", "bm25,evaluation"] == 80


def test_scores_of_evaluations_stay_beside_the_steps(run: tuple[RunDir, int]) -> None:
    run_dir, port = run
    run_dir.write_evaluation("before_bm25_greedy", {"f1": 0.25, "em": 0.1}, [], step=0)
    run_dir.log_step(0, {"reward/mean": 0.5})
    run_dir.write_evaluation("after_bm25_greedy", {"f1": 0.75, "em": 0.4}, [], step=12)
    samples = scraped(port)
    assert samples["zs_nemo_evaluation_f1", "before_bm25_greedy"] == 0.25
    assert samples["zs_nemo_evaluation_f1", "after_bm25_greedy"] == 0.75
    assert samples["zs_nemo_reward_mean", ""] == 0.5


def test_a_port_in_use_is_refused_before_anything_starts_and_is_free_after_the_run(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with RunDir(tmp_path, serving(port)) as run_dir, pytest.raises(ValueError, match=rf"prometheus_port={port} .*"):
            run_dir.begin()
    for _ in range(2):
        with RunDir(tmp_path, serving(port)) as run_dir:
            run_dir.begin()
            scraped(port)


def test_it_is_served_on_loopback_unless_told_otherwise_and_not_at_all_by_default(tmp_path: Path) -> None:
    assert ExpManagerConfig().prometheus_port == 0
    assert ExpManagerConfig(prometheus_port=9090).prometheus_host == "127.0.0.1"
    cfg = serving(free_port())
    cfg.exp_manager.prometheus_host = "127.0.0.2"
    with RunDir(tmp_path, cfg) as run_dir:
        run_dir.begin()
        with pytest.raises(OSError, match="refused"):
            scraped(cfg.exp_manager.prometheus_port)


@pytest.mark.parametrize("settings", [{"prometheus_port": 70000}, {"prometheus_host": ""}])
def test_an_impossible_address_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ExpManagerConfig(**settings)
