"""PPO and REINFORCE++ through their command lines on a tiny model: they train, all resume exactly, and guards hold."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.functional.test_grpo_recipe import ROOT, keyed_part, overrides, steps_of, with_real_search

OWN_REWARD = "reward.function=tests.functional.own_reward.brevity"
RECIPES = {
    # The critic has a rank of its own here; the guarded run below has it beside the policy.
    "ppo": [
        "critic.optim.lr=1e-3",
        "critic.num_ranks=1",
        "critic.global_batch_size=3",
        "critic.num_epochs=2",
        "algorithm.critic_warmup_steps=1",
        OWN_REWARD,
    ],
    "reinforce_pp": [
        "algorithm.group_baseline=true",
        "algorithm.importance.level=token",
        OWN_REWARD,
        "generation.refit_transport=nccl",
    ],
    "grpo": ["algorithm.zero_variance=keep", OWN_REWARD],
}
REPEATABLE = {"reinforce_pp": ["algorithm.importance.level=off"]}
"""What makes a recipe's weights repeatable: the last digits of the engine's logprobs, which importance weights are made
of, depend on which requests happen to share a batch."""


def run_recipe(recipe: str, tiny_model: Path, folder: Path, name: str, *more: str, fails: bool = False) -> str:
    """Run a recipe for three steps on every second of which it saves; return what it printed."""
    # The simulator, an engine more to start, is seen at work in GRPO's runs.
    settings = with_real_search([item for item in overrides(tiny_model, folder, name) if "zero_variance" not in item])
    steps = ["trainer.max_steps=3", "evaluation.num_questions=4", "evaluation.temperatures=[0.0]"]
    done = subprocess.run(
        [sys.executable, f"recipes/{recipe}.py", *settings, *steps, *RECIPES[recipe], *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode != 0) == fails, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole_runs() -> dict[str, Path]:
    """Runs without a break by recipe, as far as they have been made."""
    return {}


@pytest.fixture
def whole(recipe: str, whole_runs: dict[str, Path], tiny_model: Path, tmp_path_factory) -> tuple[str, Path]:
    """Return a recipe's name and a run of it without a break."""
    return recipe, whole_run_of(recipe, [], whole_runs, tiny_model, tmp_path_factory)


@pytest.fixture
def repeatable(recipe: str, whole_runs: dict[str, Path], tiny_model: Path, tmp_path_factory) -> tuple[str, Path]:
    """Return a recipe's name and a run of it without a break, whose weights depend on nothing but its seed."""
    return recipe, whole_run_of(recipe, REPEATABLE.get(recipe, []), whole_runs, tiny_model, tmp_path_factory)


def whole_run_of(recipe: str, more: list[str], whole_runs: dict[str, Path], tiny_model: Path, tmp_path_factory) -> Path:
    key = " ".join([recipe, *more])
    if key not in whole_runs:
        folder = tmp_path_factory.mktemp(recipe)
        run_recipe(recipe, tiny_model, folder, "whole", *more)
        whole_runs[key] = folder / "whole"
    return whole_runs[key]


@pytest.mark.parametrize("recipe", ["ppo", pytest.param("reinforce_pp", marks=pytest.mark.long)])
def test_a_run_ends_with_a_report_and_the_algorithm_s_own_metrics(whole):
    recipe, run = whole
    report = json.loads((run / "report.json").read_text())
    assert (report["recipe"], report["steps"], report["finished"]) == (recipe, 3, True)
    rows = steps_of(run)
    assert all(row["tokens/token_in_token_out_share"] == 1.0 and row["search/unread"] == 0 for row in rows)
    if recipe == "ppo":
        assert [row.get("train/num_updates", 0) for row in rows] == [0, 2, 2], "the critic has the first step alone"
        assert all(row["critic/num_updates"] == 8 and row["critic/loss"] > 0 for row in rows)
        assert report["critic"]["explained_variance"] == rows[-1]["critic/explained_variance"]
        assert rows[0]["critic/explained_variance"] == pytest.approx(0.0, abs=1e-6), "its head begins at zero"
        losses = [row["critic/loss"] for row in rows]
        assert losses[-1] < losses[0], "the critic learns"
    else:
        assert all(row["train/num_updates"] == 2 for row in rows)
        assert all(0.9 < row["train/importance_weight"] < 1.1 for row in rows)
        assert all(row["train/grad_norm"] > 0 for row in rows)
    assert all(0 < row["reward/min"] < row["reward/max"] for row in rows), "the user's own term is what is rewarded"
    start, end = (load_file(run / name / "model.safetensors") for name in ("reference", "policy"))
    assert any(not torch.equal(start[name], end[name]) for name in start)


