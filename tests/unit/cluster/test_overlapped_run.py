"""A training run with rollout.max_staleness=1, whose system computes nothing and whose policy is scripted."""

import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from tests.fakes import CharTokenizer, FixedSearch
from tests.unit.rollout.test_collector import LIMITS, QUESTIONS, script
from tests.unit.rollout.test_overlap import SECOND_TURN, Policy
from zs_nemo.cluster.engine_run import EngineRun
from zs_nemo.cluster.training_run import TrainingRun
from zs_nemo.config.algorithm import GrpoConfig, ImportanceConfig, ImportanceLevel
from zs_nemo.config.experiment import EvaluationConfig, ExpManagerConfig, TrainerConfig, WarmStartConfig
from zs_nemo.config.guards import GuardConfig, OnCollapse
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.rollout import CurriculumConfig, CurriculumName, RolloutConfig
from zs_nemo.config.search import SimulatedSearchConfig
from zs_nemo.observability.files import read_json_lines
from zs_nemo.observability.progress import Progress
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.rollout.callbacks import SimulatedSearch
from zs_nemo.rollout.collector import RolloutCollector, StepBudgets, questions_of_step
from zs_nemo.rollout.episode import EpisodeRunner, SearchSetting
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.loop_thread import LoopThread
from zs_nemo.rollout.rewards import f1
from zs_nemo.types.trajectory import TrajectoryGroup

NUM_STEPS, EPISODES = 6, 4
HEALTHY, COLLAPSED = 1.0, 0.01


def settings() -> GrpoRecipeConfig:
    return GrpoRecipeConfig(
        search=SimulatedSearchConfig(),
        trainer=TrainerConfig(max_steps=NUM_STEPS),
        exp_manager=ExpManagerConfig(save_every_n_steps=2, async_save=False, create_tensorboard_logger=False),
        warm_start=WarmStartConfig(steps=0),
        rollout=RolloutConfig(max_staleness=1, num_prompts_per_step=2, num_generations_per_prompt=2),
        algorithm=GrpoConfig(importance=ImportanceConfig(level=ImportanceLevel.token)),
        curriculum=CurriculumConfig(name=CurriculumName.adaptive),
        evaluation=EvaluationConfig(temperatures=[0.0]),
        guards=GuardConfig(on_collapse=OnCollapse.rollback, min_entropy=0.1),
    )


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Have every run sample from one scripted policy, which is returned."""
    scripted = Policy(script)

    def start(run: EngineRun) -> None:
        trained = MagicMock()
        trained.checkpoint_damage.side_effect = lambda folder: []
        run.system = SimpleNamespace(
            policy=trained,
            critic=None,
            simulator=None,
            accounts=lambda **spent: {},
            refit=lambda version: setattr(scripted, "version", version),
            generation=MagicMock(),
        )
        run._tokenizer, run._ledger = CharTokenizer(), SearchLedger()
        run._memory = SimpleNamespace(peak_gib=1.0)
        run._questions = SimpleNamespace(train=QUESTIONS)
        run._collector = RolloutCollector(
            EpisodeRunner(scripted, CharTokenizer(), LIMITS),
            CharTokenizer(),
            f1,
            run_seed=run._cfg.seed,
            max_concurrency=64,
            budgets=StepBudgets(failed=0.0),
            loop=LoopThread(),
        )
        run._stack.callback(run._collector.close)
        search = SimulatedSearch(run._ledger.watch(FixedSearch()))
        run._engines = SimpleNamespace(
            metrics=dict,
            judge="bm25",
            training=lambda noise: SearchSetting(callback=search, num_documents=1, noise_probability=noise),
            evaluation=lambda name: None,
            evaluates_with_simulator=False,
        )
        run._engines_at_work = MagicMock
        run._evaluator = MagicMock()

    monkeypatch.setattr(EngineRun, "_start", start)
    return scripted


class Training:
    """Runs or resumes, as a recipe does, up to ``stop_before``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[tuple[int, float, list[TrajectoryGroup]]] = []
        self.said: list[str] = []

    def run(self, *, stop_before: int = NUM_STEPS, collapse_once_at: int | None = None, evaluate_at: int = -1) -> None:
        cfg, entropies = settings(), {collapse_once_at: COLLAPSED}
        with RunDir(self.path, cfg) as run_dir, Progress("run") as progress:
            progress.say = self.said.append
            with TrainingRun(cfg, run_dir, progress) as run:
                run.warm_start()
                for step in run.steps():
                    if step == stop_before:
                        break
                    noise = run.noise_at(step)
                    run.refit(version=step)
                    groups = run.collect(step, noise=noise)
                    self.steps.append((step, noise, groups))
                    if step == evaluate_at:
                        self.evaluate(run, step)
                    updates = [{"entropy": entropies.pop(step, HEALTHY), "num_loss_tokens": 4.0}]
                    run.finish_step(step, groups, None, updates, noise=noise)

    def evaluate(self, run: TrainingRun, step: int) -> None:
        run.evaluate("before", step=step)

    def rows(self) -> list[dict]:
        return [row for row in read_json_lines(self.path / "metrics.jsonl") if row["phase"] == "rl"]


