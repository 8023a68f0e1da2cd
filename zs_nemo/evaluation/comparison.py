"""Whether one evaluation is better than another: paired bootstrap over the questions that both have answered."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zs_nemo.evaluation.scores import (
    MEASURES,
    EvaluationRow,
    FloatArray,
    by_set,
    percentile_intervals,
    resampled_means,
    score_columns,
    set_seed,
)
from zs_nemo.observability.files import read_json_lines
from zs_nemo.types.trajectory import Status

MACRO = "macro average"
SIGNIFICANCE = 0.05
LABELS = {"em": "EM", "published_em": "EM as published (containment)", "f1": "F1"}
LOST = frozenset(status.name for status in Status if status.is_lost)
_SHOWN_QUESTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much higher the second evaluation scores than the first, on one set by one measure."""

    set_name: str
    """``MACRO`` for the unweighted mean over the sets."""
    measure: str
    num_questions: int
    first: float
    second: float
    ci95: tuple[float, float]
    """Of ``second - first``."""
    p_value: float
    """Two-sided: how often resamples of the same questions differ by this much where there is no difference."""

    @property
    def difference(self) -> float:
        """Return ``second - first``."""
        return self.second - self.first

    @property
    def is_significant(self) -> bool:
        """Return whether the difference is told from none at the level of 5 %."""
        return self.p_value < SIGNIFICANCE


def compare_evaluations(
    first: Sequence[EvaluationRow],
    second: Sequence[EvaluationRow],
    *,
    bootstrap_samples: int = 10_000,
    seed: int = 0,
) -> list[Difference]:
    """Return the differences by set and measure, and those of the macro average where there is more than one set.

    Both evaluations see the same resampled questions; questions are resampled within their set. The p-value is that of
    the bootstrap distribution moved to zero, (1 + at least as far out) / (1 + samples). Raises ``ValueError``, naming
    questions, unless both hold the same ones with the same gold answers, each once.
    """
    check_same_questions(first, second)
    sets, order = by_set(first), {row.question_id: row for row in second}
    means: list[tuple[FloatArray, FloatArray]] = []
    resampled: list[FloatArray] = []
    differences: list[Difference] = []
    for name, rows in sets.items():
        a, b = score_columns(rows), score_columns([order[row.question_id] for row in rows])
        means.append((a.mean(axis=0), b.mean(axis=0)))
        resampled.append(resampled_means(b - a, bootstrap_samples, set_seed(seed, name)))
        differences += _differences(name, len(rows), *means[-1], resampled[-1])
    if len(sets) > 1:
        first_mean, second_mean = (np.mean([pair[side] for pair in means], axis=0) for side in (0, 1))
        differences += _differences(MACRO, len(first), first_mean, second_mean, np.mean(resampled, axis=0))
    return differences


def check_same_questions(first: Sequence[EvaluationRow], second: Sequence[EvaluationRow]) -> None:
    """Raise ``ValueError``, naming questions, unless both hold the same ones with the same gold answers, each once."""
    answers = [{row.question_id: row.answers for row in rows} for rows in (first, second)]
    for rows, known in zip((first, second), answers, strict=True):
        if not rows:
            raise ValueError("an evaluation without rows cannot be compared; name one that has ended")
        if len(known) != len(rows):
            counts = Counter(row.question_id for row in rows)
            twice = [name for name, count in counts.items() if count > 1]
            raise ValueError(
                f"an evaluation holds {_listed(twice)} more than once; it was not written by one evaluation"
            )
    only = [[name for name in answers[side] if name not in answers[1 - side]] for side in (0, 1)]
    if any(only):
        parts = [
            f"the {word} alone has {_listed(names)}"
            for word, names in zip(("first", "second"), only, strict=True)
            if names
        ]
        raise ValueError(
            f"the evaluations are of different questions: {'; '.join(parts)}; compare evaluations of the same sets, "
            "splits and counts"
        )
    if other := [name for name, own in answers[0].items() if set(own) != set(answers[1][name])]:
        raise ValueError(
            f"the evaluations have different gold answers for {_listed(other)}; take the questions of both from the "
            "same place"
        )


def scored_in_both(
    first: Sequence[EvaluationRow], second: Sequence[EvaluationRow]
) -> tuple[list[EvaluationRow], list[EvaluationRow], list[str]]:
    """Return both without the questions that either lost to a search or to its deadline, and those questions.

    What an engine did not answer says nothing about the policy; as a 0 it would count against it.
    """
    failed = {row.question_id: None for rows in (first, second) for row in rows if row.status in LOST}
    kept = [[row for row in rows if row.question_id not in failed] for rows in (first, second)]
    return kept[0], kept[1], list(failed)


def read_evaluation(path: Path) -> list[EvaluationRow]:
    """Read the rows of an evaluation, ``evaluations/NAME.jsonl`` of a run directory."""
    if not path.is_file():
        others = sorted(file.stem for file in path.parent.glob("*.jsonl"))
        there = f"there are {', '.join(others)}" if others else "there are none yet"
        raise ValueError(f"{path} is no evaluation that has ended; {there}")
    try:
        return [EvaluationRow.from_json(row) for row in read_json_lines(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold the rows of an evaluation ({error})") from error


def comparison_table(differences: Sequence[Difference], names: tuple[str, str]) -> str:
    """Return the differences as a Markdown table, scores in percent; a star marks what is significant."""
    head = ["set", "questions", "measure", *names, "difference", "95 % interval", "p"]
    lines = [head, ["---", "---:", "---", "---:", "---:", "---:", "---", "---:"]]
    lines += [_line(difference) for difference in differences]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _line(each: Difference) -> list[str]:
    low, high = each.ci95
    return [
        each.set_name or "\N{EN DASH}",
        f"{each.num_questions:,}",
        LABELS[each.measure],
        f"{100 * each.first:.1f}",
        f"{100 * each.second:.1f}",
        f"{100 * each.difference:+.1f}{'*' if each.is_significant else ''}",
        f"[{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{each.p_value:.4f}" if each.p_value >= 0.0001 else "< 0.0001",
    ]


def _differences(name: str, n: int, first: FloatArray, second: FloatArray, resampled: FloatArray) -> list[Difference]:
    intervals = percentile_intervals(resampled)
    observed = second - first
    # Resamples of equal means differ from them by rounding alone, which must not decide.
    extreme = np.abs(resampled - observed) >= np.abs(observed) - 1e-12
    p_values = (1 + extreme.sum(axis=0)) / (1 + len(resampled))
    return [
        Difference(
            set_name=name,
            measure=measure,
            num_questions=n,
            first=float(first[column]),
            second=float(second[column]),
            ci95=(intervals[column][0], intervals[column][1]),
            p_value=float(p_values[column]),
        )
        for column, measure in enumerate(MEASURES)
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_QUESTIONS])
    return shown if len(names) <= _SHOWN_QUESTIONS else f"{shown} and {len(names) - _SHOWN_QUESTIONS} more questions"
