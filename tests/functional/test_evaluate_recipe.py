"""Evaluating and asking a policy through the command line: the engines are real, the model tiny."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.test_grpo_recipe import ROOT
from tests.functional.test_simulator_recipes import rows_of, run_recipe


@pytest.fixture(scope="module")
def evaluated(whole_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of an evaluation of the policy that the session's run has trained."""
    folder = tmp_path_factory.mktemp("evaluations")
    run_recipe(
        "evaluate",
        f"policy.model={whole_run[0]}/policy",
        "policy.precision=fp32",
        "evaluate.limit=8",
        "evaluate.methods=[agent,direct]",
        f"exp_manager.exp_dir={folder}",
        "exp_manager.name=first",
    )
    return folder / "first"


def test_a_policy_is_evaluated_by_itself_with_a_baseline(evaluated: Path) -> None:
    report = json.loads((evaluated / "report.json").read_text())
    assert list(report["evaluation"]) == ["agent_bm25_greedy", "direct_closed_book_greedy"]
    agent = report["evaluation"]["agent_bm25_greedy"]
    assert agent["n"] == 8 and agent["searches_per_question"] > 0 and agent["policy_tokens_per_question"] > 0
    assert report["search"]["engines"]["bm25"]["calls"] == round(8 * agent["searches_per_question"])
    rows = rows_of(evaluated / "answers" / "agent_bm25_greedy" / "facts_test.jsonl")
    assert len(rows) == 8 and all(row["segments"][0]["role"] == "prompt" for row in rows)
    assert "<svg" in (evaluated / "report.html").read_text()


@pytest.mark.long
def test_its_manifest_repeats_it_answer_by_answer(evaluated: Path) -> None:
    manifest = f"manifest={evaluated}/manifest.json"
    run_recipe("evaluate", manifest, f"exp_manager.exp_dir={evaluated.parent}")
    files = [
        folder / "evaluations" / "agent_bm25_greedy.jsonl"
        for folder in (evaluated, evaluated.parent / "first_repeated")
    ]
    assert rows_of(files[0]) == rows_of(files[1])
    refused = subprocess.run(
        [
            sys.executable,
            "recipes/evaluate.py",
            manifest,
            "evaluate.temperature=1",
            "exp_manager.name=other",
            f"exp_manager.exp_dir={evaluated.parent}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert refused.returncode == 2 and "has no evaluation agent_bm25_temperature_1" in refused.stderr


@pytest.mark.long
def test_a_question_is_answered_at_the_terminal(whole_run: tuple[Path, str], tmp_path: Path) -> None:
    asked = subprocess.run(
        [
            sys.executable,
            "recipes/ask.py",
            "What is the capital of Peru?",
            f"policy.model={whole_run[0]}/policy",
            "policy.precision=fp32",
            f"log_dir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert asked.returncode in (0, 1), asked.stderr[-4000:]
    last = asked.stdout.splitlines()[-1]
    assert last.startswith(("answer: ", "no answer: ")) and "tokens written" in last
    assert (asked.returncode == 0) is last.startswith("answer: ")