def prompts_of(training: Training) -> list[tuple]:
    return [
        (step, [(each.key, each.question.id) for group in groups for each in group.trajectories])
        for step, _, groups in training.steps
    ]


def test_every_step_trains_on_its_own_prompts_at_most_one_version_old(policy: Policy, tmp_path: Path) -> None:
    training = Training(tmp_path / "run")
    training.run()
    assert [step for step, _, _ in training.steps] == list(range(NUM_STEPS))
    assert all(each.key.step == step for step, _, groups in training.steps for g in groups for each in g.trajectories)
    rows = training.rows()
    assert [row["rollout/staleness_max"] for row in rows] == [0] + [1] * (NUM_STEPS - 1)
    assert all(row["rollout/versions_per_trajectory"] >= 1 for row in rows)
    assert [row["curriculum/noise"] for row in rows] == [noise for _, noise, _ in training.steps]
    assert rows[-1]["rollout/ahead_begun"] == 0


def test_a_resumed_run_takes_up_the_episodes_of_its_checkpoint(policy: Policy, tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole")
    whole.run()
    broken = Training(tmp_path / "broken")
    # The checkpoint finds the episodes of one of step 2's questions with their first turns, under weights of version 1.
    policy.held = (SECOND_TURN, questions_of_step(QUESTIONS, 2, 2, settings().seed)[0].text)
    broken.run(stop_before=2)
    kept = read_json_lines(tmp_path / "broken" / "checkpoints" / "step_000002" / "episodes.jsonl")
    assert len(kept) == EPISODES and {row["key"]["step"] for row in kept} == {2}
    assert {row["ended"] for row in kept} >= {False}
    policy.held = ()
    resumed = Training(tmp_path / "broken")
    resumed.run()
    assert prompts_of(resumed) == prompts_of(whole)[2:]
    episodes = {each.key: each for _, _, groups in resumed.steps for group in groups for each in group.trajectories}
    for row in kept:
        episode = next(each for key, each in episodes.items() if (key.step, key.prompt, key.member) == place(row))
        assert episode.token_ids[: len(row["token_ids"])] == row["token_ids"]
        assert episode.turns[0].weight_version == 1
    assert resumed.rows()[2]["curriculum/noise"] == resumed.steps[0][1]


def place(row: dict) -> tuple[int, int, int]:
    return row["key"]["step"], row["key"]["prompt"], row["key"]["member"]


def test_a_damaged_file_of_episodes_makes_its_checkpoint_be_passed_over(policy: Policy, tmp_path: Path) -> None:
    Training(tmp_path / "run").run(stop_before=5)
    file = tmp_path / "run" / "checkpoints" / "step_000004" / "episodes.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    resumed = Training(tmp_path / "run")
    resumed.run()
    assert resumed.steps[0][0] == 2
    assert any("passed over" in line and "episodes.jsonl" in line for line in resumed.said)


def test_after_a_return_to_a_checkpoint_nothing_of_the_failed_draws_is_trained_on(
    policy: Policy, tmp_path: Path
) -> None:
    training = Training(tmp_path / "run")
    training.run(collapse_once_at=3)
    assert [step for step, _, _ in training.steps] == [0, 1, 2, 3, 2, 3, 4, 5]
    seeds = [{each.key.run_seed for g in groups for each in g.trajectories} for _, _, groups in training.steps]
    assert seeds == [{1}] * 4 + [{1 + 2**31}] * 4
    assert [row["rollout/staleness_max"] for row in training.rows()] == [0, 1, 0, 1, 1, 1]


def test_after_a_return_to_a_checkpoint_all_engines_are_given_its_weights(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []
    refit = TrainingRun.refit

    def noted(run: TrainingRun, version: int) -> None:
        run.system.refit = served.append
        refit(run, version)
        policy.version = version

    monkeypatch.setattr(TrainingRun, "refit", noted)
    # An engine that was replaced within the step has weights of the update that is taken back.
    Training(tmp_path / "run").run(collapse_once_at=2, stop_before=4)
    assert served == [0, 1, 2, 2, 3]


def test_an_evaluation_in_between_meets_no_episode_under_way(policy: Policy, tmp_path: Path) -> None:
    class Evaluated(Training):
        def evaluate(self, run: TrainingRun, step: int) -> None:
            def look(*_: object, **__: object) -> None:
                self.seen = (policy.asked, policy.completed)
                time.sleep(0.02)
                assert (policy.asked, policy.completed) == self.seen
                assert policy.asked == policy.completed

            run._evaluator.evaluate.side_effect = look
            run.evaluate("before", step=step)

    training = Evaluated(tmp_path / "run")
    policy.delay_s = lambda text: 0.005
    training.run(evaluate_at=1)
    assert training.seen[0] >= 2 * 2 * EPISODES
    assert len(training.rows()) == NUM_STEPS


def test_an_episode_that_fails_while_another_step_trains_ends_the_run_with_its_own_error(
    policy: Policy, tmp_path: Path
) -> None:
    policy.failing = questions_of_step(QUESTIONS, 2, 2, settings().seed)[1].text
    training = Training(tmp_path / "run")
    with pytest.raises(ConnectionError, match="the engine is gone"):
        training.run()
    assert [step for step, _, _ in training.steps] in ([0], [0, 1])
