"""Collecting and fine-tuning: the recipes that make a simulator, one after the other on a tiny model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.functional.test_grpo_recipe import ROOT

pytestmark = pytest.mark.long


def run_recipe(recipe: str, *arguments: str) -> str:
    """Run a recipe and return what it printed."""
    done = subprocess.run(
        [sys.executable, f"recipes/{recipe}.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def collected(whole_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a collection, with a policy that knows the tags from its warm start."""
    folder = tmp_path_factory.mktemp("simulator")
    run_recipe(
        "collect_interactions",
        f"policy.model={whole_run[0]}/reference",
        "policy.precision=fp32",
        f"exp_manager.exp_dir={folder}",
        "exp_manager.name=interactions",
        "collect.num_questions=48",
        "collect.held_out_share=0.25",
        "collect.balance=false",
        "search.num_documents=1",
        "rollout.num_prompts_per_step=16",
    )
    return folder


def test_what_the_policy_asked_is_recorded_with_the_real_engine_s_documents(collected: Path) -> None:
    run = collected / "interactions"
    report = json.loads((run / "report.json").read_text())
    rounds = [rows_of(path) for path in sorted((run / "interactions").iterdir())]
    assert len(rounds) == 3 and report["searches"] == sum(map(len, rounds)) > 20
    told = ("useful", "useless", "undecided", "of_held_out_questions")
    assert report["engine"] == "bm25" and sum(report[name] for name in told) == report["searches"]
    examples = {split: rows_of(run / f"examples_{split}.jsonl") for split in ("train", "held_out")}
    assert examples["train"] and examples["held_out"]
    asked = {split: {row["question_id"] for row in rows} for split, rows in examples.items()}
    assert not asked["train"] & asked["held_out"]
    assert all(row["documents"] and row["documents"][0]["id"] for row in examples["train"])


def test_the_simulator_learns_what_the_engine_returned(collected: Path, tiny_model: Path) -> None:
    arguments = [
        f"policy.model={tiny_model}",
        "policy.precision=fp32",
        "policy.optim.lr=1e-3",
        "policy.global_batch_size=8",
        f"sft.examples={collected}/interactions",
        "sft.val_check_interval=5",
        "trainer.max_steps=15",
        f"exp_manager.exp_dir={collected}",
        "exp_manager.name=sft",
        "exp_manager.save_every_n_steps=5",
    ]
    run_recipe("sft_simulator", *arguments)
    run = collected / "sft"
    report = json.loads((run / "report.json").read_text())
    assert list(report["held_out_by_step"]) == ["0", "5", "10", "15"]
    assert report["held_out_after"]["loss"] < report["held_out_before"]["loss"] - 0.3
    whole = load_file(run / "simulator" / "model.safetensors")
    # Broken off before the last checkpoint, it ends with the same weights.
    shutil.rmtree(run / "checkpoints" / "step_000015")
    shutil.rmtree(run / "simulator")
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "finished": False}))
    assert "at step 10" in run_recipe("sft_simulator", *arguments)
    resumed = load_file(run / "simulator" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert "already done" in run_recipe("sft_simulator", *arguments)
