import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recipes.watch import main
from tests.unit.observability.runs import config, finished_run
from zs_nemo.config.collect import CollectRecipeConfig
from zs_nemo.config.evaluate import EvaluateRecipeConfig
from zs_nemo.config.experiment import ExpManagerConfig
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.sft_simulator import SftSimulatorRecipeConfig
from zs_nemo.observability.files import append_json_line, write_json, write_json_lines
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.run_dir import RunDir
from zs_nemo.observability.run_follower import JsonLinesTail, Life, RunFollower, life_of
from zs_nemo.observability.timer import StageTimer
from zs_nemo.observability.watch_panel import watch_panel

ROOT = Path(__file__).parents[3]
STEP = {"curriculum/noise": 0.1, "rollout/searches_per_episode": 1.5, "train/kl": 0.01, "train/entropy": 0.8}


def small() -> GrpoRecipeConfig:
    cfg = config()
    cfg.trainer.max_steps, cfg.warm_start.steps = 6, 2
    cfg.exp_manager.create_tensorboard_logger = False
    return cfg


def frame(path: Path, clock: Any = time.time) -> str:
    console = Console(width=110, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(watch_panel(RunFollower(path, clock).view()))
    return captured.get()


def step(reward: float, seconds: float = 60.0) -> Mapping[str, float]:
    return {"reward/mean": reward, "time/rollout": 0.6 * seconds, "time/train": 0.4 * seconds, **STEP}


def test_a_running_run_shows_its_stage_its_curves_and_the_time_left(tmp_path: Path) -> None:
    with RunDir(tmp_path, small()) as run:
        run.begin()
        timer = StageTimer(timeline=run.timeline)
        for number in range(2):
            run.log_step(number, {"train/loss": 2.0}, Phase.warm_start)
        for number in range(4):
            run.log_step(number, step(0.1 * number))
        run.save_progress(timer, search={"rl": {"simulator": {"calls": 1234.0, "failures": 3.0}}}, peak_memory_gib=8.5)
        with timer("rollout"):
            shown = frame(tmp_path, clock=lambda: time.time() + 90)
    assert f"running: process {os.getpid()} on {socket.gethostname()}" in shown
    assert "training · rollout for 1:3" in shown
    assert "4/6" in shown and "1:3" in shown and "2:00 left of training" in shown
    for part in ("0.300  ▁▃▆█", "10%", "1.50", "0.0100", "0.800", "1,234 searches · 3 failed", "peak memory 8.5 GiB"):
        assert part in shown


def test_before_the_first_step_the_warm_start_is_what_progresses(tmp_path: Path) -> None:
    with RunDir(tmp_path, small()) as run:
        run.begin()
        assert "warm start" in frame(tmp_path) and "0/2" in frame(tmp_path)
        run.log_step(0, {"train/loss": 2.0}, Phase.warm_start)
        assert "1/2" in frame(tmp_path)
        run.log_step(1, {"train/loss": 2.0}, Phase.warm_start)
        assert "training" in frame(tmp_path) and "0/6" in frame(tmp_path)


def test_a_fine_tuning_has_its_own_steps_and_losses(tmp_path: Path) -> None:
    cfg = SftSimulatorRecipeConfig(exp_manager=ExpManagerConfig(create_tensorboard_logger=False))
    cfg.trainer.max_steps = 20
    with RunDir(tmp_path, cfg) as run:
        for number in range(12):
            held_out = {"held_out/loss": 1.25} if number == 9 else {}
            run.log_step(number, {"train/loss": 2.0 - 0.1 * number, **held_out}, Phase.warm_start)
        run.save_progress(StageTimer())
    shown = frame(tmp_path)
    assert "fine-tuning" in shown and "12/20" in shown and "0.900  █" in shown and "held-out loss" in shown
    assert "training 0/" not in shown


def test_an_evaluation_counts_its_questions_and_a_collection_its_rounds(tmp_path: Path) -> None:
    logging = ExpManagerConfig(create_tensorboard_logger=False)
    evaluated = tmp_path / "evaluated"
    with RunDir(evaluated, EvaluateRecipeConfig(exp_manager=logging)) as run:
        run.save_progress(StageTimer())
    assert "evaluation" in frame(evaluated) and "questions: 0" in frame(evaluated)
    sets = {"nq/test": {"num_questions": 6, "sha256": ""}, "popqa/test": {"num_questions": 2, "sha256": ""}}
    write_json(evaluated / "manifest.json", {"evaluations": {"agent": {"sets": sets}, "direct": {"sets": sets}}})
    follower = RunFollower(evaluated)
    (evaluated / "answers" / "agent").mkdir(parents=True)
    for number in (1, 2, 3):
        append_json_line(evaluated / "answers" / "agent" / "nq_test.jsonl", {"question_id": f"nq/test/{number}"})
        assert (follower.view().part.done, follower.view().part.total) == (number, 16)
    assert "3/16" in frame(evaluated)

    collected = tmp_path / "collected"
    with RunDir(collected, CollectRecipeConfig(exp_manager=logging)) as run:
        run.save_progress(StageTimer())
    (collected / "interactions").mkdir()
    write_json_lines(collected / "interactions" / "step_0000.jsonl", [])
    assert "collection" in frame(collected) and "rounds of questions: 1" in frame(collected)


def test_time_by_stage_adds_up_over_sessions_with_its_share(tmp_path: Path) -> None:
    for seconds in (60.0, 120.0):
        now = [0.0]
        timer = StageTimer(clock=lambda now=now: now[0])  # type: ignore[misc]
        with RunDir(tmp_path, small()) as run:
            for stage, part in (("rollout", 0.75), ("train", 0.25)):
                with timer(stage):
                    now[0] += part * seconds
            run.save_progress(timer)
    shown = frame(tmp_path)
    assert "rollout  2:15  75%" in shown and "train    0:45  25%" in shown and "3:00 elapsed" in shown


def test_a_finished_run_shows_its_scores_with_the_newest_last(tmp_path: Path) -> None:
    shown = frame(finished_run(tmp_path / "quickstart"))
    assert "quickstart · GRPO" in shown and "finished" in shown
    lines = [line for line in shown.splitlines() if "F1" in line]
    assert "after_bm25_temperature_1  F1 0.750 [" in lines[-1]


def test_a_run_whose_process_is_gone_is_told_from_a_running_one_and_from_one_elsewhere(tmp_path: Path) -> None:
    with RunDir(tmp_path, small()) as run:
        run.begin()
        assert life_of(tmp_path, finished=False)[0] is Life.running
    assert life_of(tmp_path, finished=False)[0] is Life.ended
    assert "is gone; the same command goes on" in frame(tmp_path)
    (tmp_path / ".lock").write_text("12 on another-machine")
    assert life_of(tmp_path, finished=False) == (Life.unknown, "12 on another-machine")
    assert "process 12 on another-machine cannot be seen" in frame(tmp_path)
    assert life_of(tmp_path, finished=True)[0] is Life.finished


def test_rows_are_read_as_the_file_grows_and_anew_when_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonLinesTail(path)
    assert tail.read() == []
    append_json_line(path, {"step": 0})
    with path.open("a") as file:
        file.write('{"step": ')
        file.flush()
        assert [row["step"] for row in tail.read()] == [0]
        file.write("1}\n")
    assert [row["step"] for row in tail.read()] == [0, 1]
    write_json_lines(path, [{"step": 0}, {"step": 7}])
    assert [row["step"] for row in tail.read()] == [0, 7]
    path.unlink()
    assert tail.read() == []


def test_a_number_that_is_missing_or_not_finite_is_left_out_of_the_curve(tmp_path: Path) -> None:
    with RunDir(tmp_path, small()) as run:
        run.log_step(0, step(0.25) | {"train/kl": float("nan")})
        run.log_step(1, {"reward/mean": 0.75})
    shown = frame(tmp_path)
    assert "0.750  ▁█" in shown and "KL" not in shown


def test_once_prints_one_frame_and_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "my_run")
    assert main([str(run), "--once"]) == 0
    assert capsys.readouterr().out.count("my_run · GRPO") == 1
    assert main([str(tmp_path), "--once"]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_a_folder_that_goes_away_ends_it_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").mkdir()
    assert main([str(tmp_path), "--once"]) == 1
    assert re.search(r"error: .*config\.yaml can no longer be read: Is a directory", capsys.readouterr().err)


def test_help_comes_without_a_heavy_import() -> None:
    code = (
        "import sys; sys.argv = ['watch', '--help']\n"
        "import recipes.watch as watch\n"
        "try: watch.main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'rich', 'omegaconf', 'torch', 'ray'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "RUN_DIR" in shown.stdout and "heavy: []" in shown.stdout


def test_watching_needs_no_torch(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "my_run")
    code = (
        "import sys; from recipes.watch import main\n"
        f"main([{str(run)!r}, '--once'])\n"
        "print('heavy:', sorted({'torch', 'transformers', 'ray', 'vllm', 'hydra'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "heavy: []" in shown.stdout, shown.stderr


def watching(path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the command on a terminal of its own; return it and the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import sys; from recipes.watch import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, str(path), "--interval", "0.05"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read_until(terminal: int, wanted: str, limit_s: float = 30.0) -> str:
    """Return what the terminal shows up to the wanted text, or all of it when the command has ended."""
    shown, deadline = "", time.monotonic() + limit_s
    while wanted not in shown and time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        shown += part.decode(errors="replace")
    return shown


def test_on_a_terminal_it_follows_the_run_and_ends_with_it(tmp_path: Path) -> None:
    with RunDir(tmp_path, small()) as run:
        run.begin()
        process, terminal = watching(tmp_path)
        try:
            assert "running: process" in read_until(terminal, "0/2")
            run.log_step(0, step(0.5))
            assert "1/6" in read_until(terminal, "1/6")
            run.finish()
            run.close()
            assert "finished" in read_until(terminal, "finished")
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(terminal)


def test_ctrl_c_ends_it_quietly_and_leaves_the_cursor(tmp_path: Path) -> None:
    with RunDir(tmp_path, small()) as run:
        run.begin()
        process, terminal = watching(tmp_path)
        try:
            shown = read_until(terminal, "0/2")
            os.kill(process.pid, signal.SIGINT)
            shown += read_until(terminal, "never shown", limit_s=10)
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(terminal)
    assert "Traceback" not in shown and "KeyboardInterrupt" not in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_a_copy_of_a_run_made_elsewhere_can_be_watched_without_its_lock(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "here")
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns(".lock"))
    state = json.loads((tmp_path / "copy" / "state.json").read_text())
    assert state["finished"] and "finished" in frame(tmp_path / "copy")
