"""Episodes in a checkpoint: those that have ended and wait for their step, and those that are still under way.

One JSON object a line, a trajectory each. The question and the prompt are not in it: they follow from its key. Owns the
form and the file; ``StepsAhead`` knows which episodes there are.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zs_nemo.observability.files import read_json_lines, write_json_lines
from zs_nemo.rollout.episode import EpisodePlan
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchFailureKind, SearchResult
from zs_nemo.types.trajectory import Role, Status, Trajectory, Turn

FILE = "episodes.jsonl"

Row = dict[str, Any]


def episode_row(trajectory: Trajectory, *, ended: bool, now_s: float) -> Row:
    """Return an episode as it stands; the row shares nothing with it. ``now_s`` is read off the monotonic clock."""
    return {
        "key": asdict(trajectory.key),
        "question_id": trajectory.question.id,
        "ended": ended,
        "token_ids": list(trajectory.token_ids),
        "roles": "".join(str(role.value) for role in trajectory.roles),
        "generation_logprobs": list(trajectory.generation_logprobs),
        "turns": [asdict(turn) for turn in trajectory.turns],
        "status": trajectory.status.name,
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "search_failures": trajectory.search_failures,
        "last_search_failure": trajectory.last_search_failure,
        "search_failure_kind": trajectory.search_failure_kind.name if trajectory.search_failure_kind else None,
        "failed_engine": trajectory.failed_engine,
        "elapsed_s": trajectory.elapsed_s if ended else now_s - trajectory.began_s,
    }


def key_of(row: Row) -> SampleKey:
    """Return whose episode a row is."""
    return SampleKey(**row["key"])


def trajectory_of(row: Row, plan: EpisodePlan, *, now_s: float) -> Trajectory:
    """Return the episode that ``episode_row`` was given, which began from ``plan``.

    Raises ``ValueError`` when the run's questions are no longer those that it began with.
    """
    prompt = row["token_ids"][: len(plan.prompt_ids)]
    if row["question_id"] != plan.question.id or prompt != plan.prompt_ids:
        raise ValueError(
            f"the checkpoint holds an episode of question {row['question_id']!r} for step {plan.key.step}, prompt "
            f"{plan.key.prompt}, but the data now give {plan.question.id!r} or another prompt there; put the data back "
            "as they were, or start a new run with another exp_manager.name"
        )
    failure = row["search_failure_kind"]
    return Trajectory(
        key=plan.key,
        question=plan.question,
        token_ids=row["token_ids"],
        roles=[Role(int(digit)) for digit in row["roles"]],
        generation_logprobs=row["generation_logprobs"],
        turns=[_turn(turn) for turn in row["turns"]],
        status=Status[row["status"]],
        answer=row["answer"],
        reward=row["reward"],
        search_failures=row["search_failures"],
        last_search_failure=row["last_search_failure"],
        search_failure_kind=SearchFailureKind[failure] if failure else None,
        failed_engine=row["failed_engine"],
        elapsed_s=row["elapsed_s"],
        # What has ended was not run by this process, whose clock is another.
        began_s=0.0 if row["ended"] else now_s - row["elapsed_s"],
    )


def _turn(row: Row) -> Turn:
    found = row["result"]
    if found is not None:
        found = SearchResult(**{**found, "documents": tuple(Document(**each) for each in found["documents"])})
    return Turn(**{**row, "result": found, "sampled_ids": tuple(row["sampled_ids"])})


def write_episodes(folder: Path, rows: Sequence[Row]) -> dict[str, int]:
    """Write the file into a checkpoint, and return what ``damage`` holds it against."""
    write_json_lines(folder / FILE, rows)
    return _seal(folder / FILE)


def read_episodes(folder: Path) -> list[Row]:
    """Return the rows of a checkpoint's file."""
    return read_json_lines(folder / FILE)


def damage(folder: Path, seal: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the file; nothing if it is as it was written."""
    path = folder / FILE
    if not path.is_file():
        return [f"{path} is missing"]
    return [] if _seal(path) == dict(seal) else [f"{path} is not what was written: its checksum differs"]


def _seal(path: Path) -> dict[str, int]:
    content = path.read_bytes()
    return {"bytes": len(content), "crc32": zlib.crc32(content)}
