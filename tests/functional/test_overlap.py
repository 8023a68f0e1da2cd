"""The real recipe with rollout.max_staleness=1: collecting beside training, refits in between, a kill and a resume."""

import json
from pathlib import Path

import pytest

from tests.functional.test_grpo_recipe import finish, kill_after_three_steps, overrides, start, steps_of
from zs_nemo.observability.timeline import read_timeline

pytestmark = pytest.mark.long


def kept_turns(row: dict) -> list[tuple]:
    """Return what a checkpoint holds of an episode's turns, as ``trained_turns`` does."""
    return [(turn["sampling_seed"], turn["weight_version"], turn["end"] - turn["start"]) for turn in row["turns"]]


def trained_turns(run: Path, step: int) -> dict[tuple[int, int], list[tuple]]:
    """Return by prompt and member: sampling seed, weight version and tokens of every turn that a step trained on."""
    rows = [json.loads(line) for line in (run / "trajectories" / f"step_{step:04d}.jsonl").read_text().splitlines()]
    return {
        (row["key"]["prompt"], row["key"]["member"]): [
            (turn["sampling_seed"], turn["weight_version"], turn["tokens"]) for turn in row["turns"]
        ]
        for row in rows
    }


def seconds_beside_training(run: Path) -> float:
    """Return for how long, in all, episodes were generating or searching while a step trained."""
    opened, stages, episodes = 0.0, [], []
    for event in read_timeline(run / "timeline.json"):
        if event["name"] == "train" and event["ph"] == "B":
            opened = event["ts"]
        elif event["name"] == "train" and event["ph"] == "E":
            stages.append((opened, event["ts"]))
        elif event["name"] in ("generate", "search"):
            episodes.append((event["ts"], event["ts"] + event["dur"]))
    shared = [max(0.0, min(e[1], s[1]) - max(e[0], s[0])) for e in episodes for s in stages]
    return sum(shared) / 1e6


def test_a_killed_run_takes_up_the_episodes_that_its_checkpoint_holds(tiny_model, tmp_path, monkeypatch):
    run = tmp_path / "ahead"
    monkeypatch.setenv("ZS_NEMO_TEST_RUN", str(run))
    arguments = [
        *overrides(tiny_model, tmp_path, "ahead"),
        "rollout.max_staleness=1",
        "algorithm.importance.level=token",
    ]
    kill_after_three_steps(start(arguments), run, timeout_s=400)
    kept = (run / "checkpoints" / "step_000002" / "episodes.jsonl").read_text().splitlines()

    output = finish(start(arguments))
    assert "resumed from" in output and "at step 2" in output
    rows = steps_of(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["rollout/staleness_max"] == 0
    assert all(row["rollout/staleness_max"] <= 1 for row in rows)
    assert max(row["rollout/staleness_mean"] for row in rows) > 0
    assert all(row["tokens/token_in_token_out_share"] == 1 for row in rows)
    assert all(0.5 < row["train/importance_weight"] <= 2 for row in rows)
    assert rows[-1]["rollout/ahead_begun"] == 0
    assert seconds_beside_training(run) > 0

    trained, episodes = trained_turns(run, 2), [json.loads(line) for line in kept]
    assert episodes and {row["key"]["step"] for row in episodes} == {2}
    assert any(row["turns"] for row in episodes)
    for row in episodes:
        turns = kept_turns(row)
        assert trained[row["key"]["prompt"], row["key"]["member"]][: len(turns)] == turns
