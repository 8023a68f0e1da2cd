"""Scores of an evaluation with their uncertainty: percentile bootstrap over questions."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zs_nemo.qa.rewards import grade, published_exact_match
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.trajectory import Status, Trajectory

FloatArray = NDArray[np.float64]

MEASURES = ("em", "published_em", "f1")
"""What rows are scored by, as fields of ``EvaluationRow``."""

LARGEST_RESAMPLE = 4_000_000
"""Numbers drawn at once; bounds the memory of a bootstrap over a large set to some 32 MB."""
_LOST = frozenset(status.name for status in Status if status.is_lost)
_NAMED = 20
"""Questions without a score that a summary names; the rows have all of them."""
_Z_SQUARED = NormalDist().inv_cdf(0.975) ** 2
"""Of a two-sided interval of 95 %."""


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
    """Strict exact match."""
    published_em: float
    """Containment, which ZeroSearch reports as exact match."""
    f1: float
    searches: int
    status: str
    """Name of the ``types.trajectory.Status`` in which the episode ended."""
    hops: int = 0
    """Documents that the answer needs; 0 where the set does not say."""

    @property
    def is_scored(self) -> bool:
        """Whether the scores are the policy's: not if its search failed or its time ran out, whatever it does."""
        return self.status not in _LOST

    @property
    def set_name(self) -> str:
        """Return the set that the question belongs to; empty where its identifier does not say."""
        return self.question_id.rpartition("/")[0].partition("/")[0]

    @classmethod
    def of(cls, trajectory: Trajectory) -> "EvaluationRow":
        """Grade an episode and build its row."""
        question = trajectory.question
        grades = grade(trajectory.answer, question)
        return cls(
            question_id=question.id,
            kind=question.kind,
            answers=question.answers,
            prediction=trajectory.answer,
            em=grades.em,
            published_em=grades.published_em,
            f1=grades.f1,
            searches=trajectory.num_searches,
            status=trajectory.status.name,
            hops=len(question.evidence),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self) | {"answers": list(self.answers)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "EvaluationRow":
        """Read back what ``to_json`` wrote; a row from before containment was measured is graded by it now."""
        values = {field.name: row[field.name] for field in fields(cls) if field.name in row}
        values["answers"] = tuple(row["answers"])
        if "published_em" not in values:
            values["published_em"] = published_exact_match(row["prediction"], values["answers"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class EvaluationName:
    """Which evaluation this is."""

    when: str
    """``before`` (after the warm start) or ``after`` reinforcement learning; of an evaluation by itself the method."""
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

    Scores are means in [0, 1] over the rows that have one; ``unscored`` counts the others, which an engine lost and not
    the policy. ``published_em`` is containment. Where there is more than one set, ``by_set`` has each and ``macro``
    their unweighted mean. ``by_hops`` is there when the rows tell. With ``baseline``, the same questions answered by an
    earlier policy, ``gain`` holds the paired difference to it over the questions that have a score in both, if any.
    """
    scored = [row for row in rows if row.is_scored]
    if rows and not scored:
        raise RuntimeError(
            f"evaluation {name}: of {len(rows)} questions not one has a score, because their searches failed or "
            "rollout.trajectory_deadline_s passed; look at the engines, and give the same command again"
        )
    summary: dict[str, Any] = {"when": name.when, "engine": name.engine, "decoding": name.decoding}
    summary |= _scores(scored, bootstrap_samples, seed)
    summary["searches_per_question"] = float(np.mean([row.searches for row in scored]))
    statuses = Counter(row.status for row in scored)
    summary["status"] = {status: count / len(scored) for status, count in sorted(statuses.items())}
    summary["unscored"] = _unscored(rows)
    summary |= _parts(scored, bootstrap_samples, seed)
    if baseline is not None:
        before, after, _ = scored_in_both(baseline, rows)
        if before:
            summary["gain"] = compare(before, after, bootstrap_samples=bootstrap_samples, seed=seed)
    return summary


def scored_in_both(
    first: Sequence[EvaluationRow], second: Sequence[EvaluationRow]
) -> tuple[list[EvaluationRow], list[EvaluationRow], list[str]]:
    """Return both without the questions that either lost to a search or to its deadline, and those questions.

    What an engine did not answer says nothing about the policy; as a 0 it would count against it.
    """
    failed = {row.question_id: None for rows in (first, second) for row in rows if not row.is_scored}
    kept = [[row for row in rows if row.question_id not in failed] for rows in (first, second)]
    return kept[0], kept[1], list(failed)


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


def by_set(rows: Iterable[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """Return the rows of each set, sets in the order of their names."""
    sets: dict[str, list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        sets[row.set_name].append(row)
    return dict(sorted(sets.items()))


def macro_scores(rows: Sequence[EvaluationRow], *, bootstrap_samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Return the unweighted mean over the sets, as published averages are taken, with 95 % intervals.

    Questions are resampled within each set: the sets are those that there are, and not drawn from others.
    """
    columns = {name: score_columns(own) for name, own in by_set(rows).items()}
    means = np.mean([values.mean(axis=0) for values in columns.values()], axis=0)
    resampled = [resampled_means(own, bootstrap_samples, set_seed(seed, name)) for name, own in columns.items()]
    intervals = percentile_intervals(np.mean(resampled, axis=0))
    return {"sets": len(columns)} | _named(means.tolist(), intervals, [len(values) for values in columns.values()])


def score_columns(rows: Sequence[EvaluationRow]) -> FloatArray:
    """Return the scores of the rows [n, measures], in the order of ``MEASURES``."""
    return np.array([[getattr(row, measure) for measure in MEASURES] for row in rows], dtype=np.float64)


def set_seed(seed: int, name: str) -> int:
    """Return the seed of one set's resamples: sets are resampled independently of one another."""
    return SampleKey(run_seed=seed, step=0, prompt=0, member=0).seed(f"bootstrap/{name}")


def bootstrap_means(values: FloatArray, samples: int, seed: int) -> tuple[list[float], list[list[float]]]:
    """Return the means of the columns of ``values`` [n, m] with percentile-bootstrap 95 % intervals [low, high].

    All columns see the same resamples. Equal rows have no spread to resample: their interval is the point.
    """
    resampled = resampled_means(values, samples, seed)
    return values.mean(axis=0).tolist(), percentile_intervals(resampled)


def percentile_intervals(resampled: FloatArray) -> list[list[float]]:
    """Return the 95 % interval [low, high] of each column of ``resampled`` [samples, m]."""
    return np.percentile(resampled, [2.5, 97.5], axis=0).T.tolist()


def resampled_means(values: FloatArray, samples: int, seed: int) -> FloatArray:
    """Return the means [samples, m] of the columns of ``values`` [n, m] over rows drawn with repetition."""
    n = len(values)
    if n == 0:
        raise ValueError("an evaluation without rows has no score; evaluation.num_questions or the split is empty")
    generator = np.random.default_rng(seed)
    chunk = max(1, LARGEST_RESAMPLE // n)
    parts = []
    for start in range(0, samples, chunk):
        indices = generator.integers(0, n, size=(min(chunk, samples - start), n))
        parts.append(np.stack([column[indices].mean(axis=1) for column in values.T], axis=1))
    return np.concatenate(parts)


def interval_at_bound(mean: float, counts: Sequence[int]) -> list[float]:
    """Return the 95 % interval of scores that are all ``mean``, 0 or 1, in sets of ``counts`` questions.

    A bootstrap would take them for certain. It is the interval of Wilson (1927), of several sets the mean of theirs;
    for F1 it is at most too wide: no scores between 0 and 1 are spread further than right and wrong ones.
    """
    width = float(np.mean([_Z_SQUARED / (count + _Z_SQUARED) for count in counts]))
    return [0.0, width] if mean == 0.0 else [1.0 - width, 1.0]


def _unscored(rows: Sequence[EvaluationRow]) -> dict[str, Any]:
    lost = [row for row in rows if not row.is_scored]
    return {
        "num_questions": len(lost),
        "share": len(lost) / len(rows),
        "question_ids": [row.question_id for row in lost[:_NAMED]],
        "failures": dict(Counter(row.status for row in lost)),
    }


def _parts(rows: Sequence[EvaluationRow], samples: int, seed: int) -> dict[str, Any]:
    """Return the scores of kinds, sets and numbers of hops."""
    kinds = sorted({row.kind for row in rows})
    parts: dict[str, Any] = {
        "by_kind": {kind: _scores([row for row in rows if row.kind == kind], samples, seed) for kind in kinds}
    }
    sets = by_set(rows)
    if len(sets) > 1:
        parts["by_set"] = {each: _scores(own, samples, seed) for each, own in sets.items()}
        parts["macro"] = macro_scores(rows, bootstrap_samples=samples, seed=seed)
    hops = sorted({row.hops for row in rows if row.hops})
    if hops:
        parts["by_hops"] = {
            str(count): _scores([row for row in rows if row.hops == count], samples, seed) for count in hops
        }
    return parts


def _scores(rows: Sequence[EvaluationRow], samples: int, seed: int) -> dict[str, Any]:
    return {"n": len(rows)} | _named(*bootstrap_means(score_columns(rows), samples, seed), [len(rows)])


def _named(means: Sequence[float], intervals: Sequence[list[float]], counts: Sequence[int]) -> dict[str, Any]:
    """Return the scores by their names; ``counts`` are the questions of each set."""
    named: dict[str, Any] = {}
    for measure, mean, interval in zip(MEASURES, means, intervals, strict=True):
        named |= {measure: mean, f"{measure}_ci95": interval_at_bound(mean, counts) if mean in (0, 1) else interval}
    return named


def _by_question(rows: Sequence[EvaluationRow]) -> dict[str, FloatArray]:
    scores = {row.question_id: np.array([row.em, row.f1]) for row in rows}
    if len(scores) != len(rows):
        raise ValueError(f"{len(rows) - len(scores)} questions appear more than once in an evaluation")
    return scores
