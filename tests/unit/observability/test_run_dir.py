import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.fakes import CharTokenizer
from tests.unit.observability.runs import config, group, searching
from zs_nemo.config.endpoints import RecordingConfig, RecordingMode
from zs_nemo.config.policy import Recompute
from zs_nemo.config.recipe import PpoRecipeConfig
from zs_nemo.config.rollout import RefitTransport
from zs_nemo.observability import run_dir as module
from zs_nemo.observability.config_file import redact
from zs_nemo.observability.files import (
    drop_torn_line,
    read_json_lines,
    write_between_marks,
    write_json_lines,
    write_text,
)
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.run_dir import LockedByFormerLifeError, RunDir
from zs_nemo.observability.timeline import read_timeline
from zs_nemo.observability.timer import StageTimer


def logged(path: Path) -> list[tuple[str, int]]:
    return [(row["phase"], row["step"]) for row in read_json_lines(path / "metrics.jsonl")]


def test_the_configuration_is_written_resolved_with_the_settings_of_the_chosen_engine(tmp_path: Path) -> None:
    RunDir(tmp_path, config(seed=5)).close()
    written = OmegaConf.load(tmp_path / "config.yaml")
    assert written.seed == 5
    assert written.search.max_tokens == 48
    assert written.policy.precision == "bf16"


def test_credentials_are_left_out_and_token_limits_are_not() -> None:
    settings = {
        "api_key": "a1",
        "search": {"hf_token": "b2", "max_tokens": 48, "password": "", "url": "http://me:c3@host/retrieve"},
        "wandb": [{"secret": "d4"}],
        "tokenizer": "gpt2",
        "train_mb_tokens": 2048,
    }
    cleaned = redact(settings)
    assert not {"a1", "b2", "c3", "d4"} & set(json.dumps(cleaned).replace("@", '"').replace(":", '"').split('"'))
    assert cleaned["search"]["max_tokens"] == 48
    assert cleaned["search"]["url"] == "http://***@host/retrieve"
    assert cleaned["tokenizer"] == "gpt2"


def test_every_step_is_on_disk_when_log_step_returns(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        run.log_step(0, {"train/loss": 2.0}, Phase.warm_start)
        run.log_step(0, {"reward/mean": 0.5, "train/kl": float("nan")})
        last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"phase": "rl", "step": 0, "reward/mean": 0.5, "train/kl": None}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    groups = [group(searching(), searching())]
    with RunDir(tmp_path, config()) as run:
        run.log_step(0, {"train/loss": 2.0}, Phase.warm_start)
        for step in range(4):
            run.log_step(step, {"reward/mean": 0.1 * step})
            run.write_trajectories(step, groups, CharTokenizer(), 1)
    with RunDir(tmp_path, config()) as run:
        run.truncate_after(1)
        assert logged(tmp_path) == [("warm_start", 0), ("rl", 0), ("rl", 1)]
        assert len(list((tmp_path / "trajectories").iterdir())) == 2
        run.log_step(2, {"reward/mean": 0.9})
        assert logged(tmp_path)[-1] == ("rl", 2)
        run.truncate_after(-1, Phase.warm_start)
        assert logged(tmp_path) == []


