"""Whether one evaluation is better than another, over the questions that both have answered.

Paired: intervals by bootstrap, p-values by flipping the signs of the differences.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zs_nemo.evaluation.scores import (
    LARGEST_RESAMPLE,
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

MACRO = "macro average"
SIGNIFICANCE = 0.05
LABELS = {"em": "EM", "published_em": "EM as published (containment)", "f1": "F1"}
_SHOWN_QUESTIONS = 3
_COUNTED_QUESTIONS = 16
"""Up to so many differences, each of the 65,536 choices of their signs is counted; of more, some are drawn."""


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
    """Two-sided: how often the same questions would differ by this much where neither is better."""

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

    For the intervals both see the same resampled questions; questions are resampled within their set. The p-values are
    those of ``sign_flip_p_value``. Raises ``ValueError``, naming questions, unless both hold the same ones with the
    same gold answers, each once.
    """
    check_same_questions(first, second)
    sets, order = by_set(first), {row.question_id: row for row in second}
    means: list[tuple[FloatArray, FloatArray]] = []
    resampled: list[FloatArray] = []
    parts: list[FloatArray] = []
    differences: list[Difference] = []
    for name, rows in sets.items():
        a, b = score_columns(rows), score_columns([order[row.question_id] for row in rows])
        means.append((a.mean(axis=0), b.mean(axis=0)))
        resampled.append(resampled_means(b - a, bootstrap_samples, set_seed(seed, name)))
        parts.append((b - a) / len(rows))
        p_values = _p_values(parts[-1], bootstrap_samples, set_seed(seed, name))
        differences += _differences(name, len(rows), *means[-1], resampled[-1], p_values)
    if len(sets) > 1:
        first_mean, second_mean = (np.mean([pair[side] for pair in means], axis=0) for side in (0, 1))
        p_values = _p_values(np.concatenate(parts) / len(sets), bootstrap_samples, set_seed(seed, MACRO))
        differences += _differences(MACRO, len(first), first_mean, second_mean, np.mean(resampled, axis=0), p_values)
    return differences


def sign_flip_p_value(parts: FloatArray, samples: int, seed: int) -> float:
    """Return how often the sum of ``parts`` [n] is at least as far from 0 with other signs: Fisher's paired test.

    ``parts`` are what each question adds to a mean difference. Where neither evaluation is better, both signs of each
    are equally likely. Of up to 16 that are not 0 every choice of signs is counted, so that n alike give 2 / 2^n. Of
    more, ``samples`` choices are drawn by ``seed``; p is then (1 + as far out) / (1 + samples).
    """
    parts = parts[parts != 0]
    n = len(parts)
    if n <= _COUNTED_QUESTIONS:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return _num_as_far(bits, parts) / 2**n
    generator = np.random.default_rng(seed)
    chunk = max(1, LARGEST_RESAMPLE // n)
    as_far = 0
    for start in range(0, samples, chunk):
        bits = generator.integers(0, 2, size=(min(chunk, samples - start), n), dtype=np.int8)
        as_far += _num_as_far(bits, parts)
    return (1 + as_far) / (1 + samples)


def _num_as_far(bits: NDArray[np.integer[Any]], parts: FloatArray) -> int:
    """Return for how many rows of ``bits`` [k, n], 1 for a turned sign, the sum is as far from 0 as it is with none."""
    sums = (1.0 - 2.0 * bits) @ parts
    # Equal sums differ by rounding alone, which must not decide.
    return int(np.count_nonzero(np.abs(sums) >= abs(parts.sum()) - 1e-12))


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


def _p_values(parts: FloatArray, samples: int, seed: int) -> list[float]:
    return [sign_flip_p_value(column, samples, seed) for column in parts.T]


def _differences(
    name: str, n: int, first: FloatArray, second: FloatArray, resampled: FloatArray, p_values: Sequence[float]
) -> list[Difference]:
    intervals = percentile_intervals(resampled)
    return [
        Difference(
            set_name=name,
            measure=measure,
            num_questions=n,
            first=float(first[column]),
            second=float(second[column]),
            ci95=(intervals[column][0], intervals[column][1]),
            p_value=p_values[column],
        )
        for column, measure in enumerate(MEASURES)
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_QUESTIONS])
    return shown if len(names) <= _SHOWN_QUESTIONS else f"{shown} and {len(names) - _SHOWN_QUESTIONS} more questions"
