"""How far a run is, by what its recipe has to do. Reads files alone, as ``run_follower`` does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zs_nemo.observability.files import read_json


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """What a run is at."""

    name: str
    done: int
    total: int | None
    """None where the run directory does not say it."""
    unit: str


class PartReader:
    """Reads the part again and again while the run directory grows."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """``config`` is the run's, as plain objects."""
        self._path = path
        self._config = config
        self._lines: dict[Path, tuple[int, int]] = {}

    def read(self, recipe: str | None, num_steps: int, num_supervised_steps: int) -> RunPart:
        """Return the part of a run that has made so many steps of reinforcement learning and supervised ones."""
        max_steps = int(self._config["trainer"]["max_steps"])
        if recipe == "sft_simulator":
            return RunPart(name="fine-tuning", done=num_supervised_steps, total=max_steps, unit="steps")
        if recipe == "evaluate":
            done, total = self._num_answers(), self._num_questions()
            return RunPart(
                name="evaluation", done=done if total is None else min(done, total), total=total, unit="questions"
            )
        if recipe == "collect":
            num_rounds = sum(1 for _ in (self._path / "interactions").glob("step_*.jsonl"))
            return RunPart(name="collection", done=num_rounds, total=None, unit="rounds of questions")
        warm_start = int(self._config["warm_start"]["steps"])
        if not num_steps and num_supervised_steps < warm_start:
            return RunPart(name="warm start", done=num_supervised_steps, total=warm_start, unit="steps")
        return RunPart(name="training", done=num_steps, total=max_steps, unit="steps")

    def _num_questions(self) -> int | None:
        evaluations = read_json(self._path / "manifest.json", {}).get("evaluations", {})
        return sum(each["num_questions"] for one in evaluations.values() for each in one["sets"].values()) or None

    def _num_answers(self) -> int:
        """Return the lines of all answers; a question that was asked again has one more."""
        for file in (self._path / "answers").glob("*/*.jsonl"):
            offset, count = self._lines.get(file, (0, 0))
            with file.open("rb") as lines:
                lines.seek(offset)
                more = lines.read()
            self._lines[file] = (offset + len(more), count + more.count(b"\n"))
        return sum(count for _, count in self._lines.values())
