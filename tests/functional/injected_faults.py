"""Faults that are injected into a real run at a moment that a key draws, and what must hold afterwards.

Used once a fault by ``test_faults.py``, and many times over by ``launch/faults.sh``. A trial is one run, into which one
fault after the other comes. It goes on from the checkpoint that an undisturbed run of the same settings made after its
warm start, and is held against that run.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.functional.role_processes import role_processes
from tests.functional.test_grpo_recipe import ROOT, keyed_part, overrides, processes_of, steps_of

SAVE_EVERY = 2
TIMEOUT_S = 900.0
"""For a start and for each command of a trial: some twenty times what they take, and less than a hang would."""
GONE_AFTER_S = 20.0
_TOLD_CHARACTERS = 600
"""Of a run's last words, where they are not the ones that were expected."""
HANG_TIMEOUT_S = 40.0
_MOUNTED = Path("/tmp/zs_nemo_small_disk")
_MOUNT = f"mkdir -p {_MOUNTED} && mount -t tmpfs -o size=2g tmpfs {_MOUNTED} && echo mounted && exec sleep infinity"


@dataclass(kw_only=True)
class Injection:
    """One fault that came into a run."""

    fault: str
    delay_s: float
    """From the beginning of the first step, or from the recovery from the fault before, to this one."""
    in_step: int
    lost_steps: int = 0
    """Steps that had been logged and had to be made again."""
    recovery_s: float = 0.0
    """From the fault to the next step in the log."""


@dataclass(kw_only=True)
class Trial:
    """What became of one run."""

    name: str
    injections: list[Injection] = field(default_factory=list)
    """Fewer than planned when the run was over before the next moment that was drawn."""
    problems: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        """Whether faults came into the run, and it ended as one without any."""
        return bool(self.injections) and not self.problems


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a trial's run, and what comes into it."""

    num_steps: int
    faults: tuple[str, ...]

    def draw_delays(self, draw: random.Random, reference: Path) -> list[float]:
        """Return a moment for each fault, in seconds from the recovery before, so that all find the run under way.

        Recovering takes the run to the end of a step at least; the other steps are shared among the faults.
        """
        rows = steps_of(reference)
        step_s = sum(value for row in rows for name, value in row.items() if name.startswith("time/")) / len(rows)
        longest_s = 0.9 * step_s * (self.num_steps - len(self.faults)) / len(self.faults)
        return [draw.uniform(0.0, longest_s) for _ in self.faults]


