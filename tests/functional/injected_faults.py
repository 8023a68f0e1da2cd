"""Faults that are injected into a real run at a moment that a key draws, and what must hold afterwards.

Used once a fault by ``test_faults.py``, and many times over by ``launch/faults.sh``. A trial goes on from the
checkpoint that an undisturbed run of the same settings made after its warm start, and is held against that run.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.functional.role_processes import role_processes
from tests.functional.test_grpo_recipe import ROOT, keyed_part, overrides, processes_of, steps_of

NUM_STEPS = 5
SAVE_EVERY = 2
TIMEOUT_S = 900.0
"""For a start and for each command of a trial: some twenty times what they take, and less than a hang would."""
GONE_AFTER_S = 20.0
HANG_TIMEOUT_S = 40.0
_MOUNTED = Path("/tmp/zs_nemo_small_disk")
_MOUNT = f"mkdir -p {_MOUNTED} && mount -t tmpfs -o size=2g tmpfs {_MOUNTED} && echo mounted && exec sleep infinity"


@dataclass(kw_only=True)
class Trial:
    """What became of one injected fault."""

    fault: str
    number: int
    delay_s: float
    """From the beginning of the first step to the fault."""
    in_step: int = -1
    """The step that the fault came into; -1 when the run was over before."""
    survived: bool = False
    lost_steps: int = 0
    """Steps that had been logged and had to be made again."""
    recovery_s: float = 0.0
    """From the fault to the next step in the log."""
    problems: list[str] = field(default_factory=list)


def settings(model: Path, folder: Path, name: str) -> list[str]:
    """Return the overrides of every run here. In float32 no batch can tip a token over."""
    return [
        *overrides(model, folder, name),
        "search.dtype=float32",
        f"trainer.max_steps={NUM_STEPS}",
        f"exp_manager.save_every_n_steps={SAVE_EVERY}",
        "exp_manager.save_top_k=10",
        f"cluster.startup_timeout_s={TIMEOUT_S:g}",
        "evaluation.num_questions=4",
        "evaluation.num_simulator_questions=4",
        "evaluation.temperatures=[0.0]",
    ]


class Run:
    """The recipe in a process group of its own; its output is read as it comes."""

    def __init__(self, arguments: list[str], folder: Path, prefix: list[str] | None = None) -> None:
        self.lines: list[str] = []
        self.began_s = 0.0
        """When the first step began."""
        self.process = subprocess.Popen(
            [*(prefix or []), sys.executable, "-u", "recipes/grpo.py", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ZS_NEMO_TEST_RUN": str(folder)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("training:") and not self.began_s:
                self.began_s = time.monotonic()
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "\n".join(self.lines)

    def wait(self, timeout_s: float) -> int:
        """Return its exit code, -1 if it has not ended in time; then it is ended."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return -1
        self._reader.join(5)
        return code

    def wait_for_first_step(self, timeout_s: float = TIMEOUT_S) -> None:
        """Return when it has begun; raise when it does not come to that."""
        deadline = time.monotonic() + timeout_s
        while not self.began_s:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come to its first step:\n{self.output[-3000:]}")
            time.sleep(0.05)


def undisturbed(model: Path, folder: Path) -> Path:
    """Return a run without faults, made now if it is not there."""
    run = folder / "undisturbed"
    if not (run / "report.json").exists():
        started = Run(settings(model, folder, run.name), run)
        code = started.wait(TIMEOUT_S)
        assert code == 0, started.output[-6000:]
    return run


