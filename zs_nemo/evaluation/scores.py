"""Scores of an evaluation with their uncertainty: percentile bootstrap over questions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zs_nemo.types.trajectory import Trajectory

FloatArray = NDArray[np.float64]

_LARGEST_RESAMPLE = 4_000_000
"""Indices drawn at once; bounds the memory of a bootstrap over a large set to some 32 MB."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One question with what the policy made of it."""

    question_id: str
    kind: str
    answers: tuple[str, ...]
    """Gold answers."""
    prediction: str | None
    """What the policy answered; None when it gave no answer, which scores 0."""
    em: float
    f1: float
    searches: int
    status: str
    """Name of the ``types.trajectory.Status`` in which the episode ended."""
    hops: int = 0
    """Documents that the answer needs; 0 where the set does not say."""

    @classmethod
    def of(cls, trajectory: Trajectory, *, em: float, f1: float) -> "EvaluationRow":
        """Build the row of an episode that has been graded."""
        question = trajectory.question
        return cls(
            question_id=question.id,
            kind=question.kind,
            answers=question.answers,
            prediction=trajectory.answer,
            em=em,
            f1=f1,
            searches=trajectory.num_searches,
            status=trajectory.status.name,
            hops=len(question.evidence),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self) | {"answers": list(self.answers)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "EvaluationRow":
        """Read back what ``to_json`` wrote."""
        values = {field.name: row[field.name] for field in fields(cls) if field.name in row}
        return cls(**values | {"answers": tuple(row["answers"])})


@dataclass(frozen=True, kw_only=True)
class EvaluationName:
    """Which evaluation this is."""

    when: str
    """``before`` (after the warm start) or ``after`` reinforcement learning."""
    engine: str
    """``bm25``, ``simulator`` or ``closed_book``."""
    temperature: float

    @property
    def decoding(self) -> str:
        """``greedy`` or ``temperature_1``."""
        return "greedy" if self.temperature == 0 else f"temperature_{self.temperature:g}"

    def __str__(self) -> str:
        return f"{self.when}_{self.engine}_{self.decoding}"


def summarise(
    rows: Sequence[EvaluationRow],
    name: EvaluationName,
    *,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    baseline: Sequence[EvaluationRow] | None = None,
) -> dict[str, Any]:
    """Return the entry of one evaluation in ``report.json``, with 95 % intervals over questions.

    Scores are means in [0, 1] over all rows. ``by_hops`` is there when the rows tell. With ``baseline``, the same
    questions answered by an earlier policy, ``gain`` holds the paired difference to it.
    """
    summary: dict[str, Any] = {"when": name.when, "engine": name.engine, "decoding": name.decoding}
    summary |= _scores(rows, bootstrap_samples, seed)
    summary["searches_per_question"] = float(np.mean([row.searches for row in rows]))
    statuses = sorted({row.status for row in rows})
    summary["status"] = {status: float(np.mean([row.status == status for row in rows])) for status in statuses}
    kinds = sorted({row.kind for row in rows})
    summary["by_kind"] = {
        kind: _scores([row for row in rows if row.kind == kind], bootstrap_samples, seed) for kind in kinds
    }
    hops = sorted({row.hops for row in rows if row.hops})
    if hops:
        summary["by_hops"] = {
            str(count): _scores([row for row in rows if row.hops == count], bootstrap_samples, seed) for count in hops
        }
    if baseline is not None:
        summary["gain"] = compare(baseline, rows, bootstrap_samples=bootstrap_samples, seed=seed)
    return summary


def compare(
    rows_a: Sequence[EvaluationRow],
    rows_b: Sequence[EvaluationRow],
    *,
    bootstrap_samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how much better ``rows_b`` are than ``rows_a`` on the same questions, paired, with 95 % intervals.

    Raises ``ValueError`` if the two do not hold the same questions, each once.
    """
    scores_a, scores_b = (_by_question(rows) for rows in (rows_a, rows_b))
    if scores_a.keys() != scores_b.keys():
        different = sorted(scores_a.keys() ^ scores_b.keys())
        raise ValueError(
            f"{len(different)} questions are in one evaluation alone, such as {different[0]!r}; "
            "compare evaluations of the same split and number of questions"
        )
    gains = np.array([scores_b[question] - scores_a[question] for question in scores_a])
    means, intervals = bootstrap_means(gains, bootstrap_samples, seed)
    return {
        "n": len(gains),
        "em": means[0],
        "em_ci95": intervals[0],
        "f1": means[1],
        "f1_ci95": intervals[1],
        "questions_better": int((gains[:, 1] > 0).sum()),
        "questions_worse": int((gains[:, 1] < 0).sum()),
    }


def bootstrap_means(values: FloatArray, samples: int, seed: int) -> tuple[list[float], list[list[float]]]:
    """Return the means of the columns of ``values`` [n, m] with percentile-bootstrap 95 % intervals [low, high].

    All columns see the same resamples. One row has no spread to resample: its interval is the point.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an evaluation without rows has no score; evaluation.num_questions or the split is empty")
    generator = np.random.default_rng(seed)
    chunk = max(1, _LARGEST_RESAMPLE // n)
    parts = []
    for start in range(0, samples, chunk):
        indices = generator.integers(0, n, size=(min(chunk, samples - start), n))
        parts.append(np.stack([column[indices].mean(axis=1) for column in values.T], axis=1))
    bounds = np.percentile(np.concatenate(parts), [2.5, 97.5], axis=0)
    return values.mean(axis=0).tolist(), bounds.T.tolist()


def _scores(rows: Sequence[EvaluationRow], samples: int, seed: int) -> dict[str, Any]:
    values = np.array([(row.em, row.f1) for row in rows], dtype=np.float64)
    means, intervals = bootstrap_means(values, samples, seed)
    return {"n": len(rows), "em": means[0], "em_ci95": intervals[0], "f1": means[1], "f1_ci95": intervals[1]}


def _by_question(rows: Sequence[EvaluationRow]) -> dict[str, FloatArray]:
    scores = {row.question_id: np.array([row.em, row.f1]) for row in rows}
    if len(scores) != len(rows):
        raise ValueError(f"{len(rows) - len(scores)} questions appear more than once in an evaluation")
    return scores
