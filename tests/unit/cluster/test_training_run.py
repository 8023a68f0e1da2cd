"""What a run keeps in its checkpoints besides what the workers write, with a system that computes nothing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from tests.fakes import CharTokenizer
from tests.unit.observability.runs import group, searching
from zs_nemo.cluster.roles import RanksLost, Role, RoleError
from zs_nemo.cluster.training_run import TrainingRun
from zs_nemo.config.experiment import ExpManagerConfig, TrainerConfig, WarmStartConfig
from zs_nemo.config.guards import GuardConfig, OnCollapse
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.rollout import CurriculumConfig, CurriculumName
from zs_nemo.config.search import Bm25SearchConfig, SearchConfig, SimulatedSearchConfig
from zs_nemo.observability.files import read_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.rollout.collector import SearchBudgetExceeded
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.rewards import RewardFailed

REWARDS = (0.9, 0.7, 0.3, 0.6, 0.1, 0.8, 0.95, 0.2)
HEALTHY, COLLAPSED = 1.0, 0.01
FAIL_IN_REFIT: dict[int, Exception] = {}
SEARCHES_FAILED = SearchBudgetExceeded("no endpoint is alive", engine="simulator")
REWARD_FAILED = RewardFailed("the term is wrong")


def death_of(name: str, kind: type[RoleError] = RoleError) -> RoleError:
    error = kind(f"{name} failed in generate: its process died")
    error.role, error.died = Role(name, None, Path("log")), True
    return error


def settings(*, async_save: bool = False) -> GrpoRecipeConfig:
    return GrpoRecipeConfig(
        search=SimulatedSearchConfig(),
        trainer=TrainerConfig(max_steps=len(REWARDS)),
        exp_manager=ExpManagerConfig(save_every_n_steps=2, async_save=async_save),
        warm_start=WarmStartConfig(steps=0),
        curriculum=CurriculumConfig(name=CurriculumName.adaptive),
        guards=GuardConfig(on_collapse=OnCollapse.rollback, min_entropy=0.1),
    )


@pytest.fixture(autouse=True)
def system_that_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refit(version: int) -> None:
        if failure := FAIL_IN_REFIT.pop(version, None):
            raise failure

    def start(run: TrainingRun) -> None:
        policy = MagicMock()
        policy.checkpoint_damage.return_value = []
        run.system = SimpleNamespace(policy=policy, critic=None, accounts=lambda **spent: {}, refit=refit)
        run._tokenizer, run._ledger = CharTokenizer(), SearchLedger()
        run._memory, run._engines = SimpleNamespace(peak_gib=1.0), SimpleNamespace(metrics=dict)

    monkeypatch.setattr(TrainingRun, "_start", start)


def train(
    path: Path,
    *,
    stop_before: int = len(REWARDS),
    collapse_once_at: int | None = None,
    searches_fail_at: int | None = None,
    failure: Exception = SEARCHES_FAILED,
    async_save: bool = False,
) -> list[tuple[int, float]]:
    """Run or resume, as a recipe does; return (step, noise) of every step that was rolled out."""
    cfg, seen, entropies = settings(async_save=async_save), [], {collapse_once_at: COLLAPSED}
    with RunDir(path, cfg) as run_dir, Progress("run") as progress, TrainingRun(cfg, run_dir, progress) as run:
        run.warm_start()
        for step in run.steps():
            if step == stop_before:
                break
            run.refit(version=step)
            if step == searches_fail_at:
                raise failure
            noise = run.curriculum.noise_at(step)
            seen.append((step, noise))
            groups = [group(searching(reward=REWARDS[step], key=(step, 0, 0)))]
            updates: Sequence[dict[str, float]] = [{"entropy": entropies.pop(step, HEALTHY), "num_loss_tokens": 4.0}]
            run.finish_step(step, groups, None, updates, noise=noise)
    return seen


@pytest.mark.parametrize(("async_save", "begins_at"), [(False, 6), (True, 4)], ids=["in the way", "in the background"])
def test_a_resumed_run_meets_the_noise_of_an_uninterrupted_one(
    tmp_path: Path, async_save: bool, begins_at: int
) -> None:
    whole = train(tmp_path / "whole")
    assert [step for step, _ in whole] == list(range(len(REWARDS)))
    assert len({noise for _, noise in whole}) == len(REWARDS), "every step moves the noise, so a lost state shows"

    # The checkpoint that was still being written in the background is lost with the run.
    broken = train(tmp_path / "broken", stop_before=7, async_save=async_save)
    resumed = train(tmp_path / "broken", async_save=async_save)
    assert broken == whole[:7]
    assert resumed == whole[begins_at:]


@pytest.mark.parametrize(
    ("failure", "async_save"),
    [
        *product([SEARCHES_FAILED, death_of("simulator-engine-0"), death_of("policy-engine-1")], [False, True]),
        (REWARD_FAILED, False),
    ],
    ids=str,
)
def test_a_run_whose_episodes_have_failed_and_not_its_ranks_is_saved_where_it_stands(
    tmp_path: Path, async_save: bool, failure: Exception
) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(type(failure)):
        train(tmp_path / "broken", searches_fail_at=5, failure=failure, async_save=async_save)
    assert train(tmp_path / "broken", async_save=async_save) == whole[5:], "no step that was trained is trained again"


def test_ranks_that_wait_for_a_dead_engine_in_a_refit_are_not_asked_to_save(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    FAIL_IN_REFIT[5] = death_of("policy-engine-0")
    with pytest.raises(RoleError):
        train(tmp_path / "broken")
    assert train(tmp_path / "broken") == whole[4:]


def test_of_a_run_that_has_lost_a_rank_nothing_is_asked_any_more(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    with pytest.raises(RanksLost):
        train(tmp_path / "broken", searches_fail_at=5, failure=death_of("policy-rank-0", RanksLost))
    assert train(tmp_path / "broken") == whole[4:]


def test_a_return_to_a_checkpoint_takes_the_noise_back_with_it(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    seen = train(tmp_path / "run", collapse_once_at=3)
    assert seen == [*whole[:4], *whole[2:]]


def test_the_level_is_in_the_metrics_of_every_step(tmp_path: Path) -> None:
    seen = train(tmp_path / "run")
    rows = [row for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "rl"]
    assert [(row["step"], row["curriculum/noise"]) for row in rows] == seen


def test_updates_that_a_step_skips_one_after_another_end_the_run(tmp_path: Path) -> None:
    skipped, made = ({"num_skipped_updates": number, "entropy": HEALTHY} for number in (1.0, 0.0))
    cfg, groups = settings(), [group(searching(reward=0.5, key=(0, 0, 0)))]
    with RunDir(tmp_path, cfg) as run_dir, Progress("run") as progress, TrainingRun(cfg, run_dir, progress) as run:
        run.warm_start()
        next(run.steps())
        run.finish_step(0, groups, None, [made], noise=0.0, critic_updates=[skipped, made, skipped, made, skipped])
        with pytest.raises(RuntimeError, match="3 updates of the critic in a row were not made"):
            run.finish_step(1, groups, None, [made], noise=0.0, critic_updates=[skipped, skipped, made])


@pytest.mark.parametrize(
    ("search", "callback", "is_noisy"),
    [
        (SimulatedSearchConfig(), "", True),
        (Bm25SearchConfig(), "", False),
        (Bm25SearchConfig(), "tests.unit.cluster.test_training_run:settings", True),
    ],
    ids=["simulator", "real engine", "own callback"],
)
def test_a_real_engine_is_not_said_to_be_noisy(
    tmp_path: Path, search: SearchConfig, callback: str, is_noisy: bool
) -> None:
    level = CurriculumConfig(name=CurriculumName.constant, constant_noise=0.5)
    cfg = replace(settings(), search=search, curriculum=level)
    cfg.rollout.callback = callback
    with RunDir(tmp_path, cfg) as run_dir, Progress("run") as progress, TrainingRun(cfg, run_dir, progress) as run:
        assert run.noise_at(3) == (0.5 if is_noisy else 0.0)
