"""What an evaluation by itself comes to: scores of what was answered, what it took, and what has no answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zs_nemo.evaluation.answer_log import AnswerRecord
from zs_nemo.evaluation.manifest import EvaluationManifest
from zs_nemo.evaluation.scores import EvaluationName, summarise
from zs_nemo.rollout.collector import SearchBudgetExceeded

_NAMED = 20
"""Questions whose search brought no document that a summary names; the rows have all of them."""


def summarise_answers(
    records: Sequence[AnswerRecord],
    name: EvaluationName,
    manifest: EvaluationManifest,
    *,
    bootstrap_samples: int,
    left_out: int = 0,
) -> dict[str, Any]:
    """Return the entry of one evaluation in ``report.json``.

    Questions whose search failed or whose time ran out have no score: they are counted and named in ``unscored``.
    Searches that an engine answered without a document are in ``empty_searches``; the policy was told so. ``left_out``
    is the number of questions that were not asked, because their gold answers are patterns that the engine could not
    be told.
    """
    scored = [record for record in records if record.has_answer]
    failed = [record for record in records if not record.has_answer]
    if not scored:
        raise RuntimeError(
            f"evaluation {name}: of {len(failed)} questions not one has a score, because their searches failed or "
            f"rollout.trajectory_deadline_s passed; look at the engines. The last: {failed[-1].loss}"
        )
    summary: dict[str, Any] = {"method": manifest.method}
    summary |= summarise([record.row for record in records], name, bootstrap_samples=bootstrap_samples)
    summary["unscored"]["failures"] = dict(Counter(record.loss.partition(":")[0] for record in failed))
    summary |= {
        "policy_tokens_per_question": _mean([record.policy_tokens for record in scored]),
        "read_tokens_per_question": _mean([record.read_tokens for record in scored]),
        "latency_s": _mean([record.latency_s for record in scored]),
        "latency_s_p95": float(np.percentile([record.latency_s for record in scored], 95)),
        "questions_by_set": {each: content.num_questions for each, content in manifest.sets.items()},
        "failed_search_calls": sum(record.failed_calls for record in records),
        "empty_searches": {
            "num_searches": sum(record.empty_searches for record in scored),
            "share": _share(
                sum(record.empty_searches for record in scored), sum(record.row.searches for record in scored)
            ),
            "question_ids": [record.row.question_id for record in scored if record.empty_searches][:_NAMED],
        },
        "left_out": left_out,
        "sample": manifest.sample,
    }
    return summary


def check_empty_searches(summary: Mapping[str, Any], max_share: float) -> None:
    """Raise ``SearchBudgetExceeded`` when so many searches brought no document that scores would say little."""
    empty = summary["empty_searches"]
    if empty["share"] > max_share:
        raise SearchBudgetExceeded(
            f"{empty['num_searches']} searches, {100 * empty['share']:.0f} % of all, were answered without a document, "
            f"more than evaluate.max_empty_share={max_share:g} allows, such as those of "
            f"{', '.join(empty['question_ids'][:3])}; look at the engine and its corpus, or raise it: the answers are "
            "kept, and those questions are asked again under another exp_manager.name"
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
