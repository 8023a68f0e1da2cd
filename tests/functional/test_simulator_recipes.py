"""Collecting, fine-tuning: the recipes that make a simulator, one after another on a tiny model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.functional.test_grpo_recipe import ROOT, overrides

SHORT = ["trainer.max_steps=0", "evaluation.num_questions=2", "evaluation.temperatures=[0.0]", "search=bm25"]


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
def collected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a collection with a policy that knows the tags from a warm start."""
    folder = tmp_path_factory.mktemp("simulator")
    settings = [item for item in overrides(tiny_model, folder, "policy") if not item.startswith("search.model")]
    run_recipe("grpo", *settings, *SHORT)
    arguments = collection(folder)
    run_recipe("collect_interactions", *arguments)
    return folder


def collection(folder: Path) -> list[str]:
    return [
        f"policy.model={folder}/policy/reference",
        "policy.precision=fp32",
        f"exp_manager.exp_dir={folder}",
        "exp_manager.name=interactions",
        "collect.num_questions=48",
        "collect.held_out_share=0.25",
        "collect.balance=false",
        "rollout.num_prompts_per_step=16",
    ]


def test_what_the_policy_asked_is_recorded_with_the_real_engine_s_documents(collected: Path) -> None:
    run = collected / "interactions"
    report = json.loads((run / "report.json").read_text())
    rounds = [rows_of(path) for path in sorted((run / "interactions").iterdir())]
    assert len(rounds) == 3 and report["searches"] == sum(map(len, rounds)) > 20
    assert report["engine"] == "bm25" and report["useful"] + report["useless"] == report["searches"]
    examples = {split: rows_of(run / f"examples_{split}.jsonl") for split in ("train", "held_out")}
    assert examples["train"] and examples["held_out"]
    asked = {split: {row["question_id"] for row in rows} for split, rows in examples.items()}
    assert not asked["train"] & asked["held_out"]
    assert all(row["documents"] and row["documents"][0]["id"] for row in examples["train"])


def test_a_collection_goes_on_where_it_was_broken_off(collected: Path, tmp_path: Path) -> None:
    shutil.copytree(collected / "policy" / "reference", tmp_path / "policy" / "reference")
    run = tmp_path / "interactions"
    shutil.copytree(collected / "interactions", run)
    before = {path.name: path.read_text() for path in (run / "interactions").iterdir()}
    kept = (run / "interactions" / "step_0000.jsonl").stat().st_mtime_ns
    (run / "interactions" / "step_0002.jsonl").unlink()
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "finished": False}))
    (run / "config.yaml").unlink()
    run_recipe("collect_interactions", *collection(tmp_path))
    assert {path.name: path.read_text() for path in (run / "interactions").iterdir()} == before
    assert (run / "interactions" / "step_0000.jsonl").stat().st_mtime_ns == kept


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


def test_a_simulator_is_measured_on_held_out_queries_beside_a_baseline(
    collected: Path, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [row for path in sorted((collected / "interactions" / "interactions").iterdir()) for row in rows_of(path)]
    arguments = [
        f"interactions={tmp_path}",
        "num_queries=6",
        f"search.model={tiny_model}",
        "+search@baseline=simulated",
        f"baseline.model={tiny_model}",
        "baseline.template=tuned",
        f"output={tmp_path}/quality",
    ]
    folder = tmp_path / "interactions"
    folder.mkdir()

    def write(split: str) -> None:
        lines = (json.dumps({**row, "split": split, "answers": [row["documents"][0]["text"][:20]]}) for row in rows)
        (folder / "step_0000.jsonl").write_text("".join(f"{line}\n" for line in lines))

    write("train")
    command = [sys.executable, "recipes/evaluate_simulator.py", *arguments]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and "collect with collect.split=test" in refused.stderr
    write("held_out")
    run_recipe("evaluate_simulator", *arguments)
    report = json.loads((tmp_path / "quality" / "report.json").read_text())
    assert report["queries"] == 6
    for found in report["simulators"].values():
        assert (found["num_useful"], found["num_noisy"], found["real_support_share"]) == (6, 6, 1.0)
        assert 0.0 <= found["separation_auc"] <= 1.0 and found["completion_tokens_per_search"] > 0
    written = rows_of(tmp_path / "quality" / "search.jsonl")
    assert [row["noisy"] for row in written] == [False, True] * 6
    assert "<h1>Quality of simulators</h1>" in (tmp_path / "quality" / "report.html").read_text()
