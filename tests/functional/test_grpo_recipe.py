"""The real recipe through its command line: the whole stack on a tiny model.

The tiny model is random; a warm start of some seconds on the scripted episodes teaches it to search and to answer, so
that every part of the run has work to do.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.composed import composed_dataclass
from tests.functional.role_processes import role_processes
from zs_nemo.cluster.memory_plan import GIB, plan_memory
from zs_nemo.cluster.setups import derive_layout

ROOT = Path(__file__).parents[2]


def overrides(tiny_model: Path, folder: Path, name: str) -> list[str]:
    """Return the settings of a run of some seconds a step."""
    return [
        f"policy.model={tiny_model}",
        f"search.model={tiny_model}",
        f"exp_manager.exp_dir={folder}",
        f"exp_manager.name={name}",
        "exp_manager.save_every_n_steps=2",
        "exp_manager.async_save=true",
        "exp_manager.trajectories_per_step=1000",
        "policy.precision=fp32",
        "policy.optim.lr=1e-4",
        "policy.global_batch_size=6",
        "trainer.max_steps=5",
        "curriculum.start_noise=0.5",
        "curriculum.end_noise=0.9",
        "rollout.num_prompts_per_step=4",
        "rollout.num_generations_per_prompt=3",
        "rollout.max_turn_tokens=48",
        "algorithm.zero_variance=keep",
        "warm_start.steps=60",
        "warm_start.lr=3e-3",
        "evaluation.num_questions=6",
        "evaluation.split=validation",
    ]


def with_real_search(settings: list[str]) -> list[str]:
    """Return the settings of a shorter run: without a simulator, and of a policy that hardly knows the tags."""
    kept = [each for each in settings if not each.startswith("search.model=")]
    return [*kept, "search=bm25", "warm_start.global_batch_size=6"]


def start(arguments: list[str]) -> subprocess.Popen:
    """Start the recipe in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "recipes/grpo.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = 400) -> str:
    """Wait for the recipe and return what it printed."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output[-6000:]
    return output


def steps_of(run: Path) -> list[dict]:
    """Return the reinforcement-learning rows of metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == "rl"]


def keyed_part(run: Path, step: int) -> list[tuple]:
    """Return what must repeat of a step: prompts, sampling seeds and noise coins, by trajectory."""
    rows = [json.loads(line) for line in (run / "trajectories" / f"step_{step:04d}.jsonl").read_text().splitlines()]
    return sorted(
        (
            row["key"]["prompt"],
            row["key"]["member"],
            row["segments"][0]["text"],
            tuple(turn["sampling_seed"] for turn in row["turns"]),
            tuple(turn["noisy"] for turn in row["turns"]),
        )
        for row in rows
    )


