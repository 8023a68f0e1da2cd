"""Reads a run directory again and again while it grows. Reads files alone: it works wherever they can be seen."""

import calendar
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, cast

from omegaconf import OmegaConf

from zs_nemo.observability.files import read_json
from zs_nemo.observability.phase import Phase
from zs_nemo.observability.run_part import PartReader, RunPart
from zs_nemo.observability.timeline import open_stages

_STEPS_AVERAGED = 5


class Life(Enum):
    """Whether the process of a run is alive."""

    running = "running"
    finished = "finished"
    ended = "not running"
    unknown = "unknown"


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run at one moment."""

    name: str
    recipe: str | None
    life: Life
    holder: str
    """Process and machine of the newest session, as ``123 on node7``; empty if unknown."""
    steps: list[dict[str, Any]]
    supervised_steps: list[dict[str, Any]]
    """Of a warm start, or of a fine-tuning."""
    part: RunPart
    evaluations: list[tuple[str, dict[str, Any]]]
    """The newest last."""
    stage: tuple[str, float] | None
    """What the driver does, and for how many seconds."""
    elapsed_s: float
    stage_s: dict[str, float]
    peak_memory_gib: float | None
    searches: dict[str, float] = field(default_factory=dict)
    """Counts over all phases and engines."""
    num_rollbacks: int = 0

    @property
    def seconds_left(self) -> float | None:
        """What the steps to come will take, at the speed of the last few; None where that is not known."""
        lengths = [sum(v for k, v in row.items() if k.startswith("time/") and v) for row in self.steps]
        recent = [length for length in lengths[-_STEPS_AVERAGED:] if length > 0]
        if not recent or self.part.total is None or self.part.done >= self.part.total:
            return None
        return sum(recent) / len(recent) * (self.part.total - self.part.done)


class RunFollower:
    """Follows one run; ``view`` reads what is new."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raise ``ValueError`` if the folder is no run directory."""
        if not (path / "config.yaml").exists():
            raise ValueError(
                f"{path} is no run directory: it has no config.yaml; give the folder exp_manager.exp_dir/"
                "exp_manager.name of a run that has begun"
            )
        self._path = path
        self._clock = clock
        self._part = PartReader(
            path, cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path / "config.yaml")))
        )
        self._metrics = JsonLinesTail(path / "metrics.jsonl")

    def view(self) -> RunView:
        """Return the run as it stands now."""
        state = read_json(self._path / "state.json", {})
        sessions = state.get("sessions", [])
        rows = self._metrics.read()
        steps = [row for row in rows if row["phase"] == Phase.rl.value]
        supervised = [row for row in rows if row["phase"] == Phase.warm_start.value]
        life, holder = life_of(self._path, finished=bool(state.get("finished")))
        peaks = [session["peak_memory_gib"] for session in sessions if session.get("peak_memory_gib") is not None]
        return RunView(
            name=self._path.resolve().name,
            recipe=state.get("recipe"),
            life=life,
            holder=holder,
            steps=steps,
            supervised_steps=supervised,
            part=self._part.read(state.get("recipe"), len(steps), len(supervised)),
            evaluations=self._evaluations(),
            stage=self._stage() if life is Life.running else None,
            elapsed_s=self._elapsed_s(sessions, life),
            stage_s=_added(session["stage_s"] for session in sessions),
            peak_memory_gib=max(peaks, default=None),
            searches=_added(
                counts for engines in read_json(self._path / "search.json", {}).values() for counts in engines.values()
            ),
            num_rollbacks=len(state.get("rollbacks", [])),
        )

    def _evaluations(self) -> list[tuple[str, dict[str, Any]]]:
        files = sorted((self._path / "evaluations").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [(file.stem, read_json(file, {})) for file in files]

    def _stage(self) -> tuple[str, float] | None:
        under_way = open_stages(self._path / "timeline.json")
        if not under_way:
            return None
        stage, began = under_way[-1]
        return stage, max(0.0, self._clock() - began)

    def _elapsed_s(self, sessions: list[dict[str, Any]], life: Life) -> float:
        recorded = sum(session["wall_s"] for session in sessions)
        if life is not Life.running or not sessions:
            return float(recorded)
        # The newest session records its time after every step; what has passed since its start is known better.
        began = calendar.timegm(time.strptime(sessions[-1]["began"], "%Y-%m-%dT%H:%M:%SZ"))
        return float(recorded - sessions[-1]["wall_s"] + max(0.0, self._clock() - began))


class JsonLinesTail:
    """Reads a file of JSON lines as it grows; one that was replaced, as after a rollback, is read anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rows: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """Return all rows so far. A line that is still being written is left for the next time."""
        if self._was_replaced():
            if self._file is not None:
                self._file.close()
            self._file = self._path.open("rb") if self._path.exists() else None
            self._rows = []
        if self._file is not None:
            place = self._file.tell()
            *whole, _torn = self._file.read().split(b"\n")
            self._rows += [json.loads(line) for line in whole]
            self._file.seek(place + sum(len(line) + 1 for line in whole))
        return self._rows

    def _was_replaced(self) -> bool:
        if self._file is None or not self._path.exists():
            return True
        # The number cannot be given to another file while this one is open.
        return os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino


def life_of(path: Path, *, finished: bool) -> tuple[Life, str]:
    """Return whether a run's process is alive, by the lock of its directory, and who took the lock last."""
    lock = path / ".lock"
    if not lock.exists():
        return (Life.finished if finished else Life.unknown), ""
    with lock.open(encoding="utf-8") as file:
        holder = file.read().strip()
        try:
            # Held for an instant; a run that starts in it tries again.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Life.running, holder
        except OSError:
            # A file system without locks.
            return (Life.finished if finished else Life.unknown), holder
    if finished:
        return Life.finished, holder
    machine = holder.partition(" on ")[2]
    # Not every shared file system shows the locks of other machines.
    return (Life.unknown if machine and machine != socket.gethostname() else Life.ended), holder


def _added(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
