"""The loop around the rollout: in turn, and with the next step's episodes beside the training."""

from dataclasses import replace

import pytest

from zs_nemo.cluster.simulation.batching_engine import EngineSpeed, EngineWork
from zs_nemo.cluster.simulation.cluster_model import ClusterModel, EngineRole
from zs_nemo.cluster.simulation.episodes import TurnWork
from zs_nemo.cluster.simulation.step_loop import StepLoop

SPEED = EngineSpeed(step_s=lambda batch: 1.0, prompt_token_s=0.0, room=100)
CLUSTER = ClusterModel(
    generation=EngineRole(count=1, speed=SPEED, gpus_per_engine=1),
    simulator=None,
    max_concurrency=100,
    max_staleness=0,
    refit_s=1.0,
    stage_s={"reference": 2.0, "train": 4.0},
    num_ranks=1,
    num_critic_ranks=0,
    is_apart=True,
    num_gpus=2,
)


def draw(step: int):
    """One episode of five tokens a step."""
    return [[TurnWork(generation=EngineWork(prompt_tokens=0, new_tokens=5))]]


def test_in_turn_a_step_takes_all_of_its_stages():
    steps = StepLoop(CLUSTER, draw, 8).play()
    assert steps.step_s == pytest.approx(1 + 5 + 2 + 4)
    assert steps.stage_s == pytest.approx({"refit": 1, "rollout": 5, "reference": 2, "train": 4})
    assert steps.busy["training"] == pytest.approx(6 / 12)


def test_overlapped_the_shorter_of_collecting_and_training_is_hidden():
    steps = StepLoop(replace(CLUSTER, max_staleness=1), draw, 8).play()
    assert steps.step_s == pytest.approx(1 + 2 + 4)
    assert steps.stage_s["rollout"] == pytest.approx(0)


def test_with_longer_episodes_training_waits_for_what_is_left_of_them():
    def long(step: int):
        return [[TurnWork(generation=EngineWork(prompt_tokens=0, new_tokens=20))]]

    steps = StepLoop(replace(CLUSTER, max_staleness=1), long, 12).play()
    # The refit waits for the turn under way, so that it comes before the step's own episodes are awaited.
    assert steps.step_s < 1 + 20 + 6
    assert steps.step_s >= 20


def test_on_shared_hardware_nothing_is_won_by_overlap():
    shared = replace(CLUSTER, max_staleness=1, is_apart=False)
    assert StepLoop(shared, draw, 8).play().step_s == pytest.approx(12)