def processes_of(run: Path) -> list[psutil.Process]:
    """Return live processes whose environment or command line names the run's folder or its Ray session."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ZS_NEMO_TEST_RUN") == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for_steps(run: Path, count: int, process: subprocess.Popen, timeout_s: float = 300) -> None:
    """Wait until the log of a run holds so many steps."""
    deadline = time.monotonic() + timeout_s
    while not (run / "metrics.jsonl").exists() or len(steps_of(run)) < count:
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < deadline, f"the run did not reach its step {count}"
        time.sleep(0.2)


def wait_for_a_moment(run: Path) -> None:
    """Wait for a random part of a step, as long as the last one was: a fault meets another stage of it each time."""
    step_s = sum(value for name, value in steps_of(run)[-1].items() if name.startswith("time/"))
    time.sleep(random.SystemRandom().uniform(0, step_s))


def kill_after_three_steps(process: subprocess.Popen, run: Path, timeout_s: float = 300) -> None:
    """Let a run train three steps, kill it, and see that nothing of it is left."""
    wait_for_steps(run, 3, process, timeout_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone_by = time.monotonic() + 20
    while processes_of(run) and time.monotonic() < gone_by:
        time.sleep(0.2)
    assert processes_of(run) == []


def test_a_run_leaves_a_whole_run_directory(whole_run):
    run, output = whole_run
    report = json.loads((run / "report.json").read_text())
    assert {"recipe", "seed", "steps", "wall_s", "stage_s", "evaluation", "search", "cost"} <= report.keys()
    assert (report["recipe"], report["seed"], report["steps"]) == ("grpo", 1, 5)
    roles = report["cost"]["roles"]
    assert set(roles) == {"training", "generation", "simulator"}
    assert all(0 < role["busy_share"] <= 1 for role in roles.values())
    assert report["cost"]["simulated"]["usd_per_1000"] > 0
    assert set(report["evaluation"]) == {
        "before_bm25_greedy",
        "before_bm25_temperature_1",
        "after_bm25_greedy",
        "after_bm25_temperature_1",
        "after_closed_book_greedy",
        "after_simulator_greedy",
    }
    assert all(entry["n"] == 6 for entry in report["evaluation"].values())
    assert str(run / "report.html") in output
    assert (run / "policy" / "model.safetensors").is_file()
    assert list((run / "tensorboard").iterdir())


def test_no_real_engine_is_asked_during_reinforcement_learning(whole_run):
    run, _ = whole_run
    searches = json.loads((run / "search.json").read_text())
    assert searches["rl"]["simulator"]["calls"] > 0
    assert "bm25" not in searches["rl"]
    assert searches["evaluation"]["bm25"]["calls"] > 0


def test_every_trained_token_was_sampled_and_every_document_was_read(whole_run):
    for row in steps_of(whole_run[0]):
        assert row["tokens/token_in_token_out_share"] == 1.0
        assert row["search/unread"] == 0


def test_engine_and_trainer_agree_on_the_sampled_tokens_in_every_step(whole_run):
    for row in steps_of(whole_run[0]):
        assert row["train/num_updates"] == 2
        assert row["train/generation_mismatch_max"] < 1e-3
        # The largest ratio is that of a rare token in the second update, and may be anything.
        assert abs(row["train/ratio"] - 1) < 0.1


def test_noise_follows_the_curriculum(whole_run):
    noise = [row["curriculum/noise"] for row in steps_of(whole_run[0])]
    assert noise == pytest.approx([0.5 + (4 ** (step / 5) - 1) / (4 - 1) * (0.9 - 0.5) for step in range(5)])


def test_the_planner_s_estimate_is_near_what_the_run_took(whole_run, tiny_model):
    cfg = composed_dataclass("grpo", *overrides(tiny_model, Path("unused"), "whole"))
    planned = plan_memory(cfg, derive_layout(cfg, use_gpu=False)).total / GIB
    measured = json.loads((whole_run[0] / "report.json").read_text())["peak_memory_gib"]
    assert 0.6 * planned < measured < 1.2 * planned, (measured, planned)


@pytest.mark.faults
@pytest.mark.parametrize(
    "num_ranks_lost", [pytest.param(0, id="driver", marks=pytest.mark.long), pytest.param(1, id="rank, then driver")]
)
def test_a_run_that_was_killed_repeats_the_same_prompts_coins_and_seeds_and_leaves_no_process(
    whole_run, tiny_model, tmp_path, monkeypatch, num_ranks_lost
):
    run = tmp_path / "killed"
    monkeypatch.setenv("ZS_NEMO_TEST_RUN", str(run))
    # It begins where the warm start of the whole run ended.
    model = [f"policy.model={whole_run[0] / 'reference'}", "warm_start.steps=0"]
    arguments = [*overrides(tiny_model, tmp_path, "killed"), *model, "evaluation.temperatures=[0.0]"]
    process = start(arguments)
    wait_for_steps(run, 1, process)
    if num_ranks_lost:
        wait_for_a_moment(run)
        role_processes(run / "logs" / "policy-rank-1.log")[0].kill()
    # The same process brings the ranks back from the checkpoint, and goes on.
    while len(json.loads((run / "state.json").read_text())["sessions"]) < 1 + num_ranks_lost:
        assert process.poll() is None, process.communicate()[0][-6000:]
        time.sleep(0.2)
    wait_for_steps(run, 3, process)
    wait_for_a_moment(run)
    kill_after_three_steps(process, run)

    output = finish(start(arguments))
    assert "resumed from" in output
    faults = json.loads((run / "report.json").read_text())["faults"]
    assert (faults["group_restarts"], faults["engine_restarts"], faults["hangs"]) == (num_ranks_lost, 0, 0)
    # What a finished run says to the same command: tests/unit/cluster/test_terminal.py.
    assert json.loads((run / "state.json").read_text())["finished"]
    assert [row["step"] for row in steps_of(run)] == [0, 1, 2, 3, 4]
    for step in range(5):
        assert keyed_part(run, step) == keyed_part(whole_run[0], step)
    resumed, uninterrupted = steps_of(run), steps_of(whole_run[0])
    for name in ("train/loss", "train/grad_norm", "reward/mean"):
        assert resumed[-1][name] == pytest.approx(uninterrupted[-1][name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        # What a signal does to the step under way is seen in tests/unit/cluster/test_stop_request.py too.
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.long, id="SIGTERM"),
    ],
)
def test_an_interrupt_ends_every_process_and_says_how_to_go_on(tiny_model, tmp_path, monkeypatch, number, code):
    run = tmp_path / "stopped"
    monkeypatch.setenv("ZS_NEMO_TEST_RUN", str(run))
    process = start(with_real_search(overrides(tiny_model, tmp_path, "stopped")))
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[0][-6000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # A terminal sends Ctrl-C to the whole group, a scheduler ends the process that it started.
    os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Go on from the last checkpoint with" in output
    gone_by = time.monotonic() + 20
    while processes_of(run) and time.monotonic() < gone_by:
        time.sleep(0.2)
    assert processes_of(run) == []
