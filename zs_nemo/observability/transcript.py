"""Trajectories as text that a person can read, cut where the writer changes."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.trajectory import Trajectory, TrajectoryGroup, Turn


def transcript(trajectory: Trajectory, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a trajectory as one JSON object; its segments are decoded run by run of one role."""
    key = trajectory.key
    return {
        "key": {"run_seed": key.run_seed, "step": key.step, "prompt": key.prompt, "member": key.member},
        "question": trajectory.question.text,
        "question_id": trajectory.question.id,
        "kind": trajectory.question.kind,
        "answers": list(trajectory.question.answers),
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "status": trajectory.status.name,
        "search_failures": trajectory.search_failures,
        "segments": segments(trajectory, tokenizer),
        "turns": [_turn(turn) for turn in trajectory.turns],
    }


def segments(trajectory: Trajectory, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the text of a trajectory, run by run of one role."""
    found = []
    position = 0
    for role, run in groupby(trajectory.roles):
        length = len(list(run))
        ids = trajectory.token_ids[position : position + length]
        found.append({"role": role.name, "tokens": length, "text": tokenizer.decode(ids)})
        position += length
    return found


def sample_trajectories(groups: Sequence[TrajectoryGroup], count: int) -> list[Trajectory]:
    """Draw ``count`` trajectories by their keys, without a look at how they went, from as many groups as possible."""

    def draw(trajectory: Trajectory) -> float:
        return trajectory.key.uniform("transcript")

    shuffled = [sorted(group.trajectories, key=draw) for group in groups if group.trajectories]
    shuffled.sort(key=lambda members: draw(members[0]))
    rounds = max((len(members) for members in shuffled), default=0)
    return [members[index] for index in range(rounds) for members in shuffled if index < len(members)][:count]


def _turn(turn: Turn) -> dict[str, Any]:
    found = turn.result
    return {
        "query": turn.query,
        "source": found.source if found else None,
        "noisy": found.noisy if found else None,
        "defects": dict(found.defects) if found else {},
        "latency_s": found.latency_s if found else None,
        "sampling_seed": turn.sampling_seed,
        "weight_version": turn.weight_version,
        "tokens": turn.end - turn.start,
    }