def settings(model: Path, folder: Path, name: str, num_steps: int) -> list[str]:
    """Return the overrides of every run here. In float32 no batch can tip a token over."""
    return [
        *overrides(model, folder, name),
        "search.dtype=float32",
        f"trainer.max_steps={num_steps}",
        f"exp_manager.save_every_n_steps={SAVE_EVERY}",
        "exp_manager.save_top_k=10",
        f"cluster.startup_timeout_s={TIMEOUT_S:g}",
        "faults.max_engine_restarts=10",
        "faults.max_group_restarts=10",
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


def undisturbed(model: Path, folder: Path, num_steps: int) -> Path:
    """Return a run without faults, made now if it is not there."""
    run = folder / f"undisturbed_{num_steps}"
    if not (run / "report.json").exists():
        started = Run(settings(model, folder, run.name, num_steps), run)
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


def run_trial(name: str, plan: Plan, model: Path, folder: Path, *, seed: int = 0) -> Trial:
    """Inject what is planned into a run, and see it to its end, by further commands where a fault needs them."""
    reference = undisturbed(model, folder, plan.num_steps)
    trial = Trial(name=name)
    delays = plan.draw_delays(random.Random(f"{seed}/{name}"), reference)
    draw = random.Random(f"{seed}/{name}/what")
    with ExitStack() as stack:
        scenes = {
            fault: stack.enter_context(FAULTS[fault](folder / name, draw)) for fault in dict.fromkeys(plan.faults)
        }
        scene = scenes[plan.faults[0]]
        assert all(other.run == scene.run for other in scenes.values()), "a full disk is a trial of its own"
        shutil.rmtree(scene.run, ignore_errors=True)
        copy_of_beginning(reference, scene.run)
        more = [setting for each in scenes.values() for setting in each.more]
        arguments = [*settings(model, scene.seen_folder, scene.run.name, plan.num_steps), *more]
        commands: list[Run] = []

        def start_command() -> Run:
            commands.append(Run(arguments, scene.run, scene.prefix))
            return commands[-1]

        moments = [(fault, scenes[fault], delay_s) for fault, delay_s in zip(plan.faults, delays, strict=True)]
        try:
            _play(trial, moments, plan.num_steps, start_command)
            _expect_same_run(trial, scene.run, reference, plan.num_steps)
        finally:
            if commands[-1].process.poll() is None:
                os.killpg(commands[-1].process.pid, signal.SIGKILL)
        if trial.survived:
            shutil.rmtree(scene.run, ignore_errors=True)
    return trial


def _play(
    trial: Trial, moments: list[tuple[str, "Scene", float]], num_steps: int, start_command: Callable[[], Run]
) -> None:
    command, run = start_command(), moments[0][1].run
    command.wait_for_first_step()
    ready_s = command.began_s
    for fault, scene, delay_s in moments:
        time.sleep(max(0.0, ready_s + delay_s - time.monotonic()))
        before = num_logged(run)
        if command.process.poll() is not None or before == num_steps:
            break
        injection = Injection(fault=fault, delay_s=delay_s, in_step=before)
        trial.injections.append(injection)
        told_before = {text: command.output.count(text) for text in scene.told}
        num_resumed = len(resumed_at(command))
        injected_s = time.monotonic()
        scene.inject(command)
        if scene.exit_code != 0:
            _expect_end(trial, run, command, scene.exit_code)
            trial.problems += [
                f"not told: {text}, but: {command.output[-_TOLD_CHARACTERS:]}"
                for text in scene.told
                if text not in command.output
            ]
            scene.repair()
            command, num_resumed, told_before = start_command(), 0, {}
        _wait_for_recovery(command, scene, before, told_before, num_resumed)
        ready_s = time.monotonic()
        injection.recovery_s = ready_s - injected_s
        trial.problems += [
            f"not told: {text}" for text, count in told_before.items() if command.output.count(text) == count
        ]
        if scene.goes_back:
            injection.lost_steps = _lost_steps(before, resumed_at(command)[num_resumed:])
            # A checkpoint that is written in the background counts when the next episodes have ended.
            if injection.lost_steps > scene.allowed_loss:
                trial.problems.append(f"{injection.lost_steps} steps were lost")
    _expect_end(trial, run, command, 0)


def resumed_at(command: Run) -> list[int]:
    """Return the steps at which a command has gone on from a checkpoint so far."""
    return [int(line.rpartition("at step ")[2]) for line in list(command.lines) if "resumed from" in line]


def _lost_steps(in_step: int, resumed: list[int]) -> int:
    # Without a line of its own the run has begun again at the beginning of the trial.
    return max(0, in_step - resumed[-1]) if resumed else in_step


def _wait_for_recovery(
    command: Run, scene: "Scene", num_before: int, told_before: dict[str, int], num_resumed: int
) -> None:
    """Return when the run is past the step that the fault came into, and has noticed the fault; or has ended."""

    def recovered() -> bool:
        told = all(command.output.count(text) > count for text, count in told_before.items())
        returned = not scene.goes_back or len(resumed_at(command)) > num_resumed
        return told and returned and num_logged(scene.run) > num_before

    deadline = time.monotonic() + TIMEOUT_S
    while not recovered() and command.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def _expect_end(trial: Trial, run: Path, command: Run, exit_code: int) -> None:
    code = command.wait(TIMEOUT_S)
    if code != exit_code:
        trial.problems.append(f"exit code {code} instead of {exit_code}: {command.output[-1500:]}")
    _expect_nothing_left(trial, run)


def _expect_nothing_left(trial: Trial, run: Path) -> None:
    deadline = time.monotonic() + GONE_AFTER_S
    while (left := processes_of(run)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        trial.problems.append(f"processes are left: {[process.name() for process in left]}")


def _expect_same_run(trial: Trial, run: Path, reference: Path, num_steps: int) -> None:
    steps = [row["step"] for row in steps_of(run)]
    if steps != list(range(num_steps)):
        trial.problems.append(f"the log holds the steps {steps}")
        return
    for step in range(num_steps):
        if keyed_part(run, step) != keyed_part(reference, step):
            trial.problems.append(f"step {step} has other prompts, coins or seeds than the undisturbed run")
    ours, theirs = steps_of(run)[-1], steps_of(reference)[-1]
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
            prefix=[
                *("nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials"),
                # Entering a mount namespace leaves the working directory behind.
                *("env", f"--chdir={ROOT}"),
            ],
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