def flip_a_byte(path: Path) -> None:
    """Damage a file in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.faults
# PPO keeps all that the others keep, and a critic.
@pytest.mark.parametrize(
    "recipe", ["ppo", *(pytest.param(name, marks=pytest.mark.long) for name in ("reinforce_pp", "grpo"))]
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(repeatable, tiny_model, tmp_path):
    recipe, run = repeatable
    shutil.copytree(run, tmp_path / "resumed")
    last = tmp_path / "resumed" / "checkpoints" / "step_000003"
    if recipe == "ppo":
        flip_a_byte(last / "critic" / "__0_0.distcp")
    else:
        # As a kill after the last step's log but before its checkpoint leaves it.
        shutil.rmtree(last)
    for name in ("report.json", "report.html"):
        (tmp_path / "resumed" / name).unlink()
    shutil.rmtree(tmp_path / "resumed" / "policy")
    state = json.loads((tmp_path / "resumed" / "state.json").read_text())
    (tmp_path / "resumed" / "state.json").write_text(json.dumps({**state, "finished": False}))
    output = run_recipe(recipe, tiny_model, tmp_path, "resumed", *REPEATABLE.get(recipe, []))
    assert "at step 2" in output
    assert (f"passed over the damaged checkpoint {last}" in output) == (recipe == "ppo")
    resumed = tmp_path / "resumed"
    assert keyed_part(resumed, 2) == keyed_part(run, 2)
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (resumed, run))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    timed = ("time/", "rollout/episode_s", "search/latency", "rollout/policy_tokens_per_s")
    for name, value in steps_of(run)[-1].items():
        if name.startswith("train/generation_"):
            # The last digits of the engine's logprobs depend on which requests happen to share a batch.
            assert steps_of(resumed)[-1][name] == pytest.approx(value, rel=0.05, abs=1e-6), name
        elif not name.startswith(timed):
            assert steps_of(resumed)[-1][name] == value, name


@pytest.mark.long
def test_a_collapse_returns_to_the_checkpoint_with_other_draws_and_ends_after_the_budget(tiny_model, tmp_path):
    guards = [
        "critic.num_ranks=0",
        "guards.min_response_tokens=10000",
        "guards.on_collapse=rollback",
        "guards.max_rollbacks=1",
    ]
    output = run_recipe("ppo", tiny_model, tmp_path, "guarded", *guards, fails=True)
    assert "returned to" in output and "after 1 rollbacks (guards.max_rollbacks=1)" in output
    state = json.loads((tmp_path / "guarded" / "state.json").read_text())
    assert [(event["step"], event["to_step"]) for event in state["rollbacks"]] == [(0, 0)]
    assert "rollout/response_tokens" in state["rollbacks"][0]["reasons"][0]
    row = json.loads((tmp_path / "guarded" / "trajectories" / "step_0000.jsonl").read_text().splitlines()[0])
    assert row["key"]["run_seed"] == 1 + 2**31


@pytest.mark.long
def test_a_warm_start_that_breaks_ends_the_run_with_the_settings_that_help(tiny_model, tmp_path):
    output = run_recipe("reinforce_pp", tiny_model, tmp_path, "broken", "guards.max_grad_norm=1e-6", fails=True)
    assert "warm-start update 0 was not made: its gradient norm is" in output
    assert "lower warm_start.lr=0.003, or raise guards.max_grad_norm" in output
    assert not (tmp_path / "broken" / "report.json").exists()