def test_a_line_torn_by_a_crash_is_dropped_and_not_continued(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        run.log_step(0, {"reward/mean": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "rl", "step": 1, "rew')
    assert logged(tmp_path) == [("rl", 0)]
    with RunDir(tmp_path, config()) as run:
        run.log_step(1, {"reward/mean": 0.2})
    assert logged(tmp_path) == [("rl", 0), ("rl", 1)]


def test_a_line_torn_within_a_character_is_passed_over_and_a_broken_one_before_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    torn = '{"a": "東'.encode()[:-1]
    path.write_bytes(b'{"a": 1}\n' + torn)
    assert read_json_lines(path) == [{"a": 1}]
    drop_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(torn + b'\n{"a": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 is not a JSON object"):
        read_json_lines(path)


def test_a_whole_last_line_counts_without_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for cut_off in ("", "\n", '\n{"a": 3', "\n3"):
        path.write_text('{"a": 1}\n{"a": 2}' + cut_off)
        assert read_json_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_broken_line_in_the_middle_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read_json_lines(path)


def test_text_with_unicode_line_separators_survives_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\x85three"}, {"text": "four"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_what_is_generated_replaces_only_what_stands_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb <!-- end of x -->\n")
    write_between_marks(page, "x", "new\n")
    assert page.read_text() == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb <!-- end of x -->\n"
    with pytest.raises(ValueError, match=r"page\.md has no lines '<!-- y -->' and '<!-- end of y -->'"):
        write_between_marks(page, "y", "new\n")


def test_two_runs_never_write_the_same_directory(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()), pytest.raises(ValueError, match=rf"pid {os.getpid()}.*exp_manager\.name"):
        RunDir(tmp_path, config())
    RunDir(tmp_path, config()).close()


def _hold(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with RunDir(path, config()):
        ready.set()
        signal.pause()


def test_the_lock_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(10)
    with pytest.raises(ValueError, match=f"pid {holder.pid}"):
        RunDir(tmp_path, config())
    holder.kill()
    holder.join()
    RunDir(tmp_path, config()).close()


def test_a_watcher_that_looks_at_the_lock_for_an_instant_keeps_no_run_from_starting(tmp_path: Path) -> None:
    RunDir(tmp_path, config()).close()
    with (tmp_path / ".lock").open() as watcher:
        fcntl.flock(watcher, fcntl.LOCK_SH)
        release = threading.Timer(0.05, fcntl.flock, (watcher, fcntl.LOCK_UN))
        release.start()
        RunDir(tmp_path, config()).close()
        release.join()


def test_steps_and_sampled_episodes_are_in_the_timeline(tmp_path: Path) -> None:
    episode = replace(searching(), began_s=time.monotonic(), elapsed_s=0.5)
    with RunDir(tmp_path, config()) as run:
        run.log_step(0, {"train/loss": 2.0, "train/kl": 0.1}, Phase.warm_start)
        run.log_step(0, {"reward/mean": 0.5, "time/train": 3.0})
        run.write_trajectories(0, [group(episode)], CharTokenizer(), 1)
    events = [(event["ph"], event["name"]) for event in read_timeline(tmp_path / "timeline.json")]
    assert [name for kind, name in events if kind in "iC"] == [
        "warm_start/step 0",
        "warm_start/train/kl",
        "step 0",
        "reward/mean",
    ]
    assert ("X", "step 0 prompt 0 member 0") in events


def test_a_run_that_has_begun_says_so_before_its_first_step(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        assert not (tmp_path / "state.json").exists()
        run.begin()
        state = json.loads((tmp_path / "state.json").read_text())
    assert (state["finished"], len(state["sessions"]), state["recipe"]) == (False, 1, "grpo")


def test_a_resumed_run_must_keep_what_changes_its_results_once_it_has_made_any(tmp_path: Path) -> None:
    other = config()
    other.seed = 7
    with RunDir(tmp_path, other) as run:
        run.begin()
        (tmp_path / "checkpoints").mkdir()
        # recipes/simulate_cluster.py was asked how it would go.
        write_text(tmp_path / "simulation" / "simulation.json", "{}")
        # W&B keeps its files here from the beginning of a session on.
        write_text(tmp_path / "wandb" / "run" / "files" / "config.yaml", "{}")
    with RunDir(tmp_path, config()) as run:
        assert f"seed: {config().seed}" in (tmp_path / "config.yaml").read_text()
        run.log_step(0, {"train/loss": 2.0}, Phase.warm_start)
    other = config()
    other.policy.optim.lr, other.policy.use_distributed_optimizer = 0.5, False
    told = r"policy\.optim\.lr: .* -> 0\.5; policy\.use_distributed_optimizer: True -> False.*exp_manager\.name"
    with pytest.raises(ValueError, match=told):
        RunDir(tmp_path, other)
    elsewhere = config()
    elsewhere.trainer.devices = 8
    elsewhere.cluster.threads_per_process = 4
    elsewhere.generation.refit_transport = RefitTransport.nccl
    # What the messages advise that say too many searches have failed.
    elsewhere.rollout.search_max_failure_share, elsewhere.rollout.search_deadline_s = 0.5, 90.0
    elsewhere.rollout.search_max_empty_share = 0.9
    elsewhere.policy.activations_checkpoint_granularity = Recompute.full
    # How a recorder that crashed goes on from its file.
    elsewhere.search.recording = RecordingConfig(mode=RecordingMode.record_missing, path="answers.jsonl")
    RunDir(tmp_path, elsewhere).close()


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default_alone(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        run.log_step(0, {"train/loss": 2.0})
    older = OmegaConf.load(tmp_path / "config.yaml")
    for group_of, name in (
        (older, "curriculum"),
        (older.policy, "precision"),
        (older.policy, "stochastic_rounding"),
        (older.policy.optim.sched, "min_lr"),
        (older.search, "temperature"),
    ):
        del group_of[name]
    write_text(tmp_path / "config.yaml", OmegaConf.to_yaml(older))
    other = config()
    other.policy.stochastic_rounding, other.curriculum.end_noise = True, 0.75
    told = r"curriculum\.end_noise: 0\.5 -> 0\.75; policy\.stochastic_rounding: False -> True\)"
    with pytest.raises(ValueError, match=told):
        RunDir(tmp_path, other)
    RunDir(tmp_path, config()).close()
    assert "stochastic_rounding: false" in (tmp_path / "config.yaml").read_text()


def test_a_setting_that_a_run_had_and_is_no_more_is_named(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        run.log_step(0, {"train/loss": 2.0})
    write_text(tmp_path / "config.yaml", (tmp_path / "config.yaml").read_text() + "former: 3\n")
    with pytest.raises(ValueError, match=r"former: 3 -> \(absent\)"):
        RunDir(tmp_path, config())


def test_a_resumed_run_may_move_either_optimizer_to_the_host_s_memory(tmp_path: Path) -> None:
    cfg = PpoRecipeConfig()
    with RunDir(tmp_path, cfg) as run:
        run.log_step(0, {"train/loss": 2.0})
    cfg.policy.optim.optimizer_cpu_offload = cfg.critic.optim.optimizer_cpu_offload = True
    RunDir(tmp_path, cfg).close()


def test_a_finished_evaluation_is_found_again_for_its_step_alone(tmp_path: Path) -> None:
    rows = [{"question_id": "q1", "f1": 1.0}]
    with RunDir(tmp_path, config()) as run:
        assert run.finished_evaluation("after_bm25_greedy", step=12) is None
        run.write_evaluation("after_bm25_greedy", {"f1": 1.0}, rows, step=12)
    with RunDir(tmp_path, config()) as run:
        assert run.finished_evaluation("after_bm25_greedy", step=12) == rows
        assert run.finished_evaluation("after_bm25_greedy", step=24) is None


def test_an_evaluation_without_its_summary_is_not_finished(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        run.write_evaluation("after_bm25_greedy", {"f1": 1.0}, [{"question_id": "q1"}], step=3)
        (tmp_path / "evaluations" / "after_bm25_greedy.json").unlink()
        assert run.finished_evaluation("after_bm25_greedy", step=3) is None


def test_time_adds_up_over_sessions_and_only_finish_marks_the_end(tmp_path: Path) -> None:
    for session in range(2):
        now = [0.0]
        timer = StageTimer(clock=lambda now=now: now[0])  # type: ignore[misc]
        with RunDir(tmp_path, config()) as run:
            assert not run.finished
            with timer("rollout"):
                now[0] += 2 + session
            run.save_progress(timer, peak_memory_gib=4.0 - session)
    state = json.loads((tmp_path / "state.json").read_text())
    assert [session["stage_s"]["rollout"] for session in state["sessions"]] == [2, 3]
    with RunDir(tmp_path, config()) as run:
        run.finish()
    with RunDir(tmp_path, config()) as run:
        assert run.finished


def test_a_sampled_episode_is_written_with_its_segments_in_order(tmp_path: Path) -> None:
    with RunDir(tmp_path, config()) as run:
        run.write_trajectories(7, [group(searching(key=(7, 0, 1)))], CharTokenizer(), 3)
    (row,) = read_json_lines(tmp_path / "trajectories" / "step_0007.jsonl")
    assert [(part["role"], part["text"]) for part in row["segments"]] == [
        ("prompt", "prompt"),
        ("policy", "<search>"),
        ("document", "doc"),
        ("policy", "answer"),
    ]
    assert row["key"] == {"run_seed": 1, "step": 7, "prompt": 0, "member": 1}
    assert row["turns"][0]["source"] == "simulator"
    assert row["turns"][0]["sampling_seed"] == 7
    assert row["status"] == "answered"


def test_the_sample_is_spread_over_groups_and_blind_to_rewards(tmp_path: Path) -> None:
    groups = [
        group(*(searching(reward=3 - member, key=(0, prompt, member)) for member in range(4))) for prompt in range(3)
    ]
    blind = [group(*(replace(member, reward=0.0) for member in members.trajectories)) for members in groups]
    with RunDir(tmp_path, config()) as run:
        run.write_trajectories(0, groups, CharTokenizer(), 3)
        run.write_trajectories(1, blind, CharTokenizer(), 3)
    first, second = (
        [(row["key"]["prompt"], row["key"]["member"]) for row in read_json_lines(path)]
        for path in sorted((tmp_path / "trajectories").iterdir())
    )
    assert sorted(prompt for prompt, _ in first) == [0, 1, 2]
    assert first == second


def test_a_run_directory_that_cannot_be_written_is_refused_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = r"the run directory .*file/run cannot be written \(Not a directory: .*set exp_manager\.exp_dir"
    with pytest.raises(ValueError, match=told):
        RunDir(tmp_path / "file" / "run", config())


def test_a_file_system_without_locks_is_told_from_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    told = r"run cannot be locked \(Function not implemented\).*mounted with locks .*or set exp_manager\.exp_dir"
    with pytest.raises(ValueError, match=told):
        RunDir(tmp_path / "run", config())


def test_who_holds_a_run_directory_is_named_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    told = f"written by another process \\(pid {os.getpid()} on .*, SLURM job 42\\); wait for it to end"
    with RunDir(tmp_path, config()), pytest.raises(ValueError, match=told):
        RunDir(tmp_path, config())


@pytest.mark.parametrize(("job", "kind"), [("42", LockedByFormerLifeError), ("7", ValueError)])
def test_a_job_waits_for_the_lock_of_a_machine_that_may_have_died_and_comes_again_where_it_was_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, job: str, kind: type[ValueError]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setattr(module, "_LOCK_PATIENCE_WITH_MACHINE_S", 0.4)
    monkeypatch.setattr(module, "_LOCK_PATIENCE_S", 0.0)
    with (tmp_path / ".lock").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        holder.write(f"1234 on another-node, SLURM job {job}")
        holder.flush()
        began = time.monotonic()
        with pytest.raises(ValueError, match=f"pid 1234 on another-node, SLURM job {job}") as refused:
            RunDir(tmp_path, config())
        assert refused.type is kind and time.monotonic() - began >= 0.4
        release = threading.Timer(0.1, fcntl.flock, (holder, fcntl.LOCK_UN))
        release.start()
        RunDir(tmp_path, config()).close()
        release.join()
    assert caplog.text.count("is locked by pid 1234 on another-node") == 2, "once a start"