def copy_of_beginning(reference: Path, target: Path) -> None:
    """Make a run that has done what the reference had done before its first step."""
    target.mkdir(parents=True)
    for name in ("reference", "evaluations"):
        shutil.copytree(reference / name, target / name)
    for path in (target / "evaluations").glob("after_*"):
        path.unlink()
    shutil.copytree(reference / "checkpoints" / "step_000000", target / "checkpoints" / "step_000000")
    shutil.copy(reference / "config.yaml", target)
    rows = [row for row in map(json.loads, (reference / "metrics.jsonl").open()) if row["phase"] == "warm_start"]
    (target / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def num_logged(run: Path) -> int:
    """Return how many steps are in the log; a line that is just being written does not count."""
    path = run / "metrics.jsonl"
    *whole, _ = path.read_text().split("\n") if path.exists() else [""]
    return sum('"phase": "rl"' in line for line in whole)


def draw_delay(fault: str, number: int, reference: Path, seed: int) -> float:
    """Return a moment within the steps of the undisturbed run, in seconds from their beginning."""
    rows = steps_of(reference)
    span = sum(value for row in rows for name, value in row.items() if name.startswith("time/"))
    return random.Random(f"{seed}/{fault}/{number}").uniform(0.0, 0.9 * span)


def run_trial(fault: str, number: int, model: Path, folder: Path, *, seed: int = 0) -> Trial:
    """Inject one fault into a run and see it through to its end, with a second command where the fault needs one."""
    reference = undisturbed(model, folder)
    trial = Trial(fault=fault, number=number, delay_s=draw_delay(fault, number, reference, seed))
    with FAULTS[fault](folder / f"{fault}_{number}", random.Random(f"{seed}/{fault}/{number}/what")) as scene:
        shutil.rmtree(scene.run, ignore_errors=True)
        copy_of_beginning(reference, scene.run)
        arguments = [*settings(model, scene.seen_folder, scene.run.name), *scene.more]
        started = Run(arguments, scene.run, scene.prefix)
        try:
            _play(trial, scene, started, arguments, reference)
        finally:
            if started.process.poll() is None:
                os.killpg(started.process.pid, signal.SIGKILL)
        trial.survived = not trial.problems and trial.in_step >= 0
        if trial.survived:
            shutil.rmtree(scene.run, ignore_errors=True)
    return trial


def _play(trial: Trial, scene: "Scene", started: Run, arguments: list[str], reference: Path) -> None:
    started.wait_for_first_step()
    time.sleep(max(0.0, started.began_s + trial.delay_s - time.monotonic()))
    before = num_logged(scene.run)
    if started.process.poll() is not None or before == NUM_STEPS:
        started.wait(TIMEOUT_S)
        return
    trial.in_step = before
    scene.inject(started)
    threading.Thread(target=_time_recovery, args=(trial, scene.run, time.monotonic()), daemon=True).start()
    code = started.wait(TIMEOUT_S)
    if code != scene.exit_code:
        trial.problems.append(f"exit code {code} instead of {scene.exit_code}: {started.output[-1500:]}")
    trial.problems += [f"not told: {text}" for text in scene.told if text not in started.output]
    output = started.output
    if scene.exit_code != 0:
        _expect_nothing_left(trial, scene.run)
        scene.repair()
        again = Run(arguments, scene.run, scene.prefix)
        code = again.wait(TIMEOUT_S)
        output = again.output
        if code != 0:
            trial.problems.append(f"the second command ended with {code}: {output[-1500:]}")
    _expect_nothing_left(trial, scene.run)
    _expect_same_run(trial, scene, reference, output)


def _time_recovery(trial: Trial, run: Path, injected: float) -> None:
    while not trial.recovery_s and time.monotonic() - injected < TIMEOUT_S:
        if num_logged(run) > trial.in_step:
            trial.recovery_s = time.monotonic() - injected
        time.sleep(0.2)


def _expect_nothing_left(trial: Trial, run: Path) -> None:
    deadline = time.monotonic() + GONE_AFTER_S
    while (left := processes_of(run)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        trial.problems.append(f"processes are left: {[process.name() for process in left]}")


def _expect_same_run(trial: Trial, scene: "Scene", reference: Path, output: str) -> None:
    steps = [row["step"] for row in steps_of(scene.run)]
    if steps != list(range(NUM_STEPS)):
        trial.problems.append(f"the log holds the steps {steps}")
        return
    if scene.goes_back:
        resumed = [int(line.rpartition("at step ")[2]) for line in output.splitlines() if "resumed from" in line]
        # Its first line is the beginning of the trial, unless this is a second command.
        trial.lost_steps = max(0, trial.in_step - resumed[-1]) if resumed else trial.in_step
        # A checkpoint that is written in the background counts when the next episodes have ended.
        if trial.lost_steps > scene.allowed_loss:
            trial.problems.append(f"{trial.lost_steps} steps were lost")
    for step in range(NUM_STEPS):
        if keyed_part(scene.run, step) != keyed_part(reference, step):
            trial.problems.append(f"step {step} has other prompts, coins or seeds than the undisturbed run")
    ours, theirs = steps_of(scene.run)[-1], steps_of(reference)[-1]
    for name in ("train/loss", "train/grad_norm", "reward/mean"):
        if abs(ours[name] - theirs[name]) > 1e-3 * abs(theirs[name]) + 1e-5:
            trial.problems.append(f"{name} of the last step is {ours[name]:.6g}, undisturbed {theirs[name]:.6g}")


@dataclass(kw_only=True)
class Scene:
    """Where a trial plays, and how its fault is made."""

    run: Path
    """As the test sees it."""
    seen_folder: Path
    """The folder of the runs as the recipe sees it."""
    inject: Callable[[Run], None]
    exit_code: int = 0
    """Of the first command. Where it is not 0, the same command is given again."""
    told: tuple[str, ...] = ()
    goes_back: bool = True
    """Whether the fault costs the steps since the last checkpoint."""
    allowed_loss: int = 2 * SAVE_EVERY - 1
    repair: Callable[[], None] = lambda: None
    prefix: list[str] = field(default_factory=list)
    more: tuple[str, ...] = ()
    """Settings that the fault needs."""


@contextmanager
def _lost_engine(role: str, run: Path, draw: random.Random) -> Iterator[Scene]:
    def kill(started: Run) -> None:
        draw.choice(role_processes(run / "logs" / f"{role}.log")).kill()

    told = (f"fault: an engine died and was replaced: {role}",)
    yield Scene(run=run, seen_folder=run.parent, inject=kill, told=told, goes_back=False)


@contextmanager
def lost_engine(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Kill one of the processes of the policy's engine: it is replaced."""
    with _lost_engine("policy-engine-0", run, draw) as scene:
        yield scene


@contextmanager
def lost_simulator(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Kill one of the processes of the simulator's engine: it is replaced."""
    with _lost_engine("simulator-engine-0", run, draw) as scene:
        yield scene


@contextmanager
def lost_rank(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Kill a training rank: the run returns to its last checkpoint."""

    def kill(started: Run) -> None:
        role_processes(run / "logs" / f"policy-rank-{draw.randrange(2)}.log")[0].kill()

    yield Scene(run=run, seen_folder=run.parent, inject=kill, told=("fault: a training rank died",))


@contextmanager
def hang(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Stop a rank or an engine without ending it: it is found by missing progress, and treated as dead."""
    role = draw.choice(["policy-rank-0", "policy-engine-0", "simulator-engine-0"])

    def stop(started: Run) -> None:
        role_processes(run / "logs" / f"{role}.log")[-1].suspend()

    yield Scene(
        run=run,
        seen_folder=run.parent,
        inject=stop,
        told=("fault: a process showed no progress and was ended: ",),
        goes_back="rank" in role,
        more=(f"faults.hang_timeout_s={HANG_TIMEOUT_S:g}",),
    )


@contextmanager
def lost_driver(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Kill the driver: the same command goes on from the last checkpoint."""
    yield Scene(
        run=run, seen_folder=run.parent, inject=lambda started: started.process.kill(), exit_code=-signal.SIGKILL
    )


@contextmanager
def torn_checkpoint(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Kill the driver and cut a file of the newest checkpoint off: the one before is gone on from."""

    def tear() -> None:
        whole = sorted(path for path in (run / "checkpoints").glob("step_??????") if path.name != "step_000000")
        if whole:
            path = draw.choice(sorted((whole[-1] / "policy").glob("*.distcp")))
            os.truncate(path, draw.randrange(path.stat().st_size))

    yield Scene(
        run=run,
        seen_folder=run.parent,
        inject=lambda started: started.process.kill(),
        exit_code=-signal.SIGKILL,
        allowed_loss=3 * SAVE_EVERY - 1,
        repair=tear,
    )


@contextmanager
def full_disk(run: Path, draw: random.Random) -> Iterator[Scene]:
    """Fill the disk of the run directory: the run ends in order, and goes on when there is room again."""
    holder = subprocess.Popen(["unshare", "-Urm", "sh", "-c", _MOUNT], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    if holder.stdout.readline() != "mounted\n":
        holder.wait()
        raise RuntimeError("this machine lets nobody mount a small disk (unshare -Urm)")
    seen = Path("/proc", str(holder.pid), "root", *_MOUNTED.parts[1:])
    filler = seen / "filler"

    def fill(started: Run) -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                pass

    try:
        yield Scene(
            run=seen / run.name,
            seen_folder=_MOUNTED,
            inject=fill,
            exit_code=1,
            told=("error: disk full",),
            repair=filler.unlink,
            prefix=["nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials"],
        )
    finally:
        holder.kill()
        holder.wait()


FAULTS = {
    "engine": lost_engine,
    "simulator": lost_simulator,
    "policy_rank": lost_rank,
    "hang": hang,
    "driver": lost_driver,
    "torn_checkpoint": torn_checkpoint,
    "full_disk": full_disk,
}
"""By the name that counts are kept under."""
